"""Later methods as schedules of the same engine: what they save in compute.

python -m experiments.tables.successors

Each method's sequence of grids is a value of config.grid, here applied to
SlowFast-R50 (the ladder: to bLVNet-TAM-50), beside the savings that its
authors report for their own networks. Only the grids are reproduced: none of
the methods' other parts, and none of their accuracies.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import collections
import math
import pathlib
import sys
from typing import NamedTuple

import ml_collections

from experiments import costs, tabulate
from experiments.runs import settings
from experiments.tables import literature
from mgjax import cli
from mgjax.setup import grids

_TABLE = 'successors'
_KINETICS = 'configs/kinetics400.py'


class _Method(NamedTuple):
  name: str
  here: str  # What is done here, in words.
  config: str
  overrides: tuple[str, ...] = ()
  model: str = 'slowfast'


def _growing_sides(start: float, share: float, num_stages: int) -> tuple:
  """Rows of grid.progressive: sides grow in equal stages, then stay full."""
  rows = []
  for i in range(num_stages):
    side = start + (1 - start) * (i + 0.5) / num_stages
    rows.append((share / num_stages, 1, side))
  return (*rows, (1 - share, 1, 1))


def methods() -> list[_Method]:
  progressive = f'{_KINETICS}:grid=progressive'
  one_epoch_each = '--config.grid.epoch_factor=1.0'
  # Steps, not epochs, are known of V-JEPA 2; its batch does not change.
  late = 12 / 252
  return [
    _Method('multigrid', 'grid=both', f'{_KINETICS}:grid=both'),
    _Method(
      'progressive resizing (Composer)',
      'progressive, sixteen stages, then full',
      progressive,
      (
        one_epoch_each,
        f'--config.grid.progressive={_growing_sides(0.5, 0.8, 16)}',
      ),
    ),
    _Method(
      'progressive learning (EfficientNetV2-S)',
      'progressive, four stages; regularisation stays',
      progressive,
      (
        one_epoch_each,
        '--config.grid.progressive='
        f'{tuple((0.25, 1, side / 300) for side in (171, 214, 257, 300))}',
      ),
    ),
    _Method(
      'two phases (V-JEPA 2)',
      'progressive, 16 x 256² then 64 x 384²',
      progressive,
      (
        one_epoch_each,
        '--config.data.num_frames=64',
        '--config.data.crop_px=384',
        '--config.data.jitter_px=(440, 550)',
        f'--config.grid.progressive={((1 - late, 0.25, 2 / 3), (late, 1, 1))}',
      ),
    ),
    _Method(
      'two phases (FastDINOv2)',
      'progressive, 112² then 224²',
      progressive,
      (
        one_epoch_each,
        f'--config.grid.progressive={((0.75, 1, 0.5), (0.25, 1, 1))}',
      ),
    ),
    _Method(
      'random sizes (Mix & Match)',
      'short, 112², 158², 224² in turn instead of at random',
      f'{_KINETICS}:grid=short',
      (one_epoch_each,),
    ),
    _Method(
      'frames ladder (bLVNet-TAM)',
      'ladder',
      f'{_KINETICS}:grid=ladder,model=blvnet_tam_50',
      model='blvnet_tam_50',
    ),
  ]


def _config(method: _Method) -> ml_collections.ConfigDict:
  return cli.read_config(method.config, method.overrides)


def make() -> list[tabulate.Table]:
  rows = []
  for method in methods():
    config = _config(method)
    num_classes = config.model.num_classes
    schedule, full = settings.schedule(config), grids.full_grid(config)
    run = costs.run_cost(schedule, method.model, num_classes)
    # The baseline: as many epochs on the full grid, multigrid's own excepted.
    epochs = schedule.total_epochs
    if config.grid.mode == 'both':
      epochs = config.optim.total_epochs
    steps = math.ceil(epochs * schedule.num_train / full.batch)
    clips = steps * full.batch
    full_macs = costs.cost(method.model, num_classes, *full[:3]).macs
    published = {
      column: literature.cell(_TABLE, method.name, column)
      for column in ('recipe', 'compute', 'time')
    }
    rows.append(
      (
        method.name,
        published['recipe'].value,
        method.here,
        str(len(schedule.grids)),
        f'{steps / run.steps:.2f}',
        f'{clips * math.prod(full[:3]) / run.pixels:.2f}',
        f'{clips * full_macs / run.macs:.2f}',
        published['compute'].value,
        published['time'].value,
        *literature.sources(published.values()),
      )
    )
  return [
    tabulate.Table(
      _TABLE,
      (
        'method',
        'recipe [published]',
        'schedule here',
        'programs [computed]',
        'step ratio [computed]',
        'T x H x W ratio [computed]',
        'MAC ratio [computed]',
        'compute ratio [published]',
        'time ratio [published]',
        'source',
        'how sure',
      ),
      rows,
    )
  ]


def picture(path: pathlib.Path) -> None:
  """Size of clips over training, a panel for each method."""
  found = methods()

  def draw(panels):
    for axes, method in zip(panels, found, strict=True):
      config = _config(method)
      schedule, full = settings.schedule(config), grids.full_grid(config)
      start = 0
      for phase in schedule.phases:
        clips = collections.Counter()
        for grid in phase.cycle:
          clips[grid[:3]] += grid.batch
        for size, number in clips.items():
          axes.hlines(
            math.prod(size) / math.prod(full[:3]),
            start / schedule.total_epochs,
            phase.end_epoch / schedule.total_epochs,
            linewidth=4,
            alpha=number / clips.total(),
          )
        start = phase.end_epoch
      axes.set_title(method.name, loc='left')
      axes.set(ylim=(0, 1.1), ylabel='size of a clip')
    panels[-1].set_xlabel(
      'share of all epochs (paler: a smaller part of the clips)'
    )

  tabulate.save_picture(draw, path, panels=len(found))


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
