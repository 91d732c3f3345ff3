r"""Moving digits: a video data set that is generated locally.

python -m mgjax.data.moving_digits --out=data

Four copies of a handwritten digit move alike over a drifting texture; the label
is their motion.
The clips are real H.264 in a TFDS data set (ArrayRecord), so they take the
same path as any other video data set. Nothing is downloaded: the digits are
the 8 x 8 ones that scikit-learn carries.

The label is in the motion only. Position, angle and size of the digit have
the same distribution in every class at every frame (uniform, independent of
each other), and most classes come in pairs that are each other's time
reversal, so neither a frame nor an unordered set of frames tells a pair apart:

  right, left; down, up; clockwise, counter_clockwise; grow, shrink
      A steady motion: two frames suffice.
  slide_then_spin, spin_then_slide; speed_up, slow_down
      An order: both halves of the video are needed.
  swing_1, swing_2, swing_3, swing_4
      A number of swings along a diagonal: the amplitude is random, so speed
      does not give the number away; span and enough frames do.

With --config=motion_long_tail the most frequent class has a hundred times the
training clips of the rarest; validation and test stay balanced.

No two splits share a digit: `train` draws from four fifths of scikit-learn's,
`validation` and `test` from a tenth each. Version 1.0.0 had the same training
clips, gave both tenths to `validation`, and had no `test`. A prepared 1.0.0
stays readable: --config.data.name=moving_digits/motion:1.0.0.

Encoding takes the time. `motion_demo` is `motion` without its test clips, which
a demo does not need.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import contextlib
import dataclasses
import functools
import io
import itertools
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import flags

from mgjax import cli, environment, files
from mgjax.data import child_process
from mgjax.data.digits import Spec, class_names, make_example
from mgjax.errors import ConfigError
from mgjax.progress import Progress

NAME = 'moving_digits'
VERSION = '2.0.0'

CONFIGS = {
  'motion': Spec(),
  'motion_demo': Spec(num_test=0),
  'motion_tiny': Spec(num_train=240, num_validation=64, num_test=64),
  'digit_motion': Spec(labels='digit_motion'),
  'motion_long_tail': Spec(imbalance=100.0),
  # For larger crops: all sets are a quarter larger than the clips of them.
  'motion_100px': Spec(size_px=100),
  'motion_120px': Spec(size_px=120),
}


def config_name(spec: Spec) -> str:
  """Returns the name under which the data set of a spec is stored.

  It is the name in CONFIGS, or one that has every field in it.
  """
  for name, known in CONFIGS.items():
    if spec == known:
      return name
  uneven = f'_imbalance{spec.imbalance:g}' if spec.imbalance > 1 else ''
  return (
    f'{spec.labels}_{spec.num_train}_{spec.num_validation}_{spec.num_test}'
    f'_{spec.size_px}px_{spec.num_frames}f_seed{spec.seed}{uneven}'
  )


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
  """A named Spec."""

  spec: Spec = Spec()


# Not in TFDS's registry: `tfds.load` needs TensorFlow, and a program that
# imports this module may also have run it (`python -m`), which loads it twice.
class MovingDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Videos of one moving digit, labelled with its motion."""

  name = NAME
  VERSION = tfds.core.Version(VERSION)
  BUILDER_CONFIGS = [
    Config(name=name, description=str(spec), spec=spec)
    for name, spec in CONFIGS.items()
  ]
  # As the builtin `map`; `prepare` sets it, to use all cores.
  map: Callable

  def _info(self) -> tfds.core.DatasetInfo:
    names = class_names(self.builder_config.spec.labels)
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          # Text holds raw bytes; features.Video would need TensorFlow.
          'video': tfds.features.Text(),
          'label': tfds.features.ClassLabel(names=names),
          'id': tfds.features.Text(),
        }
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing to download.
    splits = self.builder_config.spec.splits
    return {split: self._generate_examples(split) for split in splits}

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    spec = self.builder_config.spec
    make = functools.partial(make_example, spec, split)
    for example in self.map(make, range(spec.splits[split])):
      yield example['id'], example


@contextlib.contextmanager
def _map_in_processes(num_workers: int) -> Iterator[Callable]:
  """Yields what works as the builtin `map` does, in processes.

  Results come in the order of the arguments, however many processes there are.
  """
  if num_workers == 1:
    yield map
    return
  # Not fork: the parent may have threads (TFDS, JAX), which a fork breaks.
  context = multiprocessing.get_context('spawn')
  child_process.before_start()
  with context.Pool(num_workers, initializer=child_process.start) as pool:
    yield functools.partial(pool.imap, chunksize=8)


