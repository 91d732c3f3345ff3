"""Draws report.png, the picture of a run, from the files of the run."""

import matplotlib
import matplotlib.axes
import numpy as np
from etils import epath
from matplotlib import figure

from mgjax import files, pictures
from mgjax.evaluation import eval_picture, results
from mgjax.grids.schedule import GridSchedule
from mgjax.run import run_folder


def draw(workdir: epath.PathLike, schedule: GridSchedule) -> np.ndarray:
  """Draws workdir/report.png from metrics.jsonl and eval.json.

  Args:
    workdir: Folder of the run.
    schedule: Its schedule.

  Returns:
    The picture, uint8 [H, W, 3].
  """
  workdir = epath.Path(workdir)
  lines = run_folder.read_metrics(workdir)
  steps = [m for m in lines if 'loss' in m]
  evals = [m for m in lines if 'eval_num_scored' in m]
  result = files.read_json(workdir / 'eval.json')
  clock = _Clock(steps)

  with matplotlib.rc_context(pictures.STYLE):
    fig = figure.Figure(figsize=(13, 8), dpi=100, layout='constrained')
    left, right = fig.subfigures(1, 2, width_ratios=[1.35, 1])
    axes = {
      **left.subplot_mosaic(
        [['grid'], ['loss'], ['lr']], height_ratios=[1, 1.4, 0.8], sharex=True
      ),
      **right.subplot_mosaic(
        [['confusion'], ['classes']], height_ratios=[2.2, 1]
      ),
    }
    _draw_grids(axes['grid'], clock, schedule)
    _draw_loss(axes['loss'], clock, steps, evals, len(result['per_class']))
    _draw_rate(axes['lr'], clock, schedule)
    eval_picture.draw_confusion(axes['confusion'], result)
    eval_picture.draw_classes(axes['classes'], result)
    for name in ('grid', 'loss', 'lr'):
      axes[name].set_xlim(0, clock.minutes(schedule.total_steps) or 1)
      axes[name].grid(alpha=0.3)
      for start, end in clock.compiling:
        axes[name].axvspan(start, end, color='0.85', lw=0)
    fig.suptitle(
      f'{pictures.printable(workdir.name)}: {results.describe(result)} '
      f'after {schedule.total_steps} steps, {schedule.total_clips} clips',
      **pictures.PLAIN,
    )
    return pictures.save(fig, workdir / 'report.png')


class _Clock:
  """When each step of a run was done, of the time on the picture's axis.

  Attributes:
    compiling: Where the run waited for a program: starts and ends in minutes.
  """

  def __init__(self, steps: list[dict]):
    """Reads the lines of training steps."""
    # Waits for programs count: whoever waits for the run waits for them.
    waited = [m['compile_wait_s'] / 60 for m in steps]
    self._steps = [0, *(m['step'] for m in steps)]
    self._minutes = [
      0.0,
      *(m['train_s'] / 60 + w for m, w in zip(steps, waited, strict=True)),
    ]
    self._waited = [0.0, *waited]
    self.compiling = [
      (start, start + after - before)
      for start, before, after in zip(
        self._minutes[:-1], self._waited[:-1], self._waited[1:], strict=True
      )
      if after > before
    ]

  def minutes(self, step: int | np.ndarray) -> np.ndarray | np.floating:
    """When so many steps were done; between two lines at an even pace."""
    return np.interp(step, self._steps, self._minutes)


def _draw_grids(
  axis: matplotlib.axes.Axes, clock: _Clock, schedule: GridSchedule
) -> None:
  """Frames, side and batch of every step relative to those of the schedule."""
  grids = [schedule(step) for step in range(schedule.total_steps)]
  volume = np.array([grid.T * grid.H * grid.W for grid in grids], float)
  batch = np.array([grid.batch for grid in grids], float)
  edges = clock.minutes(np.arange(len(grids) + 1))
  for values, label in (
    (volume / volume.max(), 'pixels per clip / full'),
    (batch / batch.min(), 'clips per step / least'),
  ):
    axis.stairs(values, edges, baseline=None, label=label)
  axis.set_yscale('log')
  axis.set_title('Grid: small grids carry big batches')
  axis.legend(loc='best', fontsize=8)


def _draw_rate(
  axis: matplotlib.axes.Axes, clock: _Clock, schedule: GridSchedule
) -> None:
  """The learning rate of every step."""
  rates = [schedule.lr(step) for step in range(schedule.total_steps)]
  edges = clock.minutes(np.arange(len(rates) + 1))
  axis.stairs(rates, edges, baseline=None, color='tab:purple')
  axis.set_yscale('log')
  axis.set(
    title='Learning rate',
    xlabel='training [min], without evaluation; grey: waits for a program',
  )


def _draw_loss(
  axis: matplotlib.axes.Axes,
  clock: _Clock,
  steps: list[dict],
  evals: list[dict],
  num_classes: int,
) -> None:
  """The loss, its mean over a twentieth of the run, and the accuracy."""
  minutes = clock.minutes(np.array([m['step'] for m in steps]))
  loss = np.array([m['loss'] for m in steps])
  axis.plot(minutes, loss, '.', ms=2, alpha=0.4)
  axis.plot(minutes, _smooth(loss), color='tab:blue')
  multi_label = any('eval_map' in m for m in evals)
  name, text = ('eval_map', 'mAP') if multi_label else ('eval_top1', 'top-1')
  axis.set(title=f'Training loss, validation {text}', ylabel='loss')
  axis.set_ylim(bottom=0)
  accuracy = axis.twinx()
  accuracy.plot(
    clock.minutes(np.array([m['step'] for m in evals])),
    [m[name] for m in evals],
    'o-',
    color='tab:red',
    clip_on=False,  # The last one lies on the edge.
  )
  if not multi_label and num_classes:
    # What guessing would have.
    accuracy.axhline(100 / num_classes, color='tab:red', ls=':', lw=1)
  accuracy.set_ylim(0, 100)
  accuracy.set_ylabel(
    f'{text} [%]' + ('' if multi_label else ', dotted: chance'), color='tab:red'
  )


def _smooth(values: np.ndarray) -> np.ndarray:
  """The running mean over a twentieth of the values, shorter at both ends."""
  half = len(values) // 40
  total = np.concatenate([[0.0], np.cumsum(values)])
  number = np.arange(len(values))
  start = np.maximum(number - half, 0)
  end = np.minimum(number + half + 1, len(values))
  return (total[end] - total[start]) / (end - start)
