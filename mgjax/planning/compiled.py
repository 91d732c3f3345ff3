"""Bytes that the compiler gives to the steps of a run (plan --compile)."""

import sys

import ml_collections

from mgjax.cpu import compilation
from mgjax.errors import ConfigError
from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.hosts import parallel
from mgjax.setup import network, programs


def step_bytes(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  *,
  num_devices: int,
) -> dict[Grid, int]:
  """Compiles the step of every grid; returns the bytes that XLA gives it.

  These are bytes per device of this machine's kind: of the state, one batch
  and everything in between.

  Raises:
    ConfigError: There are fewer devices than asked for.
  """
  num_found = len(parallel.find_devices())
  if num_devices > num_found:
    raise ConfigError(
      f'--num_devices={num_devices}, but --compile finds {num_found}; use at '
      'most that.'
    )
  mesh = parallel.make_mesh(num_devices)
  lowered = programs.lower_programs(
    config, schedule, network.compose(config, mesh), mesh, 0, set()
  )
  sizes = {}
  for program, lower in lowered.items():
    print(f'compiling {program}', file=sys.stderr)
    found = compilation.compile_program(lower()).memory_analysis()
    sizes[program.grid] = (
      found.argument_size_in_bytes
      + found.output_size_in_bytes
      + found.temp_size_in_bytes
      - found.alias_size_in_bytes
    )
  return sizes