def prepare(
  out_dir: str | os.PathLike[str] = 'data',
  spec: Spec | str = 'motion',
  *,
  num_workers: int = 0,
  progress: bool = True,
) -> str:
  """Writes the data set, unless it is there already.

  Every clip is a function of (spec, split, index), so the number of workers
  changes nothing. A killed run leaves an `incomplete` folder behind, which
  the next one removes.

  Args:
    out_dir: Folder of prepared data sets (`config.data.dir`).
    spec: What to make; a string is a name in CONFIGS.
    num_workers: Processes; 0: one per core, fewer for a small data set.
    progress: Whether to show a progress bar and to report on stderr.

  Returns:
    Folder for `tfds.builder_from_directory`.

  Raises:
    ConfigError: The name is unknown, or nothing can be written to the folder.
  """
  if isinstance(spec, str):
    if spec not in CONFIGS:
      raise ConfigError(f"config is '{spec}'; use one of {', '.join(CONFIGS)}.")
    spec = CONFIGS[spec]
  if not num_workers:
    # A process takes seconds to start, in which another makes many clips.
    num_videos = sum(spec.splits.values())
    num_workers = min(environment.num_cpus(), 1 + num_videos // 400)
  name = config_name(spec)
  config_dir = pathlib.Path(out_dir) / NAME / name
  data_dir = config_dir / VERSION
  said = f'{NAME}/{name} is already prepared: {data_dir}'
  if not (data_dir / 'dataset_info.json').exists():
    for leftover in config_dir.glob('*incomplete*'):
      shutil.rmtree(leftover)
    shutil.rmtree(data_dir, ignore_errors=True)
    files.make_folder(config_dir, f'--out={out_dir}')
    _generate(out_dir, spec, num_workers=num_workers, progress=progress)
    said = f'Prepared {data_dir}; use --config.data.name={NAME}/{name}'
  if progress:
    print(said, file=sys.stderr)
  return str(data_dir)


def _generate(
  out_dir: str | os.PathLike[str],
  spec: Spec,
  *,
  num_workers: int,
  progress: bool,
) -> None:
  """Makes all clips and writes them as TFDS does; see `prepare`."""
  name = config_name(spec)
  builder = MovingDigits(
    data_dir=str(out_dir),
    # TFDS refuses another object under the name of a config it knows.
    config=name if name in CONFIGS else Config(name=name, spec=spec),
    file_format='array_record',
  )
  tfds.disable_progress_bar()
  bar = Progress(sum(spec.splits.values()), unit='clip', quiet=not progress)
  counter = itertools.count(1)

  def map_and_count(make: Callable, numbers: range) -> Iterator[Any]:
    for example in map_numbers(make, numbers):
      num_done = next(counter)
      bar.update(num_done, bar.time_left(num_done))
      yield example

  builder.map = map_and_count
  with (
    contextlib.closing(bar),
    _map_in_processes(num_workers) as map_numbers,
    # TFDS prints what it does; the bar says enough.
    contextlib.redirect_stdout(io.StringIO()),
    # It insists on a folder for downloads.
    tempfile.TemporaryDirectory() as no_downloads,
  ):
    builder.download_and_prepare(download_dir=no_downloads)


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('out', str, 'data', 'Folder of prepared data sets.')
  flag('config', [*CONFIGS], 'motion', 'What to make.')
  for field, kind, text in (
    ('labels', str, 'motion or digit_motion'),
    ('num_train', int, 'training clips'),
    ('num_validation', int, 'validation clips'),
    ('num_test', int, 'test clips; 0: no such split'),
    ('size_px', int, 'side of the frames'),
    ('num_frames', int, 'frames of a clip'),
    ('seed', int, 'of everything that is drawn'),
    (
      *('imbalance', float),
      'training clips of the most frequent class for one of the rarest',
    ),
  ):
    flag(field, kind, None, f"{text} (default: the config's)")
  flag('workers', int, 0, 'Processes; 0: one per core.', 0)


def main(values: flags.FlagValues) -> None:
  """Prepares the data set that the flags describe."""
  fields = {f.name: values[f.name].value for f in dataclasses.fields(Spec)}
  changes = {name: v for name, v in fields.items() if v is not None}
  spec = dataclasses.replace(CONFIGS[values.config], **changes)
  prepare(values.out, spec, num_workers=values.workers)


if __name__ == '__main__':
  sys.exit(
    cli.run('mgjax.data.moving_digits', define_flags, takes_config=False)
  )
