"""What augmentation does to pixels, once its strength is known.

Functions of a batch of float videos and of one number per clip; what is drawn
at random is mgjax/step/augment.py's. All act clip by clip, so that a batch that
is cut over devices stays there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

# RGB, 0..255, and a number for each clip.
Video = Float[Array, 'B T H W 3']
PerClip = Float[Array, ' B']

# Weights of red, green and blue in a grey picture (ITU-R BT.601).
_GREY = (0.299, 0.587, 0.114)


def adjust_brightness(video: Video, factor: PerClip) -> Video:
  """Multiplies RGB, 0..255, by a factor per clip."""
  return _clip(video * per_clip(factor))


def adjust_contrast(video: Video, factor: PerClip) -> Video:
  """Multiplies the distance of RGB, 0..255, from the clip's mean grey."""
  mean = _grey(video).mean((1, 2, 3, 4), keepdims=True)
  return _clip(mean + (video - mean) * per_clip(factor))


def adjust_saturation(video: Video, factor: PerClip) -> Video:
  """Multiplies the distance of RGB, 0..255, from the pixel's grey."""
  grey = _grey(video)
  return _clip(grey + (video - grey) * per_clip(factor))


def turn_hue(video: Video, turns: PerClip) -> Video:
  """Turns the hue of RGB, 0..255, by a number of full turns per clip."""
  to_yiq = jnp.array(
    [_GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)]
  )
  angle = 2 * jnp.pi * turns
  zero, one = jnp.zeros_like(angle), jnp.ones_like(angle)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turn = jnp.array([[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]])
  matrix = jnp.einsum(
    'ij,jkb,kl->bil',
    jnp.linalg.inv(to_yiq),
    turn,
    to_yiq,
    precision='highest',
  )
  return _clip(jnp.einsum('bthwc,bdc->bthwd', video, matrix, precision='high'))


def sharpen(video: Video, factor: PerClip) -> Video:
  """Multiplies the distance of RGB, 0..255, from a smoothed picture."""
  smoothed = smooth(video)
  return _clip(smoothed + (video - smoothed) * per_clip(factor))


def smooth(video: Video) -> Video:
  """A weighted mean of RGB over 3 x 3 pixels.

  The outermost pixels have no neighbours to be smoothed with, and stay.
  """
  middle = video[:, :, 1:-1, 1:-1]
  height, width = video.shape[2:4]
  total = 4 * middle
  for dy in range(3):
    for dx in range(3):
      total += video[:, :, dy : height - 2 + dy, dx : width - 2 + dx]
  # 1 around 5 in the middle, over 13, as in the Python Imaging Library.
  return video.at[:, :, 1:-1, 1:-1].set(total / 13)


def auto_contrast(video: Video) -> Video:
  """Stretches each channel of each clip to 0..255."""
  low = video.min((1, 2, 3), keepdims=True)
  high = video.max((1, 2, 3), keepdims=True)
  scale = 255 / jnp.where(high > low, high - low, 255.0)
  return jnp.where(high > low, (video - low) * scale, video)


def posterize(video: Video, bits: PerClip) -> Video:
  """Keeps the first `bits` of the 8 bits of RGB, 0..255; whole numbers."""
  step = per_clip(2 ** (8 - bits))
  return jnp.floor(video / step) * step


def solarize(video: Video, threshold: PerClip) -> Video:
  """Inverts RGB, 0..255, that is not below a threshold per clip."""
  return jnp.where(video >= per_clip(threshold), 255 - video, video)


def warp(
  video: Video,
  *,
  angle: PerClip,
  shear_x: PerClip,
  shear_y: PerClip,
  shift_x: PerClip,
  shift_y: PerClip,
  fill: tuple[float, ...],
  extends_edges: bool = False,
) -> Video:
  """Rotates, shears and shifts each clip about its centre, bilinearly.

  The pixel at (x, y) from the centre comes from R S (x, y) + shift, with the
  rotation R by `angle` and the shear S = [[1, shear_x], [shear_y, 1]].

  Args:
    video: RGB, 0..255.
    angle: Radians.
    shear_x: Columns per row.
    shear_y: Rows per column.
    shift_x: Columns.
    shift_y: Rows.
    fill: RGB of what lies outside the picture.
    extends_edges: Whether the outermost pixels reach to the edge of the
      picture, half a pixel on; else they fade into the fill from their centres.
  """
  height, width = video.shape[2:4]
  y, x = jnp.meshgrid(
    jnp.arange(height) - (height - 1) / 2,
    jnp.arange(width) - (width - 1) / 2,
    indexing='ij',
  )
  column = lambda v: v[:, None, None]
  sheared_x = x + column(shear_x) * y
  sheared_y = y + column(shear_y) * x
  cos, sin = column(jnp.cos(angle)), column(jnp.sin(angle))
  from_x = cos * sheared_x - sin * sheared_y + column(shift_x)
  from_y = sin * sheared_x + cos * sheared_y + column(shift_y)
  return _sample(
    video,
    from_y + (height - 1) / 2,
    from_x + (width - 1) / 2,
    fill,
    extends_edges,
  )


def _sample(video, y, x, fill, extends_edges):
  """Reads [B, T, H, W, 3] at rows y and columns x, [B, H, W], bilinearly."""
  height, width = video.shape[2:4]
  y0, x0 = jnp.floor(y), jnp.floor(x)
  background = jnp.array(fill, video.dtype)
  # Relative to the fill, what lies outside is 0.
  flat = (video - background).reshape(*video.shape[:2], height * width, 3)
  result = 0.0
  for row, weight_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
    for column, weight_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
      if extends_edges:
        inside = _within(y, height) & _within(x, width)
      else:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
      place = jnp.clip(row, 0, height - 1) * width
      place += jnp.clip(column, 0, width - 1)
      # The same places in all frames of a clip.
      taken = jax.vmap(lambda v, i: v[:, i])(flat, place.astype(jnp.int32))
      weight = jnp.where(inside, weight_y * weight_x, 0.0)
      result += weight[:, None, :, :, None] * taken
  return result + background


def _within(place, size: int):
  """Whether a place, 0 at the centre of the first pixel, is on the picture."""
  return (place >= -0.5) & (place < size - 0.5)


def _grey(video):
  """Grey of each pixel, [B, T, H, W, 1]."""
  return (video * jnp.array(_GREY, video.dtype)).sum(-1, keepdims=True)


def per_clip(value: Shaped[Array, ' B']) -> Shaped[Array, 'B 1 1 1 1']:
  """Gives a number or truth value per clip the axes of a video."""
  return value[:, None, None, None, None]


def _clip(video):
  return jnp.clip(video, 0, 255)
