"""Compiles training steps for several devices; prints what crosses as JSON.

Arguments: the target ('cpu', TPUs such as 'v5e:2x4' or GPUs such as 'h100x8'),
then the steps, each as JSON with options of `describe`. It runs in a process of
its own: the number of CPU devices is fixed when JAX starts.
"""

import collections
import dataclasses
import json
import math
import pathlib
import re
import sys
from collections.abc import Iterator

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from configs import kinetics400, moving_digits
from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.hosts import parallel
from mgjax.planning import wall_time
from mgjax.setup import network, programs
from mgjax.step.step_cache import Program

KINDS = (
  *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
  'collective-permute',
)
# Descriptions of GPUs, by name.
GPUS = pathlib.Path('mgjax/planning/gpus')
# These are for what is looked at: no program here runs.
FAST = {
  'cpu': {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  }
}


def make_mesh(target: str) -> Mesh:
  if target == 'cpu':
    return parallel.make_mesh()
  if found := re.fullmatch(r'([ah]\d+)x(\d)', target):
    found = topologies.get_topology_desc(
      platform='cuda',
      topology_name='',
      target_config=(GPUS / f'{found[1]}.txtpb').read_text(),
      topology=f'1x1x{found[2]}',
    )
  else:
    found = topologies.get_topology_desc(platform='tpu', topology_name=target)
  return Mesh(
    np.array(found.devices).reshape(-1),
    (parallel.BATCH_AXIS,),
    axis_types=(AxisType.Auto,),
  )


def schedule_of(grid: Grid, group_clips: int) -> GridSchedule:
  """A step of that grid."""
  made = wall_time.baseline(grid, steps=1, epochs=1, num_train=grid.batch)
  groups = grid.batch // (group_clips or grid.batch)
  phase = dataclasses.replace(made.phases[0], bn_groups=(groups,))
  return dataclasses.replace(made, phases=(phase,))


def describe(
  mesh: Mesh,
  target: str,
  *,
  name: str = 'slow',
  recipe: str = '',
  grid: tuple[int, int, int, int] = (4, 16, 16, 64),
  group_clips: int = 8,
  kind: str = 'train',
  **settings,
) -> dict:
  """What a step's program says.

  Args:
    mesh: Its devices.
    target: What they are.
    name: The network, small.
    recipe: Arguments of configs/kinetics400.py instead, whose network is large.
    grid: Frames, height, width, clips.
    group_clips: Clips of a batch-norm group; 0: all.
    kind: 'train' or 'stats'.
    **settings: Fields of the config, such as {'optim.reduce_dtype': ...}.
  """
  if recipe:
    config = kinetics400.get_config(recipe)
  else:
    config = moving_digits.get_config(f'size=tiny,model={name}')
    config.model.num_classes = 4
  for path, value in settings.items():
    room, field = path.split('.')
    config[room][field] = value
  grid = Grid(*grid)
  lowered = programs.lower_programs(
    config,
    schedule_of(grid, group_clips),
    network.compose(config, mesh),
    mesh,
    0,
    {1},
  )[Program(kind, grid)]()
  text = lowered.compile(compiler_options=FAST.get(target)).as_text()
  return {
    'asked': dict(asked(lowered.as_text())),
    **collectives(text),
    'float32': largest_written(text, 'f32'),
  }


def asked(text: str) -> collections.Counter:
  """Types in which the program itself, before XLA, asks to sum over devices."""
  return collections.Counter(
    re.search(r'x?([a-z]+\d+)>', line)[1]
    for line in re.findall(
      r'stablehlo\.all_reduce.*?\}\) : (.*?)\n', text, re.DOTALL
    )
  )


def collectives(text: str) -> dict:
  """Counts of compiled collectives by kind, and of what they move by type."""
  counts, types = collections.Counter(), collections.Counter()
  for body, is_fused in computations(text):
    # A TPU's program has one in as many pieces as it does other things
    # meanwhile, each in a fusion; one of them starts it.
    if is_fused and '"AsyncCollectiveStart"' not in body:
      continue
    for shapes, kind in re.findall(
      rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(', body
    ):
      counts[kind] += 1
      types.update(re.findall(r'(\w+)\[', shapes))
  return {'counts': dict(counts), 'types': dict(types)}


def largest_written(text: str, dtype: str) -> int:
  """Numbers of the largest array of a type that the program writes to memory.

  What stands inside of a fusion is computed and used up in registers.
  """
  return max(
    (
      math.prod(map(int, shape.split(',')))
      for body, is_fused in computations(text)
      if not is_fused
      # Behind the result stands the operation, such as ' fusion('.
      for result in re.findall(r' = (.*?) [a-z][\w.-]*\(', body)
      for shape in re.findall(rf'{dtype}\[([\d,]+)\]', result)
    ),
    default=0,
  )


def computations(text: str) -> Iterator[tuple[str, bool]]:
  """Those of a compiled program, and whether each is the inside of a fusion."""
  inside = set(re.findall(r' fusion\(.*calls=%?([\w.-]+)', text))
  for found in re.finditer(r'^(?:ENTRY )?%?([\w.-]+) .*\{\n', text, re.M):
    yield text[found.end() : text.find('\n}', found.end())], found[1] in inside


def main(target: str, *steps: str) -> None:
  mesh = make_mesh(target)
  print(
    json.dumps([describe(mesh, target, **json.loads(step)) for step in steps])
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
