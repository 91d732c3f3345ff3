"""Every phase of the default schedules, with steps and learning rates.

python -m experiments.tables.multigrid_schedules
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import sys

import numpy as np

from experiments import tabulate
from experiments.runs import recipes, settings
from experiments.tables import literature
from mgjax.planning import plan_text
from mgjax.setup import grids

_TABLE = 'multigrid_schedules'


def schedules() -> tabulate.Table:
  """The phases of the three data sets at epoch factor 1.5."""
  rows = []
  for recipe in recipes.SLOWFAST:
    config = recipe.config('both')
    full, schedule = grids.full_grid(config), settings.schedule(config)
    start = 0
    published = literature.cell(_TABLE, f'{recipe.data} both 1.5', 'end epochs')
    ends = published.value.split(', ') if published.value else []
    for i, phase in enumerate(schedule.phases):
      rates = []  # After the linear warm-up, where the phase has one.
      for k in range(start * 4, int(phase.end_epoch * 4)):
        if k / 4 >= config.optim.warmup_epochs:
          rates.append(f'{schedule.lr_at_epoch(k / 4):.3g}')
      base = phase.base
      cell = published if i < len(ends) else literature.BLANK
      rows.append(
        (
          recipe.data,
          str(phase.lr_stage),
          plan_text.shape_text(base._asdict(), full._asdict()),
          f'{base.batch} x {base.T} x {base.H}²',
          f'{start} - {phase.end_epoch}',
          ends[i] if i < len(ends) else '',
          f'{phase.end_step - schedule.start_step(i):,}',
          f'{phase.lr_scale:g}',
          ' then '.join(dict.fromkeys(rates)),
          *literature.sources([cell]),
        )
      )
      start = phase.end_epoch
  return tabulate.Table(
    _TABLE,
    (
      'data set',
      'LR stage',
      'long cycle',
      'base grid [computed]',
      'epochs [computed]',
      'end epoch [published]',
      'steps [computed]',
      'LR x [computed]',
      'learning rate after warm-up [computed]',
      'source',
      'how sure',
    ),
    rows,
  )


def end_epochs() -> tabulate.Table:
  """Where the phases end and the learning rate changes, for every mode."""
  rows = []
  for recipe in recipes.SLOWFAST:
    for mode in ('none', 'short', 'long', 'both'):
      config = recipe.config(mode)
      schedule = settings.schedule(config)
      total = int(schedule.total_epochs)
      # Whole epochs behind the warm-up; the rates are constant between.
      first = int(config.optim.warmup_epochs) + 1
      changes = [
        str(epoch)
        for epoch in range(first, total)
        if schedule.lr_at_epoch(epoch) != schedule.lr_at_epoch(epoch - 0.25)
        and epoch - 0.25 >= config.optim.warmup_epochs
      ]
      rows.append(
        (
          recipe.data,
          mode,
          ', '.join(f'{phase.end_epoch:g}' for phase in schedule.phases),
          ', '.join(changes),
          f'{schedule.total_steps:,}',
        )
      )
  return tabulate.Table(
    'multigrid_end_epochs',
    (
      'data set',
      'grid.mode',
      'end epochs of the phases [computed]',
      'epochs at which the learning rate changes [computed]',
      'steps [computed]',
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  return [schedules(), end_epochs()]


def picture(path: pathlib.Path) -> None:
  """Learning rates over epochs, a panel for each data set."""

  def draw(panels):
    for axes, recipe in zip(panels, recipes.SLOWFAST, strict=True):
      for mode in ('none', 'both'):
        config = recipe.config(mode)
        schedule = settings.schedule(config)
        epochs = np.linspace(0, schedule.total_epochs, 2000, endpoint=False)
        # Data sets have other numbers of epochs, and panels one axis.
        axes.plot(
          epochs / schedule.total_epochs,
          [schedule.lr_at_epoch(epoch) for epoch in epochs],
          label=f'{mode}, {schedule.total_epochs:g} epochs',
        )
      axes.set_title(recipe.data, loc='left')
      axes.set_yscale('log')
      axes.set_ylabel('learning rate')
      axes.legend(frameon=False, title='grid.mode')
    panels[-1].set_xlabel('share of all epochs')

  tabulate.save_picture(draw, path, panels=len(recipes.SLOWFAST))


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
