"""What multigrid training saves: iterations, multiply-adds, measured time.

python -m experiments.tables.multigrid_savings

Three ratios to the baseline, in columns of their own, because they are not
the same thing. The abstract of the paper says 4.5 x in time; the arithmetic of
its default schedule gives 3.4 x fewer iterations, each of about the baseline's
multiply-adds. What is left, 1.3 x, must be time per multiply-add.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import pathlib
import sys

from experiments import costs, tabulate
from experiments.runs import recipes, settings
from experiments.tables import literature, measured
from mgjax.setup import grids

_TABLE = 'multigrid_savings'
_MODES = ('short', 'long', 'both')
_EPOCH_FACTORS = (1.0, 1.5, 2.0)
_COLUMNS = (
  'grid.mode',
  'epoch factor',
  'epochs [computed]',
  'iterations [computed]',
  'iteration ratio [computed]',
  'MAC ratio [computed]',
  'time ratio [published]',
  'source',
  'how sure',
  'time ratio, 95 % interval [measured]',
  'record',
)


@functools.cache
def _cost(recipe: recipes.Recipe, mode: str, epoch_factor: float = 1.5):
  config = recipe.config(mode, epoch_factor=epoch_factor)
  schedule = settings.schedule(config)
  return (
    schedule,
    config,
    costs.run_cost(schedule, recipe.model, config.model.num_classes),
  )


def ratios(
  recipe: recipes.Recipe, mode: str, epoch_factor: float
) -> tuple[float, float]:
  """How many times fewer iterations and multiply-adds a schedule takes."""
  *_, base = _cost(recipe, 'none')
  *_, run = _cost(recipe, mode, epoch_factor)
  return base.steps / run.steps, base.macs / run.macs


def savings() -> tabulate.Table:
  """SlowFast-R50 on Kinetics-400, every mode and epoch factor."""
  recipe = recipes.KINETICS
  schedule, baseline, base = _cost(recipe, 'none')
  rows = []

  def add(mode, epoch_factor, epochs, steps, macs):
    published = literature.cell(
      _TABLE,
      f'{recipe.data} SlowFast-R50 {mode} {epoch_factor}',
      'wall-clock speed-up',
    )
    ours = ('', '')
    if mode in _MODES:
      # Runs have the batch of the config file, whatever the paper's is.
      own = recipe._replace(overrides=())
      ours = measured.speedup_of(
        own.config(mode, epoch_factor=float(epoch_factor)), own.config('none')
      )
    rows.append(
      (
        mode,
        epoch_factor,
        f'{epochs:g}',
        f'{steps:,}',
        f'{base.steps / steps:.2f}',
        f'{base.macs / macs:.2f}',
        published.value,
        *literature.sources([published]),
        *ours,
      )
    )

  add('none', '', schedule.total_epochs, base.steps, base.macs)
  for mode in _MODES:
    for epoch_factor in _EPOCH_FACTORS:
      schedule, _, run = _cost(recipe, mode, epoch_factor)
      epochs = schedule.total_epochs
      add(mode, f'{epoch_factor:g}', epochs, run.steps, run.macs)
  # The baseline, cut to as many iterations as the default schedule takes.
  steps = _cost(recipe, 'both')[2].steps
  full = grids.full_grid(baseline)
  epochs = steps * full.batch / schedule.num_train
  add(
    'none, shortened',
    '',
    round(epochs),
    steps,
    steps * base.macs // base.steps,
  )
  return tabulate.Table(
    _TABLE,
    _COLUMNS,
    rows,
  )


def by_network() -> tabulate.Table:
  """Every network and data set: ratios at three epoch factors."""
  rows = []
  for recipe in recipes.ALL:
    for mode in _MODES:
      found = [ratios(recipe, mode, factor) for factor in _EPOCH_FACTORS]
      rows.append(
        (
          recipe.data,
          recipe.network,
          mode,
          *(f'{steps:.2f}' for steps, _ in found),
          *(f'{macs:.2f}' for _, macs in found),
        )
      )
  return tabulate.Table(
    'multigrid_savings_by_network',
    (
      'data set',
      'network',
      'grid.mode',
      *(f'iterations, factor {f:g} [computed]' for f in _EPOCH_FACTORS),
      *(f'MACs, factor {f:g} [computed]' for f in _EPOCH_FACTORS),
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  return [savings(), by_network()]


def picture(path: pathlib.Path) -> None:
  """MAC ratio against the epoch factor, and the published ratio of times."""
  factors = [1 + i / 10 for i in range(11)]

  def draw(axes):
    for mode in _MODES:
      values = [ratios(recipes.KINETICS, mode, factor) for factor in factors]
      (line,) = axes.plot(factors, [macs for _, macs in values], label=mode)
      axes.plot(
        factors, [steps for steps, _ in values], ':', color=line.get_color()
      )
    published = literature.cell(
      _TABLE, 'Kinetics-400 SlowFast-R50 both 1.5', 'wall-clock speed-up'
    )
    axes.plot(1.5, float(published.value), 'k*')
    axes.annotate(
      'time, published',
      (1.5, float(published.value)),
      xytext=(6, 0),
      textcoords='offset points',
    )
    axes.set(
      xlabel='epochs / epochs of the baseline',
      ylabel='times less than the baseline',
      title='SlowFast-R50, Kinetics-400: multiply-adds (dotted: iterations)',
      ylim=(0, None),
    )
    axes.legend(title='grid.mode')

  tabulate.save_picture(draw, path)


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
