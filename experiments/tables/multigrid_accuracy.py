"""The demo's model with and without multigrid: accuracy and time.

python -m experiments.tables.multigrid_accuracy
python -m experiments.runs.launch --table=moving_digits --seeds=3 --run=local
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import math
import pathlib
import sys
from typing import Any

from experiments import intervals, tabulate
from experiments.runs import generated, planned, settings
from experiments.tables import measured
from mgjax import cli
from mgjax.setup import clip_costs, grids

TABLE = 'moving_digits'
_COLORS = {'none': '#555555', 'both': '#c8501e'}  # By grid.mode.


def headline() -> str:
  """What the records of the baseline and of the paper's multigrid say.

  Returns:
    A paragraph: the ratio of mean training times, and the mean difference of
    top-1 over pairs of seeds with its 95 % interval.
  """
  baseline, multigrid = (
    measured.result(run) for run in generated.MOVING_DIGITS[:2]
  )
  if not baseline or not multigrid:
    return 'No records yet.'
  change, low, high = intervals.of_paired_difference(
    multigrid.top1, baseline.top1
  )
  faster = baseline.mean_train_s / multigrid.mean_train_s
  direction = 'lower' if change < 0 else 'higher'
  return (
    '**What was measured:** on generated videos, a small SlowFast took '
    f'{faster:.1f} times less training time with\n'
    'multigrid than without, on two CPU cores with compiled programs in the '
    f'cache. Its top-1 was {abs(change):.2f} points\n'
    f'{direction} over {len(multigrid.top1)} pairs of seeds (95 % interval '
    f'{low:+.2f} to {high:+.2f}). So equal accuracy is not shown.'
  )


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, generated.MOVING_DIGITS)]


def _draw_sizes(axes: Any) -> None:
  """Sizes of the clips over the multiply-adds of a training."""
  baseline, multigrid = generated.MOVING_DIGITS[:2]
  total = planned.training_gmacs(baseline)
  for run in (baseline, multigrid):
    config = cli.read_config(run.config, run.overrides)
    schedule, full = settings.schedule(config), grids.full_grid(config)
    gmacs = clip_costs.gmacs_per_clip(config, schedule.grids)
    color, x = _COLORS[run.grid], 0.0
    start_step = 0
    for phase in schedule.phases:
      num_steps = phase.end_step - start_step
      costs = [3 * grid.batch * gmacs[grid] for grid in phase.cycle]
      end = x + 100 * num_steps * sum(costs) / len(costs) / total
      for grid in dict.fromkeys(phase.cycle):
        size = 100 * math.prod(grid[:3]) / math.prod(full[:3])
        axes.hlines(size, x, end, color=color, linewidth=5)
      x, start_step = end, phase.end_step
  axes.set_xlim(0, 101)
  axes.set_ylim(0, 108)
  axes.set_xlabel("multiply-adds, % of the baseline's")
  axes.set_ylabel('size of a clip, % of the full one')
  axes.text(65, 95, 'baseline', color=_COLORS['none'], va='top')
  axes.text(35, 55, 'multigrid', color=_COLORS['both'])


def _draw_accuracy(axes: Any) -> None:
  """Top-1 against seconds of training, a point for each seed."""
  for run in generated.MOVING_DIGITS[:2]:
    found = measured.result(run)
    if found:
      axes.plot(found.train_s, found.top1, 'o', color=_COLORS[run.grid])
      axes.annotate(
        {'none': 'baseline', 'both': 'multigrid'}[run.grid],
        (found.mean_train_s, found.mean),
        (0, -40),
        textcoords='offset points',
        ha='center',
        color=_COLORS[run.grid],
      )
  axes.set_xlim(0, None)
  axes.set_ylim(94, 100)
  axes.set_xlabel('training on 2 CPU cores, s')
  axes.set_ylabel('top-1, %')


def picture(path: pathlib.Path) -> None:
  """The README's picture: grids over training, accuracy against seconds.

  Args:
    path: Of the picture. An SVG describes itself by `headline`, so that a
      picture of other records can be told.
  """

  def draw(panels):
    _draw_sizes(panels[0])
    _draw_accuracy(panels[1])

  tabulate.save_picture(
    draw, path, panels=2, beside=True, description=headline()
  )


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
