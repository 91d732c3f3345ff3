"""Trains on generated videos on a device and on the CPU, and compares them.

python -m experiments.bench.device_training --name=h200

Both train the same network on the same clips in float32: the losses of the
first steps must agree, and the accuracies at the end up to chance. Each runs in
a process of its own; one that was stopped goes on. A record is one file in
experiments/records/device_training.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import json
import os
import pathlib
import subprocess
import sys

from absl import flags

from experiments import tabulate
from experiments.bench import layouts, step_time
from experiments.runs import record
from mgjax import cli, files

EXPERIMENT = 'device_training'
# What each size trains on; it is made where it is not there.
_DATA = {'small': 'motion_demo', 'tiny': 'motion_tiny'}
_FIRST = 10  # Steps whose losses are compared: later ones differ by rounding.


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('name', str, None, "Of the record; by default the device's.")
  flag('size', ('small', 'tiny'), 'small', 'Of configs/moving_digits.py.')
  flag('workdir', str, 'runs/device_training', 'Folder of both runs.')
  flag('records', str, str(record.RECORDS / EXPERIMENT), 'Folder of results.')


def _options(size: str) -> list[str]:
  """The config of both runs."""
  return [
    f'--config=configs/moving_digits.py:grid=both,size={size}',
    f'--config.data.name=moving_digits/{_DATA[size]}',
  ]


def _prepare(size: str) -> None:
  """Makes the videos of a size where configs look for them."""
  from mgjax.data import moving_digits
  from mgjax.setup import data

  config, *overrides = _options(size)
  found = cli.read_config(config.removeprefix('--config='), overrides)
  moving_digits.prepare(data.data_dir(found), _DATA[size])


def _train(size: str, workdir: pathlib.Path, platform: str) -> dict:
  """Trains in a process of its own; returns what a record keeps.

  Raises:
    CalledProcessError: The training failed.
  """
  environment = {**os.environ}
  if platform:
    environment['JAX_PLATFORMS'] = platform
  subprocess.run(
    [
      *(sys.executable, '-m', 'mgjax.train'),
      *_options(size),
      '--config.train.log_every_steps=1',
      f'--workdir={workdir}',
    ],
    env=environment,
    check=True,
  )
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  summary = files.read_json(workdir / 'summary.json')
  return {
    'device': summary['environment']['device'],
    'losses': [line['loss'] for line in lines if 'loss' in line],
    **{k: summary[k] for k in ('top1', 'train_s', 'data_s', 'compile_s')},
  }


def compare(ours: dict, cpu: dict) -> dict:
  """What a device's training says beside the CPU's.

  Returns:
    'first_losses', the largest relative difference of the first losses, and
    'top1', the difference of the accuracies in points.
  """
  pairs = list(zip(ours['losses'], cpu['losses'], strict=True))[:_FIRST]
  return {
    'first_losses': max(abs(a - b) / b for a, b in pairs),
    'top1': ours['top1'] - cpu['top1'],
  }


def table(entry: dict) -> tabulate.Table:
  """One row per device of a record."""
  return tabulate.Table(
    EXPERIMENT,
    (
      'device',
      'top-1, % [measured]',
      'training, s [measured]',
      'of it waiting for data, s [measured]',
      'compiling, s [measured]',
    ),
    [
      (
        run['device'],
        f'{run["top1"]:.1f}',
        *(f'{run[k]:.0f}' for k in ('train_s', 'data_s', 'compile_s')),
      )
      for run in entry['runs']
    ],
  )


def main(args: flags.FlagValues) -> None:
  environment = step_time.full_environment()
  name = args.name or layouts.device_name()
  benchmark = record.Benchmark(args.records, name, __spec__.name)
  workdir = pathlib.Path(args.workdir)
  _prepare(args.size)
  # The device's first: it is the one that may be gone.
  runs = [
    _train(args.size, workdir / name, platform)
    for name, platform in (('device', ''), ('cpu', 'cpu'))
  ]
  entry = benchmark.write(
    environment=environment,
    size=args.size,
    runs=runs,
    difference=compare(*runs),
  )
  print(tabulate.markdown(table(entry)))
  print(
    f'the first {_FIRST} losses differ by '
    f'{entry["difference"]["first_losses"]:.1e} at most, relatively; the '
    f'accuracies by {entry["difference"]["top1"]:+.1f} points'
  )


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
