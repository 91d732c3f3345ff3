"""What the programs of a run take: bytes and seconds (plan --compile)."""

import dataclasses
import functools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from mgjax import files
from mgjax.errors import ConfigError
from mgjax.grids.schedule import GridSchedule, Phase
from mgjax.hosts import parallel
from mgjax.planning import (
  compiler_facts,
  made_up,
  measured,
  wall_time,
)
from mgjax.planning.targets import Target
from mgjax.setup import augmentation, clip_costs, data, grids, network, programs
from mgjax.setup import wall_time as wall_time_setup
from mgjax.setup.network import Trainable
from mgjax.step import compilation, step_cache
from mgjax.step import programs as step_programs
from mgjax.step.step_cache import Program, StepCache

_RUNS = 4  # Of each program; the first does not count.
_LONGEST_S = 60.0  # Runs of a program end where they took so long together.


def measure(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  *,
  num_devices: int,
  device_bytes: int = 0,
) -> list[dict[str, Any]]:
  """Compiles and times every program of a run, and of its baseline.

  The seconds are kept for plans (planning/measured.py), and the programs in the
  cache on disk. What does not fit the devices is compiled, and not run.

  Args:
    config: The settings.
    schedule: The run's schedule.
    num_devices: Devices that share each batch.
    device_bytes: Memory of each; 0: what they say.

  Returns:
    What `compiler_facts.describe` says of each program of the run.

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
  step_cache.use_persistent_cache()
  composed = network.compose(config, mesh)
  lowered = lower_all(config, schedule, composed, mesh, with_baseline=True)
  cache = _compile(lowered, parallel.platform(mesh))
  remember = functools.partial(wall_time_setup.remember, config, schedule, mesh)
  # At once: to run them may take longer than the user waits.
  remember(measured.Collected(), cache)
  executables = {program: cache[program] for program in lowered}
  remember(_time_all(config, schedule, composed, mesh, executables), cache)
  if new := {p: lowered[p] for p in lowered if p not in cache.from_disk}:
    jax.clear_caches()  # A run traces them before it reads them from the disk.
    remember(
      measured.Collected(), _compile(new, parallel.platform(mesh), quiet=True)
    )
  target = Target(
    name='this machine',
    platform=parallel.platform(mesh),
    devices=tuple(mesh.devices.flat),
    device_bytes=device_bytes or parallel.device_bytes(0.0),
    rates=None,
  )
  gmacs = clip_costs.gmacs_per_clip(config, {p.grid for p in lowered})
  return [
    compiler_facts.describe(
      program,
      compiler_facts.of(executables[program], cache.compile_s[program]),
      gmacs_per_clip=gmacs[program.grid],
      dtype=config.model.dtype,
      target=target,
    )
    for program in lowered
    if program.kind != 'train' or program.grid in schedule.grids
  ]


def lower_all(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  composed: Trainable,
  mesh: jax.sharding.Mesh,
  *,
  with_baseline: bool,
) -> dict[Program, Callable[[], jax.stages.Lowered]]:
  """Functions that lower the programs of a run, in the order of first use.

  Args:
    config: The settings.
    schedule: The run's schedule.
    composed: Its network, optimizer and state.
    mesh: Its devices.
    with_baseline: Whether the step of its baseline, of the full grid, is one.
  """
  phases = schedule.phases
  if with_baseline:
    phases = (*phases, _full_phase(config, schedule))
  return programs.lower_programs(
    config,
    # A phase more, and not another schedule: strengths of augmentation are
    # those of the run.
    dataclasses.replace(schedule, phases=phases),
    composed,
    mesh,
    0,
    step_programs.evaluation_steps(schedule, config.eval.every),
    class_weights=data.class_weights(config),
  )


def _full_phase(
  config: ml_collections.ConfigDict, schedule: GridSchedule
) -> Phase:
  """One step of the full grid behind a schedule."""
  full = wall_time.baseline(
    grids.full_grid(config), steps=1, epochs=0, num_train=schedule.num_train
  ).phases[0]
  last, batch = schedule.total_steps, full.base.batch
  # Batch-norm groups of the run: on several devices a program depends on them.
  groups = batch // math.gcd(batch, config.norm.group_clips)
  return dataclasses.replace(
    full, start_step=last, end_step=last + 1, bn_groups=(groups,)
  )


def _compile(
  lowered: Mapping[Program, Callable[[], jax.stages.Lowered]],
  platform: str,
  *,
  quiet: bool = False,
) -> StepCache[Program]:
  """Compiles programs one after the other; says which unless it is quiet."""
  with StepCache(lowered, platform=platform) as cache:
    for program in lowered:
      if not quiet:
        print(f'compiling {program}', file=sys.stderr)
      cache[program]  # Waits.
  return cache


def _time_all(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  composed: Trainable,
  mesh: jax.sharding.Mesh,
  executables: Mapping[Program, Any],
) -> measured.Collected:
  """Runs each program a few times on made-up clips."""
  found = measured.Collected()
  state = made_up.state(composed.abstract, mesh)
  # Micro-batches divide the groups. A rate of 0 leaves the weights as they are.
  lr, groups = step_programs.put_scalars(mesh, 0.0, config.train.micro_batches)
  key = parallel.make_key(mesh, 0)
  strengths = augmentation.put_strengths(config, schedule, mesh, 0)
  weighted = config.model.num_classes if config.optim.loss == 'sigmoid' else 0
  for program, executable in executables.items():
    if (needed := compilation.needed_bytes(executable)) > (
      room := _free_bytes(mesh)
    ):
      print(
        f'not measuring {program}: it takes {files.size_text(needed)}, and '
        f'{files.size_text(room)} are free',
        file=sys.stderr,
      )
      continue
    print(f'measuring {program}', file=sys.stderr)
    spec = step_programs.batch_spec(
      program.grid, mesh, weighted_classes=weighted
    )
    batch = made_up.batch(spec, mesh, config.model.num_classes)
    spent = 0.0
    for _ in range(_RUNS):
      start = time.perf_counter()
      if program.kind == 'train':
        # It takes the memory of the old state.
        state, result = executable(state, batch, lr, groups, key, strengths)
      elif program.kind == 'stats':
        result = executable(state, batch, groups, key)
      else:
        result = executable(
          state.eval_params, state.batch_stats, batch['video']
        )
      jax.block_until_ready((state, result))
      seconds = time.perf_counter() - start
      found.add(program, seconds)
      spent += seconds
      if spent > _LONGEST_S:
        break
  return found


def _free_bytes(mesh: jax.sharding.Mesh) -> int:
  """Bytes that a program may take of each device."""
  if device_bytes := parallel.device_bytes(0.0):
    return device_bytes
  # The devices of a CPU share the machine's memory.
  return _available_bytes() // mesh.size


def _available_bytes() -> int:
  """Bytes of the machine's memory that processes may still take."""
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
    found = dict(line.split(':') for line in lines)
    return int(found['MemAvailable'].split()[0]) << 10
  except (OSError, KeyError, ValueError):  # Not Linux.
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
