r"""Moving digits: a video data set that is generated locally in seconds.

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
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int, UInt8

from mgjax import environment
from mgjax.cli import ArgumentParser, ConfigError, guard
from mgjax.data import child_process
from mgjax.progress import Progress

NAME = 'moving_digits'
VERSION = '1.0.0'
FPS = 30
MAX_VIDEOS = 50_000

MOTIONS = (
  'right',
  'left',
  'down',
  'up',
  'clockwise',
  'counter_clockwise',
  'grow',
  'shrink',
  'slide_then_spin',
  'spin_then_slide',
  'speed_up',
  'slow_down',
  'swing_1',
  'swing_2',
  'swing_3',
  'swing_4',
)

# A motion on the left is made by playing the one on the right backwards: the
# pair then has the same frames by construction.
_REVERSED = {
  'left': 'right',
  'up': 'down',
  'counter_clockwise': 'clockwise',
  'shrink': 'grow',
  'spin_then_slide': 'slide_then_spin',
  'slow_down': 'speed_up',
}

# Motions of the label set `digit_motion`. No rotation there: a digit that is
# seen at any angle is hard to read (6 and 9 are then the same).
_DIGIT_MOTIONS = ('right', 'left', 'down', 'up')

# Standard deviation of what is added to every coordinate at every frame, in
# sides (0.8 px of 80), turns and ranges of log size. Without it, how evenly the
# positions of an unordered set of frames are spaced tells the swings apart, and
# two neighbouring frames give the speed exactly.
_TREMOR = 0.01

# Sides of the smallest and the largest digit, as shares of the frame's side.
_MIN_SIZE = 15 / 80
_MAX_SIZE = 36 / 80


def class_names(labels: str) -> tuple[str, ...]:
  """Returns the class names of a label set, in the order of the labels."""
  if labels == 'motion':
    return MOTIONS
  if labels == 'digit_motion':
    return tuple(f'{d}_{m}' for d in range(10) for m in _DIGIT_MOTIONS)
  raise ConfigError(f"labels is '{labels}'; use 'motion' or 'digit_motion'.")


@dataclasses.dataclass(frozen=True)
class Spec:
  """What determines the data set, and nothing else does."""

  labels: str = 'motion'  # 'motion' or 'digit_motion'.
  num_train: int = 4000
  num_validation: int = 1000
  size_px: int = 80
  num_frames: int = 34
  seed: int = 0

  def __post_init__(self):
    class_names(self.labels)
    for field in ('num_train', 'num_validation'):
      if getattr(self, field) < 1:
        raise ConfigError(f'{field} is {getattr(self, field)}; use 1 or more.')
    if self.num_train + self.num_validation > MAX_VIDEOS:
      raise ConfigError(
        f'num_train + num_validation is '
        f'{self.num_train + self.num_validation}; use at most {MAX_VIDEOS}.'
      )
    if self.size_px % 2 or not 32 <= self.size_px <= 512:
      raise ConfigError(
        f'size_px is {self.size_px}; use an even number from 32 to 512.'
      )
    if not 8 <= self.num_frames <= 600:
      raise ConfigError(f'num_frames is {self.num_frames}; use 8 to 600.')
    if self.seed < 0:
      raise ConfigError(f'seed is {self.seed}; use 0 or more.')

  def num_videos(self, split: str) -> int:
    return {'train': self.num_train, 'validation': self.num_validation}[split]


CONFIGS = {
  'motion': Spec(),
  'motion_tiny': Spec(num_train=240, num_validation=64),
  'digit_motion': Spec(labels='digit_motion'),
}


def config_name(spec: Spec) -> str:
  """Returns the config's name: a known one, or one that tells every field."""
  for name, known in CONFIGS.items():
    if spec == known:
      return name
  return (
    f'{spec.labels}_{spec.num_train}_{spec.num_validation}'
    f'_{spec.size_px}px_{spec.num_frames}f_seed{spec.seed}'
  )


# ---- What a clip shows ----


class Trajectory(NamedTuple):
  """The digit at every frame; all values lie in [0, 1) and wrap around.

  The tremor takes log size a little outside.
  """

  x: Float[np.ndarray, ' T']  # Centre, in sides of the frame, to the right.
  y: Float[np.ndarray, ' T']  # Centre, in sides of the frame, downwards.
  turn: Float[np.ndarray, ' T']  # Angle in turns, clockwise.
  size: Float[np.ndarray, ' T']  # Log size: 0 is the smallest, 1 the largest.


