"""Later methods as schedules of the same engine: what they save in compute.

python -m experiments.tables.successors

Each method's sequence of grids is a table of configs/schedules, here applied to
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
  table: str  # What grid.table names.
  overrides: tuple[str, ...] = ()
  model: str = 'slowfast'


# Grids with any batch that the methods' own rules give.
_NO_GROUPS = '--config.norm.group_clips=0'


def methods() -> list[_Method]:
  return [
    _Method('multigrid', 'multigrid'),
    _Method('progressive resizing (Composer)', 'progressive_resizing'),
    _Method(
      'progressive learning (EfficientNetV2-S)',
      'efficientnetv2',
      (
        '--config.augment.randaugment_ops=2',
        '--config.data.crop_px=300',
        '--config.data.jitter_px=(343, 429)',
      ),
    ),
    _Method(
      'two phases (V-JEPA 2)',
      'vjepa2',
      (
        '--config.data.num_frames=64',
        '--config.data.crop_px=384',
        '--config.data.jitter_px=(440, 550)',
      ),
    ),
    _Method('growing clips (TPT)', 'tpt'),
    _Method('two phases (FastDINOv2)', 'fastdinov2'),
    _Method('random sizes (Mix & Match)', 'mix_and_match', (_NO_GROUPS,)),
    _Method('random tokens (NaFlex)', 'naflex', (_NO_GROUPS,)),
    _Method(
      'frames ladder (bLVNet-TAM)',
      'blvnet_tam:lr=0.005',
      model='blvnet_tam_50',
    ),
  ]


def _config(method: _Method) -> ml_collections.ConfigDict:
  return cli.read_config(
    f'{_KINETICS}:grid=table,model={method.model}',
    (
      f"--config.grid.table=('{method.table}',)",
      # A table of a few epochs has no room for the recipe's warm-up.
      '--config.optim.warmup_epochs=0.0',
      *method.overrides,
    ),
  )


def make() -> list[tabulate.Table]:
  rows = []
  for method in methods():
    config = _config(method)
    num_classes = config.model.num_classes
    schedule, full = settings.schedule(config), grids.full_grid(config)
    run = costs.run_cost(schedule, method.model, num_classes)
    # What the table stands for, on the full grid.
    epochs = schedule.baseline_epochs
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
        f'`{method.table}`',
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
        'grid.table',
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
        for grid, share in zip(phase.cycle, phase.shares, strict=True):
          clips[grid[:3]] += grid.batch * share
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
