"""Where the tokens of a video transformer lie: tables, no parameters.

NumPy makes them in float64 while a program is traced, of the size that its grid
has: one tree of parameters serves every grid. Tables that are learned are
resized here.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Sizes = tuple[int, int, int]
# Positions along frames, rows and columns.
Places = tuple[np.ndarray, np.ndarray, np.ndarray]


def count_tokens(clip: Sizes, tubelet: Sizes, what: str) -> Sizes:
  """How many tokens a clip has in time, height and width.

  Args:
    clip: Frames, height and width.
    tubelet: Those of a tubelet.
    what: Begins the message of an error, such as 'clips have'.

  Raises:
    ValueError: It does not divide into tubelets.
  """
  for length, size, words in zip(
    clip,
    tubelet,
    (
      ('frames', 'tubelet_frames', 'grid.frames_multiple'),
      ('rows', 'patch_px', 'grid.side_multiple'),
      ('columns', 'patch_px', 'grid.side_multiple'),
    ),
    strict=True,
  ):
    unit, option, field = words
    if not length or length % size:
      raise ValueError(
        f'{what} {length} {unit}; with {option}={size} it must be a multiple '
        f'of {size} ({field}={size} makes all grids of a schedule so).'
      )
  t, h, w = (n // m for n, m in zip(clip, tubelet, strict=True))
  return t, h, w


def sinusoid(count: int, width: int) -> Float[np.ndarray, 'count width']:
  """Sines (even columns) and cosines (odd ones) of one running index.

  Rounded to float32, as in the reference: weights were trained with that.

  Source: MCG-NJU/VideoMAE 14ef8d8, modeling_finetune.py,
    get_sinusoid_encoding_table; Vaswani et al. 2017 (arXiv:1706.03762).
  """
  column = np.arange(width)
  angle = np.arange(count)[:, None] / 10000 ** (2 * (column // 2) / width)
  table = np.where(column % 2, np.cos(angle), np.sin(angle))
  return table.astype(np.float32)


def centred(base: int, size: int) -> Float[np.ndarray, ' size']:
  """Where the tokens of a clip lie among those of a base clip of equal span.

  A clip of half the tokens has them at 0.5, 2.5, 4.5, ...: at the centres of
  what they cover.

  Args:
    base: Tokens of the base clip along an axis.
    size: Tokens of the clip.
  """
  return (np.arange(size) + 0.5) * base / size - 0.5


def sincos(
  place: Places, base: Sizes, width: int
) -> Float[np.ndarray, 'tokens width']:
  """VideoMAE's positions: the table of a base grid, interpolated.

  The index runs over frames, rows and columns of the base, in this order. A
  table made anew for another grid would number all tokens differently.

  Args:
    place: Where tokens lie among those of the base, in time, height and width.
    base: Tokens of the grid that the table is made for.
    width: Of a token.

  Returns:
    float32. Rows and columns are interpolated bicubically (a = -0.75, not
    antialiased: torch's), then frames linearly.

  Source: OpenGVLab/VideoMAEv2 29eab1e, run_class_finetuning.py (there for
    square grids of the base's span: `centred`).
  """
  table = sinusoid(math.prod(base), width).reshape(*base, width)
  # Rounded, as the reference's are.
  weights = [
    interpolation(*axis).astype(np.float32).astype(np.float64)
    for axis in zip(base, place, (LINEAR, CUBIC, CUBIC), strict=True)
  ]
  table = np.einsum('ri,tijc->trjc', weights[1], table)
  table = np.einsum('sj,trjc->trsc', weights[2], table)
  table = np.einsum('ut,trsc->ursc', weights[0], table)
  # In float32, as the reference has it.
  return table.reshape(-1, width).astype(np.float32)


def _linear(distance: np.ndarray) -> np.ndarray:
  return np.maximum(1 - distance, 0)


def _cubic(distance: np.ndarray) -> np.ndarray:
  """The cubic convolution kernel of Keys 1981, with torch's a = -0.75."""
  a, d = -0.75, distance
  near = ((a + 2) * d - (a + 3)) * d * d + 1
  far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
  return np.where(d <= 1, near, np.where(d < 2, far, 0))


# Kernels, and how many elements each reaches on either side.
LINEAR, CUBIC = (_linear, 1), (_cubic, 2)


def interpolation(
  size: int, place: Float[np.ndarray, ' places'], kernel: tuple
) -> Float[np.ndarray, 'places size']:
  """Matrix that interpolates an axis; beyond its ends are its last elements.

  At `centred` places that is torch.nn.functional.interpolate with
  align_corners=False. (The methods of jax.image.resize have a = -0.5, and
  antialias.)
  """
  weight, reach = kernel
  matrix = np.zeros((len(place), size))
  for offset in range(1 - reach, reach + 1):
    element = np.floor(place) + offset
    np.add.at(
      matrix,
      (np.arange(len(place)), np.clip(element, 0, size - 1).astype(int)),
      weight(np.abs(place - element)),
    )
  return matrix


def distances(
  num_queries: int, num_keys: int
) -> Int[np.ndarray, 'num_queries num_keys']:
  """Which relative position each query of an axis has to each key.

  Both lie on the same axis. Where one of them is coarser, its places are
  spread; what is between two distances counts as the smaller one.

  Args:
    num_queries: Queries of the axis.
    num_keys: Keys.

  Returns:
    0 to 2 max(num_queries, num_keys) - 2.

  Source: torchvision 0.29.1, models/video/mvit.py, _add_rel_pos (float32).
  """
  of_queries = np.arange(num_queries, dtype=np.float32)
  of_queries *= np.float32(max(num_keys / num_queries, 1))
  of_keys = np.arange(num_keys, dtype=np.float32) + np.float32(1 - num_keys)
  of_keys *= np.float32(max(num_queries / num_keys, 1))
  return (of_queries[:, None] - of_keys).astype(np.int64)


def resized(
  table: Float[Array, 'base width'], base: Sizes, place: Places
) -> Float[Array, 'tokens width']:
  """Learned positions: the table of a base grid, interpolated.

  As `sincos` does: rows and columns bicubically, frames linearly. An axis that
  keeps its places keeps its numbers.

  Args:
    table: Of the tokens of the base, by frame, row and column.
    base: Tokens of the grid that the table is of, in time, height and width.
    place: Where tokens lie among those of the base.

  Source: transformers 5.24.0, models/vivit/modeling_vivit.py,
    interpolate_pos_encoding (bicubic, torch's).
  Differs: There the tokens of all frames are taken for one square image, which
    mixes frames with rows. google-research/scenic 03c3032,
    projects/vivit/model_utils.py, zooms squares linearly, corner to corner,
    once, when weights are loaded.
  """
  x = table.reshape(*base, -1)
  for axis, kernel in enumerate((LINEAR, CUBIC, CUBIC)):
    if not np.array_equal(place[axis], np.arange(base[axis])):
      matrix = interpolation(base[axis], place[axis], kernel)
      x = jnp.tensordot(
        jnp.asarray(matrix, x.dtype), x, (1, axis), precision='highest'
      )
      x = jnp.moveaxis(x, 0, axis)
  return x.reshape(-1, x.shape[-1])


class Rotation(NamedTuple):
  """What `rotate` multiplies queries and keys with, [tokens, 1, d] each."""

  cos: Float[Array, 'tokens 1 d']
  sin: Float[Array, 'tokens 1 d']


def rope_share(head_width: int) -> int:
  """Elements of a head that turn with the frame; as many with row and column.

  The rest, such as 4 of 64, do not turn.
  """
  return 2 * (head_width // 3 // 2)


def rope(place: Places, head_width: int, dtype) -> Rotation:
  """V-JEPA 2's rotary positions of frames, rows and columns.

  They are no rotations: the two elements of a pair, which are neighbours, turn
  by different angles, because the frequencies are repeated as a whole (w0, w1,
  w0, w1). So absolute positions matter. Released weights need it.

  Args:
    place: Positions of tokens in time, height and width; the reference counts
      from 0.
    head_width: d.
    dtype: Of the result.

  Source: facebookresearch/vjepa2 c2963a4, src/models/utils/modules.py,
    rotate_queries_or_keys ("subtle bug"), RoPEAttention.
  """
  share = rope_share(head_width)
  frequency = 10000.0 ** -(np.arange(share // 2) / (share / 2))
  angle = np.zeros((*map(len, place), head_width))
  for axis, at in enumerate(place):
    of_axis = np.tile(at[:, None] * frequency, 2)
    shape = [1, 1, 1, share]
    shape[axis] = len(at)
    angle[..., axis * share : (axis + 1) * share] = of_axis.reshape(shape)
  angle = angle.reshape(-1, 1, head_width)
  return Rotation(
    jnp.asarray(np.cos(angle), dtype), jnp.asarray(np.sin(angle), dtype)
  )


def beside(rotation: Rotation) -> Rotation:
  """The same rotation, behind a class token, which does not turn."""
  one_token = ((1, 0), (0, 0), (0, 0))
  return Rotation(
    jnp.pad(rotation.cos, one_token, constant_values=1),
    jnp.pad(rotation.sin, one_token),
  )


def rotate(
  x: Float[Array, 'B tokens heads d'], rotation: Rotation
) -> Float[Array, 'B tokens heads d']:
  """Turns the pairs (0, 1), (2, 3), ... of each head: see `rope`."""
  # An element that has no partner does not turn: its sine is zero.
  even = x.shape[-1] // 2 * 2
  pairs = x[..., :even].reshape(*x.shape[:-1], -1, 2)
  turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], -1)
  turned = turned.reshape(*x.shape[:-1], even)
  turned = jnp.concatenate([turned, x[..., even:]], -1)
  return x * rotation.cos + turned * rotation.sin