def _path(
  motion: str, num_frames: int, rng: np.random.Generator
) -> Float[np.ndarray, '4 T']:
  """Returns the displacement of (x, y, turn, size) from a start at 0."""
  u = np.linspace(0, 1, num_frames)
  path = np.zeros((4, num_frames))
  # Every amount is drawn in every class, so that no two classes differ in
  # how they use the generator.
  slide = rng.uniform(0.4, 1.0)  # Sides of the frame per video.
  spin = rng.uniform(0.5, 1.25)  # Turns per video.
  growth = rng.uniform(0.6, 1.2)  # Ranges of log size per video.
  tilt = rng.uniform(-10, 10) / 360  # Turns off the axis.
  quarter = rng.integers(4)
  sense = rng.choice((-1.0, 1.0))
  middle = rng.uniform(0.45, 0.55)
  amplitude = 0.15 * (0.4 / 0.15) ** rng.uniform()  # End to end, in sides.
  phase = rng.uniform()
  # Not quite a whole number: frames of a whole one would repeat exactly, and
  # the repetition be visible in an unordered set of frames.
  detune = rng.uniform(-0.15, 0.15)

  def along(turns):
    angle = 2 * np.pi * (turns + tilt)
    return np.array([[np.cos(angle)], [np.sin(angle)]])

  match motion:
    case 'right':
      path[:2] = along(0) * slide * u
    case 'down':
      path[:2] = along(0.25) * slide * u
    case 'clockwise':
      path[2] = spin * u
    case 'grow':
      path[3] = growth * u
    case 'slide_then_spin':
      path[:2] = along(quarter / 4) * slide * np.minimum(u, middle)
      # Twice the pace: half a video must suffice to see the sense.
      path[2] = sense * 2 * spin * np.maximum(u - middle, 0)
    case 'speed_up':
      path[:2] = along(quarter / 4) * slide * u**2
    case 'swing_1' | 'swing_2' | 'swing_3' | 'swing_4':
      swings = int(motion[-1]) + detune
      # A zigzag: in a sine, curvature alone would give the number away.
      wave = 4 * np.abs((swings * u + phase) % 1.0 - 0.5) - 1
      path[:2] = along((quarter + 0.5) / 4) * amplitude / 2 * wave
    case _:
      raise ConfigError(f"Motion is '{motion}'; expected one of {MOTIONS}.")
  return path


def trajectory(
  motion: str, num_frames: int, rng: np.random.Generator
) -> Trajectory:
  """Draws a trajectory of a class.

  The start is uniform in all four coordinates and independent of the path,
  and all four wrap around, so every frame of every class is uniform as well.
  Log size wraps from the largest to the smallest digit.

  Args:
    motion: One of MOTIONS.
    num_frames: T.
    rng: Source of all randomness.

  Raises:
    ConfigError: If the motion is unknown.
  """
  start = rng.uniform(size=(4, 1))
  path = _path(_REVERSED.get(motion, motion), num_frames, rng)
  if motion in _REVERSED:
    path = path[:, ::-1]
  path = (start + path) % 1.0 + rng.normal(scale=_TREMOR, size=path.shape)
  # Size does not wrap a second time: a digit of about the largest size would
  # flicker between the largest and the smallest.
  path[:3] %= 1.0
  return Trajectory(*path)


@functools.cache
def _digits() -> tuple[UInt8[np.ndarray, 'N 8 8'], Int[np.ndarray, ' N']]:
  """Returns scikit-learn's digits, values 0..16, and what they show."""
  from sklearn import datasets  # A second to import; only makers need it.

  digits = datasets.load_digits()
  return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def glyph_indices(
  split: str, digit: int | None = None
) -> Int[np.ndarray, ' N']:
  """Returns which of scikit-learn's digits a split draws from.

  Args:
    split: 'train' (four fifths of the digits) or 'validation' (the others).
    digit: Only those that show this digit.
  """
  _, targets = _digits()
  order = np.random.default_rng(0).permutation(len(targets))
  num_train = len(targets) * 4 // 5
  order = {'train': order[:num_train], 'validation': order[num_train:]}[split]
  return order if digit is None else order[targets[order] == digit]


def _rng(spec: Spec, split: str, *stream: int) -> np.random.Generator:
  split_id = ('train', 'validation').index(split)
  return np.random.default_rng([spec.seed, split_id, *stream])


def label_of(spec: Spec, split: str, index: int) -> int:
  """Returns the label of a clip; classes are balanced, their order random.

  Labels are dealt in shuffled rounds of all classes, so a label depends on
  the index but cannot be computed from it by counting.
  """
  num_classes = len(class_names(spec.labels))
  deal, position = divmod(index, num_classes)
  order = _rng(spec, split, 0, deal).permutation(num_classes)
  return int(order[position])


