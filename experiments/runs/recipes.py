"""The recipes of the multigrid paper's data sets, as the tables use them."""

import functools
from typing import NamedTuple

import ml_collections

from mgjax import cli


class Recipe(NamedTuple):
  """A data set and a network."""

  data: str  # In words.
  network: str  # In words.
  file: str  # Of the config.
  model: str  # Its argument `model`, by which costs.py knows it too.
  overrides: tuple[str, ...] = ()

  def config(
    self, mode: str, *, epoch_factor: float = 1.5
  ) -> ml_collections.ConfigDict:
    """The config with this grid.mode and grid.epoch_factor; not to change."""
    return _read(
      f'configs/{self.file}.py:model={self.model},grid={mode}',
      (*self.overrides, f'--config.grid.epoch_factor={epoch_factor}'),
    )


# The tables ask for each of them several times.
_read = functools.cache(cli.read_config)


_LONG_CLIPS = ('--config.data.num_frames=32', '--config.data.stride_frames=2')

# The paper's Kinetics batch and rate: 0.1 at 64 clips, scaled.
KINETICS = Recipe(
  'Kinetics-400',
  'SlowFast-R50 8x8',
  'kinetics400',
  'slowfast',
  (
    '--config.data.batch_size=512',
    '--config.optim.base_lr=0.8',
    '--config.optim.warmup_lr=0.08',
  ),
)
SSV2 = Recipe('SSv2', 'SlowFast-R50 16x8', 'ssv2', 'slowfast')
CHARADES = Recipe('Charades', 'SlowFast-R50 16x8', 'charades', 'slowfast')

SLOWFAST = (KINETICS, SSV2, CHARADES)
ALL = (
  KINETICS,
  KINETICS._replace(network='I3D-R50, 8 frames', model='i3d'),
  KINETICS._replace(
    network='I3D-R50, 32 frames',
    model='i3d',
    overrides=(*KINETICS.overrides, *_LONG_CLIPS),
  ),
  KINETICS._replace(network='I3D-R50-NL, 8 frames', model='i3d_nln'),
  KINETICS._replace(
    network='I3D-R50-NL, 32 frames',
    model='i3d_nln',
    overrides=(*KINETICS.overrides, *_LONG_CLIPS),
  ),
  SSV2,
  SSV2._replace(network='I3D-R50, 16 frames', model='i3d'),
  SSV2._replace(network='I3D-R50-NL, 16 frames', model='i3d_nln'),
  CHARADES,
  CHARADES._replace(network='I3D-R50, 16 frames', model='i3d'),
  CHARADES._replace(network='I3D-R50-NL, 16 frames', model='i3d_nln'),
)
