"""RandAugment's operations in the form of timm, which grow with the magnitude.

What "rand-m7-n4-mstd0.5-inc1" names, and VideoMAE and V-JEPA 2 train with. A
picture has whole numbers from 0 to 255 before and after each operation, as the
Python Imaging Library has, whose results these are; a frame is a picture, so
that histograms and means are its own. What is drawn is one for all of a clip.

Source: huggingface/pytorch-image-models aa4b585, timm/data/auto_augment.py
  (_RAND_INCREASING_TRANSFORMS); the same in MCG-NJU/VideoMAE 14ef8d8,
  rand_augment.py, and facebookresearch/vjepa2 c2963a4. Pillow 13, ImageOps,
  ImageEnhance.
Differs: Bilinear, where VideoMAE has bicubic and timm draws one of the two. The
  references change whole frames and crop them then; here crops are changed.
"""

import math

import jax
import jax.numpy as jnp

from mgjax.step import pixel_operations as pixels
from mgjax.step.pixel_operations import PerClip, Video

# In the order of their numbers.
OPERATIONS = tuple(
  'auto_contrast equalize invert rotate posterize solarize solarize_add '
  'colour contrast brightness sharpness shear_x shear_y translate_x '
  'translate_y'.split()
)
# Of what lies outside the picture.
FILL = (128.0, 128.0, 128.0)

# At magnitude 10: degrees, slope, share of the side, distance of a factor
# from 1.
_ROTATE, _SHEAR, _TRANSLATE, _FACTOR = 30.0, 0.3, 0.45, 0.9
# Bits that are lost, levels by which the threshold falls, levels that are added
# to pixels below the middle.
_POSTERIZE, _SOLARIZE, _ADD, _MIDDLE = 4, 256, 110, 128


def apply_operation(
  video: Video, op: jax.Array, magnitude: PerClip, sign: PerClip
) -> Video:
  """Applies one of `OPERATIONS` to each clip.

  Args:
    video: RGB, whole numbers in 0..255.
    op: int [B], places in `OPERATIONS`; another number: nothing is done.
    magnitude: In [0, 10].
    sign: 1 or -1, of operations that have one.

  Returns:
    RGB, whole numbers in 0..255.
  """
  chosen = {name: op == i for i, name in enumerate(OPERATIONS)}
  level = magnitude / 10
  whole = lambda scale: jnp.floor(level * scale)
  factor = 1 + sign * _FACTOR * level
  changed = {
    'auto_contrast': lambda: _auto_contrast(video),
    'equalize': lambda: equalize(video),
    'invert': lambda: 255 - video,
    'posterize': lambda: pixels.posterize(
      video, _POSTERIZE - whole(_POSTERIZE)
    ),
    'solarize': lambda: pixels.solarize(video, _SOLARIZE - whole(_SOLARIZE)),
    'solarize_add': lambda: jnp.where(
      video < _MIDDLE,
      jnp.minimum(video + pixels.per_clip(whole(_ADD)), 255),
      video,
    ),
    'colour': lambda: _blend(_grey(video), video, factor),
    'contrast': lambda: _blend(
      jnp.round(_grey(video).mean((2, 3, 4), keepdims=True)), video, factor
    ),
    'brightness': lambda: _blend(jnp.zeros_like(video), video, factor),
    'sharpness': lambda: _blend(jnp.round(pixels.smooth(video)), video, factor),
  }
  result = video
  for name, change in changed.items():
    result = jnp.where(pixels.per_clip(chosen[name]), change(), result)
  height, width = video.shape[2:4]
  value = lambda name, scale: jnp.where(chosen[name], sign * scale * level, 0.0)
  shear_x, shear_y = value('shear_x', _SHEAR), value('shear_y', _SHEAR)
  # Slopes are counted from the upper left corner, not from the centre.
  return _whole(
    pixels.warp(
      result,
      angle=value('rotate', math.radians(_ROTATE)),
      shear_x=shear_x,
      shear_y=shear_y,
      shift_x=value('translate_x', _TRANSLATE * width) + shear_x * height / 2,
      shift_y=value('translate_y', _TRANSLATE * height) + shear_y * width / 2,
      fill=FILL,
      extends_edges=True,
    )
  )


def _whole(video: Video) -> Video:
  """Cuts off what is behind the point, as Pillow does."""
  # A hair, so that what is whole but for float32 stays.
  return jnp.floor(video + 1e-3)


def _blend(start: jax.Array, video: Video, factor: PerClip) -> Video:
  """From `start` (factor 0) to the video (factor 1) and beyond, cut off."""
  mixed = start + pixels.per_clip(factor) * (video - start)
  return _whole(jnp.clip(mixed, 0, 255))


def _grey(video: Video) -> jax.Array:
  """Grey of each pixel, whole numbers, [B, T, H, W, 1]."""
  # In the fixed point of Pillow's conversion; float32 has all of its bits.
  weights = jnp.array((19595, 38470, 7471), video.dtype)
  total = (video * weights).sum(-1, keepdims=True) + 2**15
  return jnp.floor(total / 2**16)


def _auto_contrast(video: Video) -> Video:
  """Stretches each channel of each frame to 0..255."""
  low = video.min((2, 3), keepdims=True)
  high = video.max((2, 3), keepdims=True)
  span = jnp.where(high > low, high - low, 255.0)
  stretched = _whole((video - low) * 255 / span)
  return jnp.where(high > low, stretched, video)


def equalize(video: Video) -> Video:
  """Makes the histogram of each channel of each frame flat.

  Args:
    video: RGB, whole numbers in 0..255.

  Source: Pillow 13, ImageOps.equalize.
  """
  # Histograms and tables as matrix products of digits to base 16: scatters and
  # gathers of all pixels are slow on accelerators. Frame by frame, since digits
  # take 32 times the memory of pixels.
  batch, frames, height, width, _ = video.shape
  pictures = video.transpose(1, 0, 4, 2, 3).reshape(frames, batch, 3, -1)

  def equalized(picture):
    digits = jnp.arange(16, dtype=video.dtype)
    high = (jnp.floor(picture / 16)[..., None] == digits).astype(video.dtype)
    low = (jnp.mod(picture, 16)[..., None] == digits).astype(video.dtype)
    histogram = jnp.einsum('bcpi,bcpj->bcij', high, low)
    table = _table(histogram.reshape(batch, 3, 256)).reshape(batch, 3, 16, 16)
    rows = jnp.einsum('bcpi,bcij->bcpj', high, table)
    return (rows * low).sum(-1)

  result = jax.lax.map(equalized, pictures)
  return result.reshape(frames, batch, 3, height, width).transpose(
    1, 0, 3, 4, 2
  )


def _table(histogram: jax.Array) -> jax.Array:
  """What each of 256 levels becomes: float [..., 256]."""
  levels = jnp.arange(256)
  used = histogram > 0
  last = jnp.where(used, levels, -1).max(-1, keepdims=True)
  of_last = jnp.where(levels == last, histogram, 0).sum(-1, keepdims=True)
  step = jnp.floor((histogram.sum(-1, keepdims=True) - of_last) / 255)
  before = jnp.cumsum(histogram, -1) - histogram
  safe = jnp.maximum(step, 1)
  table = jnp.floor((jnp.floor(step / 2) + before) / safe)
  plain = levels.astype(histogram.dtype)
  flat = (used.sum(-1, keepdims=True) <= 1) | (step == 0)
  return jnp.where(flat, plain, jnp.minimum(table, 255))