# ---- How it is drawn ----


def _texture(
  size_px: int, rng: np.random.Generator
) -> Float[np.ndarray, 'H W 3']:
  """Draws a smooth colour texture that wraps around, values 0..255."""
  texture = np.broadcast_to(
    rng.uniform(80, 175, size=3).astype(np.float32), (size_px, size_px, 3)
  )
  for cells, strength in ((4, 16), (10, 12)):
    noise = rng.normal(scale=strength, size=(cells, cells, 3))
    # Two cells of margin on each side: the reach of the cubic kernel.
    noise = np.pad(noise.astype(np.float32), ((2, 2), (2, 2), (0, 0)), 'wrap')
    cell_px = size_px / cells
    scale = np.array([[cell_px, 0, -2 * cell_px], [0, cell_px, -2 * cell_px]])
    texture = texture + cv2.warpAffine(
      noise, scale, (size_px, size_px), flags=cv2.INTER_CUBIC
    )
  return np.clip(texture, 20, 235)


# Copies of the digit move alike, a cell apart (y, x, in sides of the frame):
# a small crop, such as coarse grids take, still shows the motion.
_COPIES = np.array([(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 0)])

_GLYPH_PX = 32  # Side of the upscaled digit, without its margin.
_MARGIN_PX = 4


def _glyph(image: UInt8[np.ndarray, '8 8']) -> Float[np.ndarray, '40 40']:
  """Upscales a digit smoothly to a mask in 0..1 with an empty margin."""
  mask = np.pad(image.astype(np.float32) / 16, 1)  # 10 x 10 cells.
  side = _GLYPH_PX + 2 * _MARGIN_PX
  mask = cv2.resize(mask, (side, side), interpolation=cv2.INTER_CUBIC)
  mask = np.clip((mask - 0.15) / 0.5, 0, 1)
  return mask * mask * (3 - 2 * mask)


def render(
  path: Trajectory,
  *,
  glyph: UInt8[np.ndarray, '8 8'],
  size_px: int,
  rng: np.random.Generator,
) -> UInt8[np.ndarray, 'T H W 3']:
  """Draws a clip: copies of the digit on their paths over a drifting texture.

  Colours, texture and drift come from `rng`, whatever the motion.

  Args:
    path: Where the digit is, T frames.
    glyph: The digit, values 0..16.
    size_px: H = W.
    rng: Source of all randomness.
  """
  num_frames = len(path.x)
  texture = _texture(size_px, rng)
  mask = _glyph(glyph)
  # The digit's grey is far enough from the texture's to be seen anywhere.
  ground = texture.mean(axis=(0, 1))
  contrast = rng.uniform(60, 110) * (1 if ground.mean() < 127 else -1)
  colour = np.clip(ground + contrast + rng.normal(scale=15, size=3), 0, 255)
  colour = colour.astype(np.float32)
  # Pixels per frame, as far as 0.5 at 80 px and 34 frames. The drift is as
  # slow as the slowest digit, so that what moves must be told from what is
  # behind it.
  angle = rng.uniform(0, 2 * np.pi)
  drift = rng.uniform(0, 0.2) * size_px / num_frames
  drift = drift * np.array([[np.cos(angle)], [np.sin(angle)]])

  side_px = size_px * _MIN_SIZE * (_MAX_SIZE / _MIN_SIZE) ** path.size
  scale = side_px / _GLYPH_PX
  # A patch that holds the digit, with its margin, at any angle. It is drawn
  # in the frame's corner, and the frame then rolled to where the digit is,
  # so the digit crosses the frame's edges without a seam.
  half_px = int(np.ceil(side_px.max() * mask.shape[0] / _GLYPH_PX * 0.5**0.5))
  patch_px = 2 * half_px
  left = np.floor(path.x * size_px)
  top = np.floor(path.y * size_px)
  cos = scale * np.cos(2 * np.pi * path.turn)
  sin = scale * np.sin(2 * np.pi * path.turn)
  centre = (mask.shape[0] - 1) / 2
  to_x = path.x * size_px - left + half_px - cos * centre + sin * centre
  to_y = path.y * size_px - top + half_px - sin * centre - cos * centre
  affine = np.stack([cos, -sin, to_x, sin, cos, to_y], -1).reshape(-1, 2, 3)
  # Corner of each frame in a texture that is repeated once either way.
  corner = np.stack([left, top]) - half_px - drift * np.arange(num_frames)
  view_centre = (corner % size_px + (size_px - 1) / 2).T
  repeated = np.pad(
    (texture + 0.5).astype(np.uint8),
    ((0, size_px + 1),) * 2 + ((0, 0),),
    'wrap',
  )
  roll = np.stack([top, left], -1).astype(int) - half_px

  # From each copy of the digit to the next, in pixels.
  copies = (_COPIES + rng.uniform(-0.06, 0.06, _COPIES.shape)) * size_px
  steps = np.diff(copies.astype(int), axis=0, append=copies[-1:].astype(int))

  frames = np.empty((num_frames, size_px, size_px, 3), np.uint8)
  colours = np.broadcast_to(colour + 0.5, (patch_px, patch_px, 3)).copy()
  for t in range(num_frames):
    frame = cv2.getRectSubPix(repeated, (size_px, size_px), view_centre[t])
    weight = cv2.warpAffine(mask, affine[t], (patch_px, patch_px))
    patch = frame[:patch_px, :patch_px]
    for step in steps:
      patch[:] = cv2.blendLinear(
        colours, patch.astype(np.float32), weight, 1 - weight
      )
      frame[:] = np.roll(frame, -step, (0, 1))
    frames[t] = np.roll(frame, roll[t] + steps.sum(0), (0, 1))
  return frames


