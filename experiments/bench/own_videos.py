r"""How long it takes from a folder of videos to a model in use.

python -m experiments.bench.own_videos

makes ninety videos of two seconds in three folders, a moving digit in each,
and gives them to the three commands of README's "Your own videos", one after
the other, with nothing in any cache. The result goes to
experiments/records/own_videos.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import tabulate
from experiments.runs import record
from mgjax import cli, environment, files
from mgjax.data import digits

TABLE = 'own_videos'
CLASSES = ('right', 'clockwise', 'grow')
_WIDTH, _HEIGHT = 320, 240
# What the record keeps of a run's summary.
_KEPT = (
  *('mode', 'steps', 'clips', 'top1', 'num_videos', 'train_s', 'step_s'),
  *('data_s', 'compile_s', 'compile_wait_s', 'eval_s', 'num_from_disk'),
)


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('videos', int, 30, 'Of each of the three classes.', 2)
  flag('name', str, 'result', 'Of the record: NAME.json.')
  flag('records', str, str(record.RECORDS / TABLE), 'Folder of results.')


def make_videos(folder: pathlib.Path, number: int) -> list[pathlib.Path]:
  """Writes so many videos of each class, 60 frames of 320 x 240.

  Args:
    folder: Gets CLASS/NUMBER.mp4.
    number: Of each class.

  Returns:
    Their paths.
  """
  spec = digits.Spec(num_frames=60)
  names = digits.class_names(spec.labels)
  paths = {name: [] for name in CLASSES}
  for i in range(spec.num_train):
    name = names[digits.label_of(spec, 'train', i)]
    if name not in paths or len(paths[name]) == number:
      continue
    path = folder / name / f'{len(paths[name])}.mp4'
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = digits.make_clip(spec, 'train', i).frames
    path.write_bytes(digits.encode(_enlarged(frames)))
    paths[name].append(path)
  return [path for found in paths.values() for path in found]


def _enlarged(frames: np.ndarray) -> np.ndarray:
  """Clips as large as _HEIGHT allows, in the middle of grey frames."""
  factor = _HEIGHT // frames.shape[1]
  frames = frames.repeat(factor, 1).repeat(factor, 2)
  num_frames, height, width, _ = frames.shape
  large = np.full((num_frames, _HEIGHT, _WIDTH, 3), 128, np.uint8)
  top, left = (_HEIGHT - height) // 2, (_WIDTH - width) // 2
  large[:, top : top + height, left : left + width] = frames
  return large


def measure(
  folder: pathlib.Path, number: int, overrides: Sequence[str] = ()
) -> dict[str, Any]:
  """Makes the videos and runs the commands.

  Args:
    folder: Empty, for all that is written.
    number: Videos of each class.
    overrides: Flags that the training has beside README's, for a quick test.

  Returns:
    'seconds' of each command, and what the summary of the training says.
  """
  videos, mine = folder / 'my_videos', folder / 'mine'
  paths = make_videos(videos, number)
  commands = {
    'new': [videos, f'--out={mine}', '--noflip'],
    'train': [
      f'--config={mine / "config.py"}',
      f'--workdir={mine / "run"}',
      *overrides,
    ],
    'predict': [
      f'--workdir={mine / "run"}',
      f'--heatmap={mine / "heat"}',
      *paths[::number],
    ],
  }
  seconds = {}
  for name, arguments in commands.items():
    print(name, file=sys.stderr, flush=True)
    start = time.perf_counter()
    with (folder / f'{name}.log').open('w') as log:
      subprocess.run(
        [sys.executable, '-m', f'mgjax.{name}', *map(str, arguments)],
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
        env={
          **os.environ,
          'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs'),
          'XDG_CACHE_HOME': str(folder / 'cache'),
        },
        stdout=log,
        stderr=log,
      )
    seconds[name] = time.perf_counter() - start
  summary = files.read_json(mine / 'run' / 'summary.json')
  return {
    'num_videos_made': len(paths),
    'seconds': seconds,
    'training': {key: summary[key] for key in _KEPT},
  }


def tables(result: dict[str, Any]) -> list[tabulate.Table]:
  """The record as a table."""
  seconds, training = result['seconds'], result['training']
  row = (
    str(result['num_videos_made']),
    *(f'{seconds[name]:.0f}' for name in ('new', 'train', 'predict')),
    f'{sum(seconds.values()) / 60:.1f}',
    training['mode'],
    f'{training["steps"]:,}',
    f'{training["top1"]:.1f} of {training["num_videos"]} videos',
  )
  header = (
    'videos',
    'new, s [measured]',
    'train, s [measured]',
    'predict, s [measured]',
    'together, min [measured]',
    'grids',
    'steps',
    'top-1 on validation, % [measured]',
  )
  return [tabulate.Table(TABLE, header, [row])]


def make() -> list[tabulate.Table]:
  """The table of the record, if there is one."""
  path = record.RECORDS / TABLE / 'result.json'
  return tables(files.read_json(path)) if path.exists() else []


def main(args: flags.FlagValues) -> None:
  benchmark = record.Benchmark(args.records, args.name, __spec__.name)
  with tempfile.TemporaryDirectory() as scratch:
    found = measure(pathlib.Path(scratch), args.videos)
  result = benchmark.write(environment=environment.describe(), **found)
  print('\n\n'.join(tabulate.markdown(table) for table in tables(result)))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
