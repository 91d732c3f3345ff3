"""What one clip costs each network, and what whole schedules cost.

Counting a network's multiply-adds takes a second, and the tables need more
than a hundred counts, so they are kept in costs.csv. `make tables` counts
what is missing; a test counts some of them afresh, another one all.
"""

import csv
import functools
import pathlib
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from mgjax.config import fields
from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.planning import plan
from mgjax.recipes import published, segments, transformers

if TYPE_CHECKING:  # Counts are at hand, and JAX takes a second to import.
  import flax.linen as nn

FILE = pathlib.Path(__file__).parent / 'costs.csv'

# Fields of config.model of networks that no config names.
_NETWORKS = {
  'blvnet_50': {'name': 'blvnet_tam', 'depth': 50, 'tam_frames': 0},
  'blvnet_101': {'name': 'blvnet_tam', 'depth': 101, 'tam_frames': 0},
}


class Key(NamedTuple):
  """A network, and the shape of a clip."""

  model: str  # As the configs name it, or a name of _NETWORKS.
  num_classes: int
  T: int
  H: int
  W: int


class Cost(NamedTuple):
  """Of the forward pass of one clip, and of the network."""

  macs: int
  conv_outputs: int
  parameters: int


def build(model: str, num_classes: int) -> 'nn.Module':
  """Makes the network."""
  from mgjax.setup import network

  config = fields.base()
  if model in _NETWORKS:
    config.model.update(_NETWORKS[model])
  elif model in segments.MODELS:
    segments.use(config, model)
  elif model in transformers.NETWORKS:
    transformers.set_network(config, model)
  else:
    published.set_network(config, model, frames='8x8')
  config.model.num_classes = num_classes
  return network.model(config)


def count(key: Key) -> Cost:
  """Counts, in about a second."""
  from mgjax.planning import macs

  forward = macs.forward_cost(
    build(key.model, key.num_classes), T=key.T, H=key.H, W=key.W
  )
  return Cost(*forward, _parameters(key.model, key.num_classes))


@functools.cache
def _parameters(model: str, num_classes: int) -> int:
  import jax
  import jax.numpy as jnp

  shapes = jax.eval_shape(
    build(model, num_classes).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 8, 32, 32, 3), jnp.float32),
  )
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


@functools.cache
def known() -> dict[Key, Cost]:
  """Contents of costs.csv and what has been counted since."""
  if not FILE.exists():
    return {}
  with FILE.open(newline='') as file:
    return {
      Key(line[0], *map(int, line[1:5])): Cost(*map(int, line[5:]))
      for line in list(csv.reader(file))[1:]
    }


def cost(model: str, num_classes: int, T: int, H: int, W: int) -> Cost:
  """The cost of one clip, from costs.csv where it is there."""
  key = Key(model, num_classes, T, H, W)
  if key not in known():
    known()[key] = count(key)
  return known()[key]


def save() -> None:
  """Writes costs.csv with what has been counted."""
  with FILE.open('w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(Key._fields + Cost._fields)
    writer.writerows((*key, *known()[key]) for key in sorted(known()))


class RunCost(NamedTuple):
  """Of all forward passes of a training run."""

  steps: int
  clips: int
  frames: int
  pixels: int
  macs: int


def clips_by_grid(schedule: GridSchedule) -> dict[Grid, int]:
  """How many clips a run trains on at each grid."""
  clips: Counter[Grid] = Counter()
  for *_, used in plan.uses(schedule):
    for grid, num_clips in used:
      clips[grid] += num_clips
  return {grid: clips[grid] for grid in schedule.grids}


def run_cost(schedule: GridSchedule, model: str, num_classes: int) -> RunCost:
  """What a schedule costs with a network."""
  clips = clips_by_grid(schedule)
  return RunCost(
    steps=schedule.total_steps,
    clips=sum(clips.values()),
    frames=sum(n * grid.T for grid, n in clips.items()),
    pixels=sum(n * grid.T * grid.H * grid.W for grid, n in clips.items()),
    macs=sum(
      n * cost(model, num_classes, *grid[:3]).macs for grid, n in clips.items()
    ),
  )