def encode(frames: UInt8[np.ndarray, 'T H W 3']) -> bytes:
  """Encodes frames as an H.264 mp4; the same frames give the same bytes.

  Short groups of pictures and `fastdecode` make random access cheap: most
  of the time of training on small clips is decoding.
  """
  _, height, width, _ = frames.shape
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format='mp4') as container:
    stream = container.add_stream('libx264', rate=FPS)
    stream.width, stream.height = width, height
    stream.pix_fmt = 'yuv420p'
    stream.thread_count = 1
    stream.options = {
      'crf': '23',
      'preset': 'veryfast',
      'tune': 'fastdecode',
      'g': '16',
      # x264's look-ahead reads memory that it has not set: the same clip came
      # out different in 12 of 1500 encodings, with B-frames in half of them.
      # Without look-ahead: in 0 of 1500.
      'bf': '0',
      'x264-params': 'rc-lookahead=0:mbtree=0:scenecut=0',
    }
    for image in frames:
      planes = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)
      frame = av.VideoFrame.from_ndarray(planes, format='yuv420p')
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return buffer.getvalue()


class Clip(NamedTuple):
  """An example and what it was made from."""

  id: str
  label: int
  motion: str
  glyph: int  # Index among scikit-learn's digits.
  path: Trajectory
  frames: UInt8[np.ndarray, 'T H W 3']


def make_clip(spec: Spec, split: str, index: int) -> Clip:
  """Draws clip `index` of a split: a function of its arguments only."""
  label = label_of(spec, split, index)
  rng = _rng(spec, split, 1, index)
  if spec.labels == 'motion':
    motion, digit = MOTIONS[label], None
  else:
    digit, motion = divmod(label, len(_DIGIT_MOTIONS))
    motion = _DIGIT_MOTIONS[motion]
  path = trajectory(motion, spec.num_frames, rng)
  if digit is not None:  # Upright, up to 30 degrees: see _DIGIT_MOTIONS.
    path = path._replace(turn=(path.turn - 0.5) / 6 % 1.0)
  glyph = int(rng.choice(glyph_indices(split, digit)))
  frames = render(
    path, glyph=_digits()[0][glyph], size_px=spec.size_px, rng=rng
  )
  return Clip(f'{split}_{index:05d}', label, motion, glyph, path, frames)


def _make_example(spec: Spec, split: str, index: int) -> dict[str, Any]:
  clip = make_clip(spec, split, index)
  return {'video': encode(clip.frames), 'label': clip.label, 'id': clip.id}


# ---- The TFDS data set ----


@dataclasses.dataclass(kw_only=True)
class Config(tfds.core.BuilderConfig):
  """A named Spec."""

  spec: Spec = Spec()


