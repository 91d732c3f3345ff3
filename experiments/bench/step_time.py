"""Times the training step of eight networks against PyTorch, in one run.

python -m experiments.bench.step_time --torch_python=torchenv/bin/python
python -m experiments.bench.step_time --torch_python=torchenv/bin/python \\
  --device=gpu --dtype=bfloat16 --batch=32 --crop_px=224 --turn_steps=20 \\
  --torch=channels_last,compiled --peak_tflops=989

A step is forward, backward and SGD with Nesterov momentum. JAX runs
mgjax.step.train_step as training does: uint8 clips in, normalised and
mirrored on the device, gradient norm out. PyTorch starts from normalised clips
and does neither, so the comparison does not favour JAX. On CPUs mgjax has glibc
keep freed memory (mgjax/cpu/allocator.py); PyTorch's process is started with
MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_ of the same values. Whoever sets
them has PyTorch run with those; the record says which there were.

JAX and the programs of PyTorch take turns, a few steps each, so that whatever
else the machine does meets all of them alike; a side's time is the median over
turns. The first step of a turn is not timed: it finds the caches full of the
other side's data, which training does not. Each side lives in a process of its
own, PyTorch (experiments/bench/requirements-torch.txt) in an interpreter of its
own: the two have thread pools of their own, of which one idles while the other
works, process CPU seconds are those of one side alone, and the package's
environment stays free of PyTorch. Both start from the same weights on the same
clips, and the losses of the first steps must agree.

All of this is done --launches times, in fresh processes of both sides: where
memory lies and what else the machine does differs between launches more than
between turns. Each model's result is one record, in
experiments/records/step_time, written after every launch: the same line goes on
where a stopped run was. No record is replaced: another measurement has another
--name.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import datetime
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments import costs, intervals, tabulate
from experiments.bench import worker
from experiments.runs import history, record
from mgjax import cli, environment, files
from mgjax.cli import ConfigError

EXPERIMENT = 'step_time'
MODELS = {
  'slowfast': 'SlowFast-R50',
  'slow': 'Slow-R50',
  'i3d': 'I3D-R50',
  'tsn': 'TSN-R50',
  'tam': 'TAM-R50',
  'blvnet_tam': 'bLVNet-TAM-50',
  'videomae_s': 'VideoMAE ViT-S',
  'videomae_b': 'VideoMAE ViT-B',
}
# Frames of a clip per frame of --frames: SlowFast's slow pathway takes one in
# four, bLVNet-TAM takes pairs.
_FRAME_FACTORS = {'slowfast': 4, 'blvnet_tam': 2}
# As costs.py knows them.
_COST_NAMES = {
  **{name: name for name in MODELS},
  **{'tsn': 'tsn_r50', 'tam': 'tam_r50', 'blvnet_tam': 'blvnet_tam_50'},
}
_NUM_CLASSES = 400
_LEARNING_RATE = 0.01
_TORCH = {
  'default': 'torch',
  'channels_last': 'torch channels-last',
  'compiled': 'torch channels-last, compiled',
}
# First losses differ by rounding only, relatively by 1e-5 in float32 on a CPU;
# this finds another network or other clips.
_LOSS_TOLERANCE = {'float32': 0.01, 'bfloat16': 0.05}
# Flags that rows of a table share.
_SHARED = ('device', 'dtype', 'batch', 'crop_px', 'turns', 'turn_steps')


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('torch_python', str, sys.executable, 'The Python that has PyTorch.')
  for name, known, default in (
    ('torch', _TORCH, list(_TORCH)),
    ('models', MODELS, list(MODELS)),
  ):
    text = f'Some of {",".join(known)}.'
    flags.DEFINE_list(name, default, text, flag_values=values)
    flags.register_validator(
      name,
      lambda names, known=known: set(names) <= set(known),
      f'accepted are {", ".join(known)}',
      flag_values=values,
    )
  flag('device', ('cpu', 'gpu'), 'cpu', 'Where the steps run.')
  flag('dtype', ('float32', 'bfloat16'), 'float32', 'Type of the computation.')
  flag('batch', int, 2, 'Clips.', 1)
  text = 'Of a clip; four times as many for SlowFast, twice for bLVNet-TAM.'
  flag('frames', int, 8, text, 1)
  flag('crop_px', int, 112, 'Height and width.', 1)
  flag('launches', int, 3, 'Times that both sides start anew.', 1)
  flag('turns', int, 8, 'Timed turns of each side in a launch.', 1)
  flag('turn_steps', int, 2, 'Steps of a turn.', 1)
  text = (
    "The machine's rate of matrix products in this type, for the share that a "
    'step reaches.'
  )
  flag('peak_tflops', float, None, text)
  text = "A word before DEVICE-DTYPE-MODEL in the records' names; '': none."
  flag('name', str, '', text)
  flag('records', str, str(record.RECORDS / EXPERIMENT), 'Folder of results.')


def find_torch(python: str) -> None:
  """Looks whether an interpreter has PyTorch.

  Raises:
    ConfigError: It has not, or there is none.
  """
  try:
    subprocess.run(
      [python, '-c', 'import torch'], check=True, capture_output=True
    )
  except (OSError, subprocess.CalledProcessError):
    raise ConfigError(
      f'--torch_python={python}: this interpreter cannot import '
      'torch; give one where experiments/bench/requirements-torch.txt is '
      'installed.'
    ) from None


def full_environment() -> dict[str, Any]:
  """The machine and the versions that step times depend on."""
  return {
    **environment.describe(),
    'XLA_FLAGS': os.environ.get('XLA_FLAGS'),
    'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES'),
  }


def torch_environment(device: str) -> dict[str, str]:
  """The variables that PyTorch's process has because of this benchmark.

  Args:
    device: 'cpu', where it gets mgjax's settings of the allocator, or 'gpu'.
  """
  from mgjax.cpu import allocator  # Bad flags need none of JAX's second.

  # Without it, its threads go on spinning while JAX works.
  wanted = {'OMP_WAIT_POLICY': 'passive'}
  if device == 'cpu':
    wanted |= allocator.environment()
  return {name: os.environ.get(name, value) for name, value in wanted.items()}


class _Turns(NamedTuple):
  """What both sides answered, by side.

  Attributes:
    losses: Of the first steps.
    turns: The answers of the timed turns.
    load_average: Of the machine before them.
  """

  losses: dict[str, list[float]]
  turns: dict[str, list[dict]]
  load_average: float


def _alternate(
  sides: dict[str, Callable[[int], dict]], args: flags.FlagValues
) -> _Turns:
  """Lets the sides take turns.

  Args:
    sides: For each side, what takes a number of steps.
    args: Flags: the numbers of turns and steps, and the type.

  Raises:
    RuntimeError: The first losses differ, so the networks or the clips do.
  """
  # The first steps are slower: buffers, threads, choice of algorithms.
  losses = {key: run(4)['losses'] for key, run in sides.items()}
  first = [of_side[0] for of_side in losses.values()]
  if max(first) - min(first) > _LOSS_TOLERANCE[args.dtype] * max(first):
    raise RuntimeError(f'the first losses differ: {first}.')
  load_average = os.getloadavg()[0]
  turns = {key: [] for key in sides}
  for _ in range(args.turns):
    for key, run in sides.items():
      turns[key].append(run(args.turn_steps))
  return _Turns(losses, turns, load_average)


def _settings(name: str, args: flags.FlagValues) -> dict[str, Any]:
  """What all launches of a model's record have in common, of this command."""
  return {
    'model': name,
    **{field: getattr(args, field) for field in (*_SHARED, 'peak_tflops')},
    'torch': list(args.torch),
    'frames': args.frames * _FRAME_FACTORS.get(name, 1),
    'package_tree': record.tree_on_disk('mgjax'),
  }


