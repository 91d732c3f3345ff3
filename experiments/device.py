r"""Measures an accelerator, on the day that there is one, in ten minutes.

python -m experiments.device
python -m experiments.device --torch_python=torchenv/bin/python
python -m experiments.device --parts=grids,layouts
python -m experiments.device --small --records=/tmp/records

The parts run one after the other, the most valuable first, each in a process of
its own. Each ends in a record of the repository, and one that has its record is
skipped: the same line goes on where an earlier one stopped. A part that takes
longer than its share of --minutes is ended, and so is said; the others run.
--small runs every part that this machine can at sizes that take seconds on a
CPU.

  grids        SlowFast-R50 8x8 in bfloat16: step time, memory by the compiler
               and by the allocator, and share of the matrix rate, of all grids
               of the Kinetics schedule; so the speed-up of the real schedule
  transformer  the same for VideoMAE ViT-B
  layouts      ways to compute 3-D convolutions (experiments/bench/layouts)
  torch        six networks against PyTorch, channels last, with autocast, and
               with torch.compile (experiments/bench/step_time)
  training     a short training on generated videos, here and on the CPU
  blocks       a transformer's blocks as a loop (experiments/bench/blocks_loop)
  decoding     whole videos on the GPU's decoder (experiments/bench/
               gpu_decoding)
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import importlib.util
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

from experiments.runs import record
from mgjax import cli
from mgjax.cli import ConfigError
from mgjax.planning import targets


class Here(NamedTuple):
  """What is here.

  Attributes:
    name: Of the devices, for records.
    platform: 'cpu', 'gpu' or 'tpu'.
    num_devices: That JAX finds.
    peak_tflops: Of all of them together; 0: not known.
    small: Whether parts run at reduced size.
    torch_python: An interpreter that has PyTorch; '': none.
    records: Folder of records.
  """

  name: str
  platform: str
  num_devices: int
  peak_tflops: float
  small: bool
  torch_python: str
  records: pathlib.Path


class Part(NamedTuple):
  """Something to measure.

  Attributes:
    share: Of the time that all take.
    module: Of the benchmark.
    arguments: Of its command line.
    results: Files that it writes, below the records' folder.
    missing: Why it cannot run here; '' where it can.
  """

  share: float
  module: str
  arguments: Callable[[Here], list[str]]
  results: Callable[[Here], list[str]]
  missing: Callable[[Here], str] = lambda here: ''


def _grids(here: Here, model: str) -> list[str]:
  clips = 2 if here.small else 8 * here.num_devices
  size = []
  if here.small and model == 'slowfast':
    size = ['model.blocks=1', 'model.width=8', 'model.alpha=2']
  elif here.small:
    size = ['model.depth=1', 'model.width=24', 'model.heads=2']
  if here.small:
    crop, frames = (64, 8) if model == 'slowfast' else (96, 8)
    size += [
      f'data.num_frames={frames}',
      f'data.crop_px={crop}',
      f'data.jitter_px={crop},{crop + 16}',
    ]
  fields = [
    'model.dtype=bfloat16',
    f'data.batch_size={clips}',
    f'norm.group_clips={2 if here.small else 8}',
    *size,
  ]
  peak = here.peak_tflops
  return [
    f'--config=configs/kinetics400.py:grid=both,model={model}',
    *(f'--config.{field}' for field in fields),
    f'--name={here.name}-{model}',
    f'--records={here.records / "grid_step_times"}',
    f'--turns={2 if here.small else 10}',
    *([f'--peak_tflops={peak}'] if peak else []),
  ]


_TORCH_MODELS = ('slowfast', 'slow', 'i3d', 'tsn', 'tam', 'blvnet_tam')


def _torch(here: Here) -> list[str]:
  arguments = [
    f'--torch_python={here.torch_python}',
    f'--device={here.platform}',
    '--dtype=bfloat16',
    '--torch=channels_last,compiled',
    '--launches=1',  # There are ten minutes.
    f'--records={here.records / "step_time"}',
  ]
  if here.small:
    return [
      *arguments,
      *('--models=tsn', '--batch=2', '--frames=4', '--crop_px=64'),
      *('--turns=1', '--turn_steps=1'),
    ]
  return [
    *arguments,
    f'--models={",".join(_TORCH_MODELS)}',
    *('--batch=8', '--crop_px=224', '--turns=6', '--turn_steps=5'),
    *([f'--peak_tflops={here.peak_tflops}'] if here.peak_tflops else []),
  ]


def _without_torch(here: Here) -> str:
  if here.platform == 'tpu':
    return 'there is no PyTorch for it'
  if not here.torch_python:
    return 'no interpreter with PyTorch; give --torch_python'
  return ''


def _blocks(here: Here) -> list[str]:
  records = f'--records={here.records / "blocks_loop" / here.name}'
  if here.small:
    return [
      *('--models=videomae_s', '--batch=1', '--frames=2', '--crop_px=32'),
      *('--turns=1', '--turn_steps=1', records),
    ]
  return [
    *('--models=videomae_b', '--batch=8', '--frames=16', '--crop_px=224'),
    *('--dtype=bfloat16', '--turns=6', '--turn_steps=5', records),
  ]


def _named(here: Here, experiment: str) -> list[str]:
  return [f'--name={here.name}', f'--records={here.records / experiment}']


PARTS = {
  'grids': Part(
    0.3,
    'grid_step_times',
    lambda here: _grids(here, 'slowfast'),
    lambda here: [f'grid_step_times/{here.name}-slowfast.json'],
  ),
  'layouts': Part(
    0.15,
    'layouts',
    lambda here: [
      *_named(here, 'layouts'),
      *(['--small', '--clips=1', '--turns=1'] if here.small else []),
    ],
    lambda here: [f'layouts/{here.name}.json'],
  ),
  'torch': Part(
    0.25,
    'step_time',
    _torch,
    lambda here: [
      f'step_time/{here.platform}-bfloat16-{model}.json'
      for model in (('tsn',) if here.small else _TORCH_MODELS)
    ],
    _without_torch,
  ),
  'transformer': Part(
    0.1,
    'grid_step_times',
    lambda here: _grids(here, 'videomae_b'),
    lambda here: [f'grid_step_times/{here.name}-videomae_b.json'],
  ),
  'training': Part(
    0.1,
    'device_training',
    lambda here: [
      *_named(here, 'device_training'),
      f'--size={"tiny" if here.small else "small"}',
      f'--workdir={here.records / "device_training" / "runs" / here.name}',
    ],
    lambda here: [f'device_training/{here.name}.json'],
  ),
  'blocks': Part(
    0.05,
    'blocks_loop',
    _blocks,
    lambda here: [f'blocks_loop/{here.name}/result.json'],
  ),
  'decoding': Part(
    0.05,
    'gpu_decoding',
    lambda here: [
      *_named(here, 'gpu_decoding'),
      *(['--videos=1', '--turns=1'] if here.small else []),
    ],
    lambda here: [f'gpu_decoding/{here.name}.json'],
    lambda here: '' if here.platform == 'gpu' else 'there is no GPU',
  ),
}


def run(name: str, here: Here, limit_s: float) -> str:
  """Measures a part.

  Args:
    name: Of the part.
    here: What is here.
    limit_s: Seconds after which it is ended.

  Returns:
    What came of it: 'measured', 'recorded' where it was, or why it was not.
  """
  part = PARTS[name]
  if why := part.missing(here):
    return f'skipped: {why}'
  results = [here.records / path for path in part.results(here)]
  if all(path.exists() for path in results):
    return 'recorded'
  command = [f'experiments.bench.{part.module}', *part.arguments(here)]
  print(f'{name}: python -m {shlex.join(command)}', flush=True)
  begin = time.perf_counter()
  try:
    subprocess.run(
      [sys.executable, '-m', *command], check=True, timeout=limit_s
    )
  except subprocess.TimeoutExpired:
    return f'ended after {limit_s:.0f} s; give more --minutes'
  except subprocess.CalledProcessError as error:
    return f'failed with exit code {error.returncode}; its error is above'
  return f'measured in {time.perf_counter() - begin:.0f} s'


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  text = f'Some of {",".join(PARTS)}.'
  flags.DEFINE_list('parts', list(PARTS), text, flag_values=values)
  flags.register_validator(
    'parts',
    lambda names: set(names) <= set(PARTS),
    f'accepted are {", ".join(PARTS)}',
    flag_values=values,
  )
  flag('minutes', float, 10.0, 'That all parts may take together.', 0.1)
  flag('small', bool, False, 'Reduced sizes, to try the parts on a CPU.')
  text = 'The Python that has PyTorch; by default this one, if it does.'
  flag('torch_python', str, '', text)
  flag('name', str, None, "Of the records; by default the devices'.")
  flag('records', str, str(record.RECORDS), 'Folder of records.')


def _look(args: flags.FlagValues) -> Here:
  """What is here, asked for in a process of its own.

  This one must hold no device while the parts run.

  Raises:
    ConfigError: JAX finds no accelerator, and --small was not given.
  """
  code = (
    'import jax; from experiments.bench import layouts; d = jax.devices(); '
    'print(d[0].platform, len(d), layouts.device_name(), d[0].device_kind)'
  )
  found = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  platform, number, name, kind = found.stdout.strip().split(' ', 3)
  if platform == 'cpu' and not args.small:
    raise ConfigError(
      'JAX finds no accelerator here; --small tries the parts on a CPU'
    )
  torch = args.torch_python
  if not torch and importlib.util.find_spec('torch'):
    torch = sys.executable
  return Here(
    (args.name or name) + ('-small' if args.small else ''),
    platform,
    int(number),
    targets.bfloat16_flops(kind) / 1e12 * int(number),
    args.small,
    torch,
    pathlib.Path(args.records).resolve(),
  )


def main(args: flags.FlagValues) -> None:
  """Measures the parts.

  Raises:
    SystemExit: One failed or was ended; it has the exit code 1.
  """
  here = _look(args)
  said: dict[str, Any] = {}
  shares = sum(PARTS[name].share for name in args.parts)
  begin = time.monotonic()
  for name in args.parts:
    left = 60 * args.minutes - (time.monotonic() - begin)
    # What earlier parts have saved is the later ones'.
    said[name] = run(name, here, left * PARTS[name].share / shares)
    shares -= PARTS[name].share
    print(f'{name}: {said[name]}', flush=True)
  print('\n'.join(f'{name:12} {what}' for name, what in said.items()))
  if any(what.startswith(('failed', 'ended')) for what in said.values()):
    sys.exit(1)


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
