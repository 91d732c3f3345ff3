"""What multigrid training asks of the data loader.

python -m experiments.tables.multigrid_io

Totals say what a run reads; ratios per step say how much faster the loader
must be where a step takes as long as the baseline's.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import sys

from experiments import costs, tabulate
from experiments.runs import recipes, settings
from mgjax.setup import grids


def make() -> list[tabulate.Table]:
  rows = []
  for recipe in recipes.SLOWFAST:
    base = None
    for mode in ('none', 'short', 'long', 'both'):
      config = recipe.config(mode)
      schedule, full = settings.schedule(config), grids.full_grid(config)
      run = costs.run_cost(schedule, recipe.model, config.model.num_classes)
      base = base or run
      fewer_steps = base.steps / run.steps
      ratio = lambda name, run=run, base=base: (
        getattr(run, name) / getattr(base, name)
      )
      rows.append(
        (
          recipe.data,
          mode,
          f'{run.clips / 1e6:.2f} M',
          f'{run.frames / 1e6:,.0f} M',
          *(f'{ratio(name):.2f}' for name in ('clips', 'frames', 'pixels')),
          f'{ratio("clips") * fewer_steps:.2f}',
          f'{ratio("frames") * fewer_steps:.2f}',
          f'{max(grid.batch for grid in schedule.grids) / full.batch:g}',
        )
      )
  columns = (
    'clips',
    'frames',
    'clips ratio',
    'frames ratio',
    'pixels ratio',
    'clips per step, ratio',
    'frames per step, ratio',
    'clips per step, peak ratio',
  )
  return [
    tabulate.Table(
      'multigrid_io',
      ('data set', 'grid.mode', *(f'{c} [computed]' for c in columns)),
      rows,
    )
  ]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
