"""Compiles the programs of a run for devices that need not be there.

What the compiler said of a program is kept beside the compiled programs, so
that a command that is killed goes on with the next one, and a second one
prints at once.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

import mgjax
from mgjax import files
from mgjax.config import own, saved
from mgjax.errors import ConfigError
from mgjax.grids import Grid, GridSchedule
from mgjax.hosts import parallel
from mgjax.planning import compiled, compiler_facts, measured
from mgjax.planning.targets import Target
from mgjax.progress import Progress
from mgjax.setup import clip_costs, grids, network
from mgjax.step import compilation, step_cache
from mgjax.step.step_cache import Program

_FORMAT = 2  # Of the files with what the compiler said.
# Packages whose versions change what compilers make of a program.
_PACKAGES = (
  *('jax', 'jaxlib', 'libtpu', 'jax-cuda12-pjrt', 'nvidia-cudnn-cu12'),
  *('flax', 'optax'),
)
# Settings that no program depends on: where files are.
_NO_SETTINGS = ('data.dir', 'init_from')


def compile_all(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  target: Target,
  *,
  which: str = 'all',
) -> list[dict[str, Any]]:
  """Compiles the programs of a run for a target.

  Args:
    config: The settings.
    schedule: The run's schedule, for as many devices as the target has.
    target: The devices.
    which: 'all' programs; 'base', those of the full grid; or those of grids
      such as '8x112x112,32x224x224', frames x height x width.

  Returns:
    What `compiler_facts.describe` says of each, in the order of the first use.

  Raises:
    ConfigError: No program has such a grid.
  """
  mesh = parallel.mesh_of(target.devices)
  composed = network.compose(config, mesh)
  lowered = _chosen(
    compiled.lower_all(
      config, schedule, composed, mesh, with_baseline=which == 'base'
    ),
    grids.full_grid(config),
    which,
  )
  gmacs = clip_costs.gmacs_per_clip(config, {p.grid for p in lowered})
  folder = step_cache.programs_folder() / 'compiled'
  key = _settings_key(config, schedule, target)
  rows = []
  bar = Progress(len(lowered), unit='program')
  for done, (program, lower) in enumerate(lowered.items()):
    left = bar.time_left(done)
    found = _facts(
      lower,
      target,
      folder,
      key and measured.hash_of([key, str(program)]),
      lambda text=f'compiling {program} for {target.name}, {left}': bar.say(
        text
      ),
    )
    rows.append(
      compiler_facts.describe(
        program,
        found,
        gmacs_per_clip=gmacs[program.grid],
        dtype=config.model.dtype,
        target=target,
      )
    )
    bar.update(done + 1, str(program))
  bar.close()
  return rows


def _chosen(
  lowered: Mapping[Program, Callable], full: Grid, which: str
) -> dict[Program, Callable]:
  """The programs of the grids that were asked for."""
  if which == 'all':
    return dict(lowered)
  name_of = lambda grid: f'{grid.T}x{grid.H}x{grid.W}'
  names = {'base': full} | {name_of(p.grid): p.grid for p in lowered}
  wanted = which.split(',')
  if unknown := [name for name in wanted if name not in names]:
    raise ConfigError(
      f'--grids={which}: {unknown[0]!r} is no grid of this run; accepted are '
      f"'all' or {', '.join(names)}"
    )
  asked = {names[name][:3] for name in wanted}
  return {
    program: lower
    for program, lower in lowered.items()
    if program.grid[:3] in asked
  }


# What the compiler says.


def _facts(
  lower: Callable[[], Any],
  target: Target,
  folder: pathlib.Path,
  key: str,
  compiling: Callable[[], None],
) -> dict[str, Any]:
  """Reads or finds out what the compiler says of a program.

  Args:
    lower: Lowers it.
    target: Its devices.
    folder: Of what is kept.
    key: Of the settings that it comes from; '': they do not say all of it.
    compiling: Called before it is compiled.
  """
  if key and (found := _read(folder / f'{key}.json')):
    return found
  lowered = lower()
  # Other settings, or another version of mgjax, may come to the same program.
  same = measured.hash_of([lowered.as_text(), _compiler(target)])
  found = _read(folder / f'{same}.json')
  if found is None:
    compiling()
    start = time.perf_counter()
    try:
      executable = compilation.compile_program(lowered, target.platform)
      found = compiler_facts.of(executable, time.perf_counter() - start)
    except compilation.OutOfMemory as error:
      found = compiler_facts.of_refused(error, time.perf_counter() - start)
    _write(folder / f'{same}.json', found)
  if key:
    _write(folder / f'{key}.json', found)
  return found


# What is kept.


def _settings_key(
  config: ml_collections.ConfigDict, schedule: GridSchedule, target: Target
) -> str:
  """Hash of all that programs are made from; '' where that is not known.

  Lowering takes seconds for each program, and this none: the whole settings,
  and the files of this package.
  """
  if own.is_own(config.model.name):
    return ''  # Made by files that are not in this package.
  settings = saved.as_json(config)
  for name in _NO_SETTINGS:
    section, _, field = name.partition('.')
    if field:
      settings[section].pop(field, None)
    else:
      settings.pop(section, None)
  sources = hashlib.sha256()
  for path in sorted(pathlib.Path(mgjax.__file__).parent.rglob('*.py')):
    sources.update(path.read_bytes())
  return measured.hash_of(
    [settings, schedule.num_train, sources.hexdigest(), _compiler(target)]
  )


def _compiler(target: Target) -> list[Any]:
  """What a program becomes depends on, besides the program."""
  versions = []
  for name in _PACKAGES:
    try:
      versions.append([name, importlib.metadata.version(name)])
    except importlib.metadata.PackageNotFoundError:
      pass  # One for another kind of devices.
  device = target.devices[0]
  return [
    *(_FORMAT, target.name, len(target.devices), device.device_kind),
    *(versions, os.environ.get('XLA_FLAGS', '')),
    compilation.options(target.platform),
  ]


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """What was kept; None where there is nothing that can be used."""
  try:
    found = files.read_json(path) if path.exists() else {}
  except (ConfigError, OSError):
    return None  # Damaged: found out again.
  return found if found.keys() == {*compiler_facts.FIELDS} else None


def _write(path: pathlib.Path, found: Mapping[str, Any]) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(found, indent=1) + '\n')
  except OSError as error:
    print(
      f'{path} cannot be written ({error.strerror or error}): the next command '
      'compiles this program again',
      file=sys.stderr,
    )
