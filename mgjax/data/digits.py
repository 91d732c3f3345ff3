"""Draws the clips of mgjax.data.moving_digits, whose docstring describes them.

A clip is a function of (spec, split, index) alone, and so are its encoded
bytes. The order in which random numbers are drawn is therefore part of the data
set: another order would make another one.
"""

import dataclasses
import functools
import io
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn import datasets

from mgjax.data import balance
from mgjax.errors import ConfigError

# Of the whole process: clips are drawn in parallel by processes.
cv2.setNumThreads(1)

FPS = 30
MAX_VIDEOS = 50_000
SPLITS = ('train', 'validation', 'test')

# In the order of the labels.
MOTIONS = tuple(
  'right left down up clockwise counter_clockwise grow shrink slide_then_spin '
  'spin_then_slide speed_up slow_down swing_1 swing_2 swing_3 swing_4'.split()
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

# Motions of the label set `digit_motion`. Rotations are not among them: a digit
# that is seen at any angle is hard to read (6 and 9 are then the same).
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
  """Returns the class names of a label set, in the order of the labels.

  Args:
    labels: 'motion' or 'digit_motion'.

  Raises:
    ConfigError: It is another word.
  """
  if labels == 'motion':
    return MOTIONS
  if labels == 'digit_motion':
    return tuple(f'{d}_{m}' for d in range(10) for m in _DIGIT_MOTIONS)
  raise ConfigError(f"labels is '{labels}'; use 'motion' or 'digit_motion'.")


@dataclasses.dataclass(frozen=True)
class Spec:
  """What determines the data set, and nothing else does.

  Raises:
    ConfigError: A value is out of its range.
  """

  labels: str = 'motion'  # 'motion' or 'digit_motion'.
  num_train: int = 4000  # Clips, from 1; MAX_VIDEOS of all splits.
  num_validation: int = 1000
  num_test: int = 10_000  # From 0: no such split.
  size_px: int = 80  # H = W: even, from 32 to 512.
  num_frames: int = 34  # From 8 to 600, at FPS.
  seed: int = 0  # From 0.
  # Training clips of the most frequent class for one of the rarest.
  imbalance: float = 1.0

  def __post_init__(self):
    class_names(self.labels)
    lowest = {'num_train': 1, 'num_validation': 1, 'num_test': 0, 'seed': 0}
    for field, least in lowest.items():
      if (value := getattr(self, field)) < least:
        raise ConfigError(f'{field} is {value}; use {least} or more.')
    if (num_videos := sum(self.splits.values())) > MAX_VIDEOS:
      raise ConfigError(
        f'num_train + num_validation + num_test is {num_videos}; '
        f'use at most {MAX_VIDEOS}.'
      )
    if self.size_px % 2 or not 32 <= self.size_px <= 512:
      raise ConfigError(
        f'size_px is {self.size_px}; use an even number from 32 to 512.'
      )
    ranges = {'num_frames': (8, 600), 'imbalance': (1, self.num_train)}
    for field, (least, most) in ranges.items():
      if not least <= (value := getattr(self, field)) <= most:
        raise ConfigError(f'{field} is {value}; use {least} to {most}.')

  @property
  def splits(self) -> dict[str, int]:
    """Number of clips of each split that has some, by its name in SPLITS."""
    numbers = {split: getattr(self, f'num_{split}') for split in SPLITS}
    return {split: number for split, number in numbers.items() if number}


class Trajectory(NamedTuple):
  """The digit at every frame; all values lie in [0, 1) and wrap around.

  Only log size may lie a little outside, by the tremor.
  """

  x: Float[np.ndarray, ' T']  # Centre, in sides of the frame, to the right.
  y: Float[np.ndarray, ' T']  # Centre, in sides of the frame, downwards.
  turn: Float[np.ndarray, ' T']  # Angle in turns, clockwise.
  size: Float[np.ndarray, ' T']  # Log size: 0 is the smallest, 1 the largest.


def _path(
  motion: str, num_frames: int, rng: np.random.Generator
) -> Float[np.ndarray, '4 T']:
  """Draws the displacement of (x, y, turn, size) from a start at 0.

  Raises:
    ConfigError: There is no such motion.
  """
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
  digits = datasets.load_digits()
  return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def glyph_indices(
  split: str, digit: int | None = None
) -> Int[np.ndarray, ' N']:
  """Returns which of scikit-learn's digits a split draws from.

  Args:
    split: 'train' (four fifths of the digits); 'validation', 'test' (a tenth).
    digit: Only those that show this digit; None: all.
  """
  _, targets = _digits()
  order = np.random.default_rng(0).permutation(len(targets))
  ends = len(targets) * 4 // 5, len(targets) * 9 // 10
  order = np.split(order, ends)[SPLITS.index(split)]
  return order if digit is None else order[targets[order] == digit]


def _rng(spec: Spec, split: str, *stream: int) -> np.random.Generator:
  """Returns a generator of its own for every (seed, split, stream)."""
  return np.random.default_rng([spec.seed, SPLITS.index(split), *stream])


def label_of(spec: Spec, split: str, index: int) -> int:
  """Returns the label of a clip.

  Labels are dealt in shuffled rounds of all classes: the classes are balanced,
  and counting clips does not give their labels away.

  Args:
    spec: Has the label set, the seed and the imbalance.
    split: One of SPLITS.
    index: Number of the clip in its split, from 0.
  """
  num_classes = len(class_names(spec.labels))
  if split == 'train' and spec.imbalance > 1:
    return int(_long_tail(spec)[index])
  deal, position = divmod(index, num_classes)
  order = _rng(spec, split, 0, deal).permutation(num_classes)
  return int(order[position])


@functools.lru_cache(maxsize=1)
def _long_tail(spec: Spec) -> Int[np.ndarray, ' N']:
  """Returns the labels of a training split whose classes differ in size."""
  num_classes = len(class_names(spec.labels))
  rng = _rng(spec, 'train', 2)
  return balance.long_tail(spec.num_train, num_classes, spec.imbalance, rng)


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

  Returns:
    The frames, RGB, 0..255.
  """
  num_frames = len(path.x)
  texture = _texture(size_px, rng)
  colour = _digit_colour(texture, rng)
  drift = _drift(size_px, num_frames, rng)
  copies = (_COPIES + rng.uniform(-0.06, 0.06, _COPIES.shape)) * size_px
  # From each copy of the digit to the next, in pixels.
  steps = np.diff(copies.astype(int), axis=0, append=copies[-1:].astype(int))

  mask = _glyph(glyph)
  affine, corner, half_px = _patches(path, mask.shape[0], size_px)
  patch_px = 2 * half_px
  # The texture moves under the corner in which the digit is drawn. It is
  # repeated once either way, so that every view lies within it.
  view = corner - half_px - drift * np.arange(num_frames)
  view_centre = (view % size_px + (size_px - 1) / 2).T
  repeated = np.pad(
    (texture + 0.5).astype(np.uint8),
    ((0, size_px + 1),) * 2 + ((0, 0),),
    'wrap',
  )
  roll = corner[::-1].T.astype(int) - half_px

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
      # The frame moves under the patch, to where the next copy is.
      frame[:] = np.roll(frame, -step, (0, 1))
    frames[t] = np.roll(frame, roll[t] + steps.sum(0), (0, 1))
  return frames


def _digit_colour(
  texture: Float[np.ndarray, 'H W 3'], rng: np.random.Generator
) -> Float[np.ndarray, '3']:
  """Draws a colour that is far enough from the texture's to be seen anywhere.

  Returns:
    Red, green and blue, 0..255, float32.
  """
  ground = texture.mean(axis=(0, 1))
  contrast = rng.uniform(60, 110) * (1 if ground.mean() < 127 else -1)
  colour = np.clip(ground + contrast + rng.normal(scale=15, size=3), 0, 255)
  return colour.astype(np.float32)


def _drift(
  size_px: int, num_frames: int, rng: np.random.Generator
) -> Float[np.ndarray, '2 1']:
  """Draws how far the texture moves per frame: x and y, in pixels.

  At 80 px and 34 frames it is up to 0.5. That is as slow as the slowest digit:
  what moves must be told from what is behind it.
  """
  angle = rng.uniform(0, 2 * np.pi)
  length_px = rng.uniform(0, 0.2) * size_px / num_frames
  return length_px * np.array([[np.cos(angle)], [np.sin(angle)]])


def _patches(
  path: Trajectory, mask_px: int, size_px: int
) -> tuple[Float[np.ndarray, 'T 2 3'], Float[np.ndarray, '2 T'], int]:
  """Places the digit in a patch that holds it at any angle and size.

  The patch is drawn in the corner of the frame, and the frame then rolled to
  where the digit is. So the digit crosses the edges of the frame without a
  seam.

  Args:
    path: Where the digit is, T frames.
    mask_px: Side of the digit's mask, with its margin.
    size_px: Side of the frame.

  Returns:
    Maps from the mask to the patch; the whole pixels (x, y) of the frame at
    which the digit's centre is; and half the side of the patch in pixels.
  """
  side_px = size_px * _MIN_SIZE * (_MAX_SIZE / _MIN_SIZE) ** path.size
  scale = side_px / _GLYPH_PX
  # Half the diagonal of the largest mask.
  half_px = int(np.ceil(side_px.max() * mask_px / _GLYPH_PX * 0.5**0.5))
  left = np.floor(path.x * size_px)
  top = np.floor(path.y * size_px)
  cos = scale * np.cos(2 * np.pi * path.turn)
  sin = scale * np.sin(2 * np.pi * path.turn)
  centre = (mask_px - 1) / 2
  to_x = path.x * size_px - left + half_px - cos * centre + sin * centre
  to_y = path.y * size_px - top + half_px - sin * centre - cos * centre
  affine = np.stack([cos, -sin, to_x, sin, cos, to_y], -1).reshape(-1, 2, 3)
  return affine, np.stack([left, top]), half_px


def encode(frames: UInt8[np.ndarray, 'T H W 3']) -> bytes:
  """Encodes frames as an H.264 mp4; the same frames give the same bytes.

  Short groups of pictures and `fastdecode` make random access cheap: most
  of the time of training on small clips is decoding.

  Args:
    frames: RGB, 0..255, at FPS.
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
      # x264's look-ahead reads memory that it has not set: now and then the
      # same clip comes out different, more often with B-frames. Without
      # look-ahead it does not.
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
  """Draws a clip: a function of the arguments only.

  Args:
    spec: What determines the data set; the numbers of clips do not matter.
    split: One of SPLITS.
    index: Number of the clip in its split, from 0.
  """
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


def make_example(spec: Spec, split: str, index: int) -> dict[str, Any]:
  """Returns video, label and id of a clip, see `make_clip`."""
  clip = make_clip(spec, split, index)
  return {'video': encode(clip.frames), 'label': clip.label, 'id': clip.id}