def _check_same(path: pathlib.Path, stored: dict, wanted: dict) -> None:
  """Refuses to add a launch to a record of something else.

  Args:
    path: Of the record.
    stored: It.
    wanted: Fields that it must have.

  Raises:
    ConfigError: Some differ.
  """
  missing = object()
  differing = [k for k, v in wanted.items() if stored.get(k, missing) != v]
  if differing:
    raise ConfigError(
      f'{path}: is a record of other {", ".join(differing)}; give another '
      '--name'
    )


def _seconds(turns: list[dict], args: flags.FlagValues) -> dict[str, Any]:
  """Of one step, averaged over a turn, for every turn of a side."""
  return {
    'wall_s': [t['wall_s'] / args.turn_steps for t in turns],
    'cpu_s': [t['cpu_s'] / args.turn_steps for t in turns],
    'peak_bytes': turns[-1]['peak_bytes'],
  }


def launch(
  name: str, args: flags.FlagValues, path: pathlib.Path, stored: dict | None
) -> dict:
  """Times a model once, in fresh processes of both sides.

  Args:
    name: Of the model.
    args: Flags.
    path: Of the record, for what an error says.
    stored: The record of the launches so far; None: there is none.

  Returns:
    The record with this launch.

  Raises:
    ConfigError: The device is not there, or the versions are not the stored
      ones.
    RuntimeError: The sides are not the same network, or a process fails.
  """
  settings = _settings(name, args)
  environment = torch_environment(args.device)
  with (
    tempfile.TemporaryDirectory() as folder,
    worker.started(
      sys.executable,
      'experiments.bench.jax_worker',
      # On a GPU both processes need room, and JAX would take three quarters of
      # it at once.
      {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
    ) as ask_jax,
    worker.started(
      args.torch_python, 'experiments.bench.torch_worker', environment
    ) as ask_torch,
  ):
    load = {
      **settings,
      'num_classes': _NUM_CLASSES,
      'learning_rate': _LEARNING_RATE,
      'clips': str(pathlib.Path(folder) / 'clips.npz'),
    }
    ours = ask_jax({'load': load})
    if 'error' in ours:
      raise ConfigError(ours['error'])
    theirs = ask_torch(
      {
        'load': {
          **load,
          'device': {'cpu': 'cpu', 'gpu': 'cuda'}[args.device],
          'programs': args.torch,
          'optim': ours['optim'],
        }
      }
    )
    if ours['parameters'] != theirs['parameters']:
      raise RuntimeError(
        f'{name} has {ours["parameters"]} parameters, in PyTorch '
        f'{theirs["parameters"]}.'
      )
    described = {
      **ours['environment'],
      'torch_threads': theirs['threads'],
      **environment,
      **theirs['versions'],
    }
    if stored:
      _check_same(path, stored, {'environment': described})
    sides: dict[str, Callable[[int], dict]] = {
      'JAX': lambda steps: ask_jax({'steps': steps})
    }
    for program in args.torch:
      sides[_TORCH[program]] = lambda steps, program=program: ask_torch(
        {'program': program, 'steps': steps}
      )
    try:
      found = _alternate(sides, args)
    except RuntimeError as error:
      raise RuntimeError(f'{name}: {error}') from error
  entry = stored or {
    **settings,
    'parameters': ours['parameters'],
    'forward_macs': ours['forward_macs'],
    **record.code_version(),
    'environment': described,
    'launches': [],
  }
  this_launch = {
    'command': record.command_line(__spec__.name),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    # Of the last minute, the benchmark's own threads included.
    'load_average': [found.load_average, os.getloadavg()[0]],
    'compile_s': ours['compile_s'],
    'sides': {
      key: {**_seconds(turns, args), 'first_losses': found.losses[key]}
      for key, turns in found.turns.items()
    },
  }
  return {**entry, 'launches': [*entry['launches'], this_launch]}


def load() -> list[dict]:
  """The records there are."""
  return list(record.load_files(EXPERIMENT).values())


def problems() -> list[str]:
  """Says which records are of another network than today's; [] if none is."""
  found = []
  for name, entry in record.load_files(EXPERIMENT).items():
    side = entry['crop_px']
    today = costs.cost(
      _COST_NAMES[entry['model']], _NUM_CLASSES, entry['frames'], side, side
    )
    for field, value in (
      ('parameters', today.parameters),
      ('forward_macs', today.macs),
    ):
      if entry[field] != value:
        found.append(
          f'{EXPERIMENT}/{name}.json: {field} {entry[field]:,}, but '
          f"today's {MODELS[entry['model']]} has {value:,}"
        )
  return found


def _launches(entry: dict) -> list[dict]:
  """The launches of a record; an older record is one."""
  return entry.get('launches', [entry])


class _Circumstances(NamedTuple):
  """What the rows of a table share: its record's fields of these names.

  Attributes:
    machine: Its cores and processor, or its accelerator.
    keeps: Whether PyTorch's allocator keeps freed memory; None: on a GPU.
    sides: That were timed.
    launches: Number of them.
  """

  device: str
  dtype: str
  batch: int
  crop_px: int
  machine: str
  jax: str
  torch: str
  torch_threads: int
  keeps: bool | None
  sides: tuple[str, ...]
  turns: int
  turn_steps: int
  launches: int


def _circumstances(entry: dict) -> _Circumstances:
  env, launches = entry['environment'], _launches(entry)
  machine, keeps = record.processor_text(env), None
  if entry['device'] == 'gpu':
    machine = env['device']
  else:
    from mgjax.cpu import allocator

    keeps = allocator.environment().items() <= env.items()
  return _Circumstances(
    **{field: entry[field] for field in _SHARED},
    machine=machine,
    jax=env['jax'],
    torch=env['torch'],
    torch_threads=env['torch_threads'],
    keeps=keeps,
    sides=tuple(launches[0]['sides']),
    launches=len(launches),
  )


def table(records: list[dict]) -> str:
  """Step times and their ratios as Markdown.

  Args:
    records: Of `launch`, in any order.

  Returns:
    A table for all records of the same circumstances, with a line that says
    them. A launch's times are medians over its turns; shown are geometric means
    over launches. "JAX / x" are ratios of those, below 1 where JAX is faster,
    with their 95 % interval over launches where there are several. CPU seconds
    are those of all threads of one side. Memory and share of the peak rate are
    there where known.
  """
  if not records:
    return 'No records yet.'
  groups: dict[_Circumstances, list[dict]] = {}
  for entry in records:
    groups.setdefault(_circumstances(entry), []).append(entry)
  order = list(MODELS)
  return '\n\n'.join(
    _group_table(
      shared, sorted(groups[shared], key=lambda r: order.index(r['model']))
    )
    for shared in sorted(groups)
  )


def _medians(entry: dict, side: str, unit: str) -> list[float]:
  """Medians over turns, of every launch."""
  return [
    statistics.median(launch['sides'][side][unit])
    for launch in _launches(entry)
  ]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
  """One value of each launch of one side, by those of another."""
  if len(ours) == 1:
    return f'{ours[0] / theirs[0]:.2f}'
  found = intervals.of_paired_ratio(ours, theirs)
  return f'{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]'


def _group_table(shared: _Circumstances, group: list[dict]) -> str:
  sides = shared.sides
  others = [side for side in sides if side != 'JAX']
  shows_memory = shared.device == 'gpu'
  shows_rate = all(entry['peak_tflops'] for entry in group)
  header = ['model', 'frames', *(f'{side} [ms]' for side in sides)]
  header += [f'JAX / {side}' for side in others]
  if not shows_memory:
    header += [f'JAX / {side}, CPU seconds' for side in others]
  else:
    header += [f'{side} peak [GiB]' for side in sides]
  if shows_rate:
    header += [f'{side} of peak rate [%]' for side in sides]
  rows = []
  for entry in group:
    medians = functools.partial(_medians, entry)
    mean_s = {
      side: statistics.geometric_mean(medians(side, 'wall_s')) for side in sides
    }
    ratio = lambda side, unit, medians=medians: _ratio(
      medians('JAX', unit), medians(side, unit)
    )
    row = [MODELS[entry['model']], str(entry['frames'])]
    row += [f'{1e3 * mean_s[side]:.0f}' for side in sides]
    row += [ratio(side, 'wall_s') for side in others]
    if not shows_memory:
      row += [ratio(side, 'cpu_s') for side in others]
    else:
      peaks = {
        side: max(one['sides'][side]['peak_bytes'] for one in _launches(entry))
        for side in sides
      }
      row += [f'{peaks[side] / 2**30:.2f}' for side in sides]
    if shows_rate:
      # A multiply-add is two operations; backward is twice forward.
      tera = 6 * entry['forward_macs'] * entry['batch'] / 1e12
      row += [
        f'{100 * tera / mean_s[side] / entry["peak_tflops"]:.0f}'
        for side in sides
      ]
    rows.append(tuple(row))
  table = tabulate.Table(EXPERIMENT, tuple(header), rows)
  return f'{_description(shared, group)}\n\n{tabulate.markdown(table)}'


def _description(shared: _Circumstances, group: list[dict]) -> str:
  loads = [
    load
    for entry in group
    for launch in _launches(entry)
    for load in launch['load_average']
  ]
  allocator = {
    None: '',
    True: ', which keeps freed memory as JAX does',
    False: ", which has glibc's defaults for freed memory",
  }[shared.keeps]
  launches = '1 launch, medians'
  if shared.launches > 1:
    launches = (
      f'{shared.launches} launches (ratios with their 95 % interval), in each '
      'medians'
    )
  return (
    f'Code of {history.code_of(group)}; {shared.machine}, {shared.dtype}, '
    f'{shared.batch} clips of '
    f'{shared.crop_px}²; JAX {shared.jax}, torch {shared.torch} with '
    f'{shared.torch_threads} threads{allocator}; {launches} of {shared.turns} '
    f'alternating turns of {shared.turn_steps} steps; load average '
    f'{min(loads):.1f} to {max(loads):.1f}.'
  )


def main(args: flags.FlagValues) -> None:
  """Times the networks that the flags name, and writes their records."""
  find_torch(args.torch_python)
  folder = pathlib.Path(args.records)
  files.make_folder(folder, f'--records={folder}')
  start = f'{args.name}-' if args.name else ''
  paths = {
    name: folder / f'{start}{args.device}-{args.dtype}-{name}.json'
    for name in args.models
  }
  results = {}
  for name, path in paths.items():  # All, before the first takes its time.
    if path.exists():
      results[name] = files.read_json(path)
      _check_same(path, results[name], _settings(name, args))
  for name, path in paths.items():
    while len((results.get(name) or {}).get('launches', [])) < args.launches:
      results[name] = launch(name, args, path, results.get(name))
      files.write_text(path, json.dumps(results[name], indent=1) + '\n')
    print(f'{table([results[name]])}\n', flush=True)
  print(table(list(results.values())))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
