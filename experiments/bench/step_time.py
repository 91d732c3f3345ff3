"""Times the training step of eight networks against PyTorch, in one run.

python -m experiments.bench.step_time --torch_python=torchenv/bin/python
python -m experiments.bench.step_time --torch_python=torchenv/bin/python \\
  --device=gpu --dtype=bfloat16 --batch=32 --crop_px=224 --turn_steps=20 \\
  --torch=channels_last,compiled --peak_tflops=989

A step is forward, backward and SGD with Nesterov momentum. JAX runs
mgjax.step.train_step as training does: uint8 clips in, normalised and
mirrored on the device, gradient norm out. PyTorch starts from normalised clips
and does neither, so the comparison does not favour JAX. On CPUs mgjax has glibc
keep freed memory (mgjax/cpu/allocator.py); MALLOC_MMAP_MAX_=0 and
MALLOC_TRIM_THRESHOLD_=2147483647 in the environment give PyTorch the same.

JAX and the layouts of PyTorch take turns, a few steps each, so that whatever
else the machine does meets all of them alike; the ratios are of medians over
turns. The first step of a turn is not timed: it finds the caches full of the
other side's data, which training does not. PyTorch
(experiments/bench/requirements-torch.txt) lives in a process of its own, in an
interpreter of its own: the two have thread pools of their own, of which one
idles while the other works, process CPU seconds are those of one side alone,
and the package's environment stays free of PyTorch. Both start
from the same weights on the same clips, and the losses of the first steps must
agree. Each model's result is one record, in experiments/records/step_time, so
that a stopped run goes on with --models=...
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import contextlib
import datetime
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import costs, tabulate
from experiments.runs import record
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


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('torch_python', str, sys.executable, 'The Python that has PyTorch.')
  for name, known, default in (
    ('torch', _TORCH, ['default', 'channels_last']),
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
  flag('turns', int, 8, 'Timed turns of each side.', 1)
  flag('turn_steps', int, 2, 'Steps of a turn.', 1)
  text = (
    "The machine's rate of matrix products in this type, for the share that a "
    'step reaches.'
  )
  flag('peak_tflops', float, None, text)
  flag('records', str, str(record.RECORDS / EXPERIMENT), 'Folder of results.')


def prepare(args: flags.FlagValues) -> None:
  """Finds PyTorch and the device, and sets JAX up for it.

  Raises:
    ConfigError: One is not there.
  """
  try:
    subprocess.run(
      [args.torch_python, '-c', 'import torch'],
      check=True,
      capture_output=True,
    )
  except (OSError, subprocess.CalledProcessError):
    raise ConfigError(
      f'--torch_python={args.torch_python}: this interpreter cannot import '
      'torch; give one where experiments/bench/requirements-torch.txt is '
      'installed.'
    ) from None
  import jax  # Bad flags need none of the second that it takes.

  from mgjax.cpu import allocator

  # On a GPU both processes need room, and JAX would take three quarters of it
  # at once.
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
  if args.device == 'cpu':
    jax.config.update('jax_platforms', 'cpu')
  allocator.keep()  # As training does.
  if jax.devices()[0].platform != args.device:
    raise ConfigError(f'--device=gpu: JAX finds only {jax.devices()}.')


def full_environment() -> dict[str, Any]:
  """The machine and the versions that step times depend on."""
  return {
    **environment.describe(),
    'XLA_FLAGS': os.environ.get('XLA_FLAGS'),
    'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES'),
  }


@contextlib.contextmanager
def torch_worker(python: str) -> Iterator[Callable[[dict], dict]]:
  """Starts a torch_worker; yields ask(request) -> answer."""
  worker = subprocess.Popen(
    [python, '-m', 'experiments.bench.torch_worker'],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    cwd=pathlib.Path(__file__).parents[2],
    # Without it, its threads go on spinning while JAX works.
    env={'OMP_WAIT_POLICY': 'passive', **os.environ},
    text=True,
  )

  def ask(request):
    print(json.dumps(request), file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if not answer:
      raise RuntimeError('The PyTorch process ended; its error is above.')
    return json.loads(answer)

  with worker:
    try:
      yield ask
    finally:
      worker.terminate()


def _load_request(
  name: str, args: flags.FlagValues, side: Any, clips: pathlib.Path
) -> dict:
  """What a torch_worker is asked first: the same network on the same clips."""
  return {
    'load': {
      'model': name,
      'num_classes': _NUM_CLASSES,
      'frames': side.frames,
      'device': {'cpu': 'cpu', 'gpu': 'cuda'}[args.device],
      'dtype': args.dtype,
      'programs': args.torch,
      'clips': str(clips),
      'optim': {
        'lr': _LEARNING_RATE,
        'momentum': side.optim.momentum,
        'nesterov': side.optim.nesterov,
        'weight_decay': side.optim.weight_decay,
      },
    }
  }


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


def _entry(
  name: str, args: flags.FlagValues, side: Any, loaded: dict, found: _Turns
) -> dict:
  """The record of a model.

  Args:
    name: Of the model.
    args: Flags.
    side: The JaxSide.
    loaded: The answer of the torch_worker to the first request.
    found: What the sides answered.
  """
  fields = ('device', 'dtype', 'batch', 'crop_px', 'turns', 'turn_steps')
  return {
    'model': name,
    'parameters': loaded['parameters'],
    'forward_macs': side.macs,
    **{field: getattr(args, field) for field in (*fields, 'peak_tflops')},
    'frames': side.frames,
    'command': record.command_line(__spec__.name),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    **record.code_version(),
    'environment': {
      **full_environment(),
      'torch_threads': loaded['threads'],
      'OMP_WAIT_POLICY': os.environ.get('OMP_WAIT_POLICY', 'passive'),
      **loaded['versions'],
    },
    # Of the last minute, the benchmark's own threads included.
    'load_average': [found.load_average, os.getloadavg()[0]],
    'compile_s': side.compile_s,
    # Per side: of one step, averaged over a turn, for every turn.
    'sides': {
      key: {
        'wall_s': [t['wall_s'] / args.turn_steps for t in turns],
        'cpu_s': [t['cpu_s'] / args.turn_steps for t in turns],
        'peak_bytes': turns[-1]['peak_bytes'],
        'first_losses': found.losses[key],
      }
      for key, turns in found.turns.items()
    },
  }


def measure(name: str, args: flags.FlagValues) -> dict:
  """Times one model; returns its record.

  Raises:
    RuntimeError: The sides are not the same network, or PyTorch fails.
  """
  from experiments.bench import jax_side
  from mgjax.step import train_state

  side = jax_side.JaxSide(
    name,
    args,
    frames=args.frames * _FRAME_FACTORS.get(name, 1),
    num_classes=_NUM_CLASSES,
    learning_rate=_LEARNING_RATE,
  )
  parameters = train_state.num_parameters(side.variables['params'])
  with (
    tempfile.TemporaryDirectory() as folder,
    torch_worker(args.torch_python) as ask,
  ):
    clips = pathlib.Path(folder) / 'clips.npz'
    np.savez(clips, **side.clips, **jax_side.by_name(side.variables))
    loaded = ask(_load_request(name, args, side, clips))
    if parameters != loaded['parameters']:
      raise RuntimeError(
        f'{name} has {parameters} parameters, in PyTorch '
        f'{loaded["parameters"]}.'
      )

    def in_torch(program: str) -> Callable[[int], dict]:
      return lambda steps: ask({'program': program, 'steps': steps})

    sides = {'JAX': side.run, **{_TORCH[p]: in_torch(p) for p in args.torch}}
    try:
      found = _alternate(sides, args)
    except RuntimeError as error:
      raise RuntimeError(f'{name}: {error}') from error
  return _entry(name, args, side, loaded, found)


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


def table(records: list[dict]) -> str:
  """Step times and their ratios as Markdown.

  Args:
    records: Of `measure`, in any order.

  Returns:
    A table for each device, type and size of clips, with a line on what it
    was measured with. Times are medians over turns; "JAX / x" are ratios of
    medians, below 1 where JAX is faster. CPU seconds are those of all threads
    of one side. Memory and share of the peak rate are there where known.
  """
  if not records:
    return 'No records yet.'
  groups = {}
  for entry in records:
    key = [entry[k] for k in ('device', 'dtype', 'batch', 'crop_px')]
    groups.setdefault((*key, tuple(entry['sides'])), []).append(entry)
  return '\n\n'.join(
    _group_table(sorted(group, key=lambda r: list(MODELS).index(r['model'])))
    for _, group in sorted(groups.items())
  )


def _group_table(group: list[dict]) -> str:
  sides = list(group[0]['sides'])
  others = [side for side in sides if side != 'JAX']
  shows_memory = group[0]['device'] == 'gpu'
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
    found = entry['sides']
    median = lambda side, unit, found=found: statistics.median(
      found[side][unit]
    )
    ratio = lambda side, unit, median=median: (
      f'{median("JAX", unit) / median(side, unit):.2f}'
    )
    row = [MODELS[entry['model']], str(entry['frames'])]
    row += [f'{1e3 * median(side, "wall_s"):.0f}' for side in sides]
    row += [ratio(side, 'wall_s') for side in others]
    if not shows_memory:
      row += [ratio(side, 'cpu_s') for side in others]
    else:
      row += [f'{found[side]["peak_bytes"] / 2**30:.2f}' for side in sides]
    if shows_rate:
      # A multiply-add is two operations; backward is twice forward.
      tera = 6 * entry['forward_macs'] * entry['batch'] / 1e12
      row += [
        f'{100 * tera / median(side, "wall_s") / entry["peak_tflops"]:.0f}'
        for side in sides
      ]
    rows.append(tuple(row))
  table = tabulate.Table(EXPERIMENT, tuple(header), rows)
  return f'{_circumstances(group)}\n\n{tabulate.markdown(table)}'


def _circumstances(group: list[dict]) -> str:
  entry = group[0]
  env = entry['environment']
  loads = [load for e in group for load in e['load_average']]
  device = f'{env["num_cpus"]} cores of {env["cpu"]}'
  if entry['device'] == 'gpu':
    device = env['device']
  return (
    f'{device}, {entry["dtype"]}, {entry["batch"]} clips of '
    f'{entry["crop_px"]}²; JAX {env["jax"]}, torch {env["torch"]} with '
    f'{env["torch_threads"]} threads; medians of {entry["turns"]} alternating '
    f'turns of {entry["turn_steps"]} steps; load average '
    f'{min(loads):.1f} to {max(loads):.1f}.'
  )


def main(args: flags.FlagValues) -> None:
  """Times the networks that the flags name, and writes their records."""
  prepare(args)
  folder = pathlib.Path(args.records)
  files.make_folder(folder, f'--records={folder}')
  results = []
  for name in args.models:
    result = measure(name, args)
    results.append(result)
    path = folder / f'{args.device}-{args.dtype}-{name}.json'
    path.write_text(json.dumps(result, indent=1) + '\n')
    print(f'{table([result])}\n', flush=True)
  print(table(results))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
