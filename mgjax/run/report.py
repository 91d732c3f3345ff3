"""Draws report.png, the picture of a run, from the files of the run."""

import matplotlib
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
  minutes = np.array([m['train_s'] for m in steps]) / 60

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
    _draw_grids(axes['grid'], minutes, steps, schedule)
    _draw_loss(axes['loss'], minutes, steps, evals)
    axes['lr'].semilogy(minutes, [m['lr'] for m in steps], color='tab:purple')
    axes['lr'].set(
      title='Learning rate',
      xlabel='training time [min], without compilation and evaluation',
    )
    eval_picture.draw_confusion(axes['confusion'], result)
    eval_picture.draw_classes(axes['classes'], result)
    for name in ('grid', 'loss', 'lr'):
      axes[name].set_xlim(0, minutes.max() if len(minutes) else 1)
      axes[name].grid(alpha=0.3)
    fig.suptitle(
      f'{pictures.printable(workdir.name)}: {results.describe(result)} '
      f'after {schedule.total_steps} steps, {schedule.total_clips} clips',
      **pictures.PLAIN,
    )
    return pictures.save(fig, workdir / 'report.png')


def _draw_grids(axis, minutes, steps, schedule) -> None:
  """Frames, side and batch relative to the largest of the schedule."""
  volume = np.array([m['T'] * m['H'] * m['W'] for m in steps], float)
  largest = max(g.T * g.H * g.W for g in schedule.grids)
  batch = np.array([m['batch'] for m in steps], float)
  axis.semilogy(
    minutes, volume / largest, '.', ms=3, label='pixels per clip / full'
  )
  axis.semilogy(
    minutes,
    batch / min(g.batch for g in schedule.grids),
    '.',
    ms=3,
    label='clips per step / least',
  )
  axis.set_title('Grid: small grids carry big batches')
  axis.legend(loc='best', fontsize=8)


def _draw_loss(axis, minutes, steps, evals) -> None:
  axis.plot(minutes, [m['loss'] for m in steps], '.', ms=2, alpha=0.5)
  multi_label = any('eval_map' in m for m in evals)
  name, text = ('eval_map', 'mAP') if multi_label else ('eval_top1', 'top-1')
  axis.set(title=f'Training loss, validation {text}', ylabel='loss')
  axis.set_ylim(bottom=0)
  accuracy = axis.twinx()
  accuracy.plot(
    [m['train_s'] / 60 for m in evals],
    [m[name] for m in evals],
    'o-',
    color='tab:red',
  )
  accuracy.set_ylim(0, 100)
  accuracy.set_ylabel(f'{text} [%]', color='tab:red')