# Not in TFDS's registry: `tfds.load` needs TensorFlow, and this module is
# loaded twice where it is run as a program.
class MovingDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Videos of one moving digit, labelled with its motion."""

  name = NAME
  VERSION = tfds.core.Version(VERSION)
  BUILDER_CONFIGS = [
    Config(name=name, description=str(spec), spec=spec)
    for name, spec in CONFIGS.items()
  ]
  # Maps (spec, split, index) to examples; `prepare` replaces it with a pool.
  map_examples = functools.partial(itertools.starmap, _make_example)

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
    return {
      split: self._generate_examples(split) for split in ('train', 'validation')
    }

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    spec = self.builder_config.spec
    arguments = ((spec, split, i) for i in range(spec.num_videos(split)))
    for example in self.map_examples(arguments):
      yield example['id'], example


def _make_example_of(arguments: tuple[Spec, str, int]) -> dict[str, Any]:
  return _make_example(*arguments)


def _start_worker() -> None:
  cv2.setNumThreads(1)
  child_process.start()


@contextlib.contextmanager
def _example_map(num_workers: int):
  """Yields a function that makes examples in parallel, in order."""
  if num_workers == 1:
    yield functools.partial(map, _make_example_of)
    return
  # Not fork: the parent may have threads (TFDS, JAX), which a fork breaks.
  context = multiprocessing.get_context('spawn')
  child_process.before_start()
  with context.Pool(num_workers, initializer=_start_worker) as pool:
    yield functools.partial(pool.imap, _make_example_of, chunksize=8)


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
    ConfigError: If the name is unknown or num_workers is negative.
  """
  if isinstance(spec, str):
    if spec not in CONFIGS:
      raise ConfigError(f"config is '{spec}'; use one of {', '.join(CONFIGS)}.")
    spec = CONFIGS[spec]
  if num_workers < 0:
    raise ConfigError(f'workers is {num_workers}; use 0 (all cores) or more.')
  if not num_workers:
    # A process takes two seconds to start, in which one makes 150 clips.
    num_videos = spec.num_train + spec.num_validation
    num_workers = min(environment.num_cpus(), 1 + num_videos // 400)
  name = config_name(spec)
  config_dir = pathlib.Path(out_dir) / NAME / name
  data_dir = config_dir / VERSION

  def report(message: str) -> None:
    if progress:
      print(message, file=sys.stderr)

  if (data_dir / 'dataset_info.json').exists():
    report(f'{NAME}/{name} is already prepared: {data_dir}')
    return str(data_dir)
  for leftover in config_dir.glob('*incomplete*'):
    shutil.rmtree(leftover)
  shutil.rmtree(data_dir, ignore_errors=True)

  config_dir.mkdir(parents=True, exist_ok=True)
  builder = MovingDigits(
    data_dir=str(out_dir),
    # TFDS refuses another object under the name of a config it knows.
    config=name if name in CONFIGS else Config(name=name, spec=spec),
    file_format='array_record',
  )
  tfds.disable_progress_bar()
  bar = Progress(
    spec.num_train + spec.num_validation, unit='clip', quiet=not progress
  )
  with (
    contextlib.closing(bar),
    _example_map(num_workers) as map_examples,
  ):
    counter = itertools.count(1)

    def map_and_count(arguments: Iterable[tuple[Spec, str, int]]):
      for example in map_examples(arguments):
        num_done = next(counter)
        bar.update(num_done, bar.time_left(num_done))
        yield example

    builder.map_examples = map_and_count
    with (
      contextlib.redirect_stdout(io.StringIO()),  # TFDS chats.
      tempfile.TemporaryDirectory() as no_downloads,
    ):
      builder.download_and_prepare(download_dir=no_downloads)
  report(f'Prepared {data_dir}; use --config.data.name={NAME}/{name}')
  return str(data_dir)


# ---- Command line ----


def main(argv: Sequence[str] | None = None) -> None:
  """Prepares the data set that the arguments describe."""
  parser = ArgumentParser(
    prog='python -m mgjax.data.moving_digits',
    description=__doc__,
  )
  parser.add_argument(
    '--out', default='data', help='folder of prepared data sets (%(default)s)'
  )
  parser.add_argument(
    '--config', default='motion', choices=CONFIGS, help='(%(default)s)'
  )
  for field, text in (
    ('labels', 'motion or digit_motion'),
    ('num_train', 'training clips'),
    ('num_validation', 'validation clips'),
    ('size_px', 'side of the frames'),
    ('num_frames', 'frames of a clip'),
    ('seed', 'of everything that is drawn'),
  ):
    kind = type(getattr(Spec(), field))
    parser.add_argument(
      f'--{field}', type=kind, help=f"{text} (default: the config's)"
    )
  parser.add_argument(
    '--workers', type=int, default=0, help='processes; 0: one per core'
  )
  args = parser.parse_args(argv)
  changes = {
    field.name: getattr(args, field.name)
    for field in dataclasses.fields(Spec)
    if getattr(args, field.name) is not None
  }
  try:
    spec = dataclasses.replace(CONFIGS[args.config], **changes)
    prepare(args.out, spec, num_workers=args.workers)
  except (ConfigError, OSError) as error:
    parser.error(str(error))


if __name__ == '__main__':
  sys.exit(guard(main))
