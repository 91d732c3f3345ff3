"""Frames beside channels, for layers of few channels.

A TPU keeps features in tiles whose rows are 128 channels: 8 channels take as
much memory, and as much of the matrix unit, as 128. So a narrow pathway has
`beside` neighbouring frames side by side: features are [B, T / beside, H, W,
beside * C], and C varies last. A convolution of them is one with a wide kernel,
most of it zeros, that costs no more passes through the matrix unit than the
narrow one does, on fewer positions.

What a compiler makes of this is in experiments/records/compiled_layouts.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def num_beside(channels: int, num_frames: int, lanes: int) -> int:
  """How many frames lie side by side, a divisor of `num_frames`.

  Args:
    channels: Of a frame.
    num_frames: T.
    lanes: Channels that take no more space than one.
  """
  most = min(max(lanes // channels, 1), num_frames)
  return max(n for n in range(1, most + 1) if num_frames % n == 0)


def regroup(
  x: Float[Array, 'B t H W c'], before: int, after: int
) -> Float[Array, 'B u H W d']:
  """Puts `after` frames side by side instead of `before`.

  Raises:
    ValueError: The frames are not a multiple of `after`.
  """
  b, t, h, w, c = x.shape
  if t * before % after:
    raise ValueError(f'{t * before} frames are not a multiple of {after}.')
  if before % after and after % before:
    return regroup(regroup(x, before, 1), 1, after)
  if after < before:
    n = before // after
    x = jnp.moveaxis(x.reshape(b, t, h, w, n, c // n), 4, 2)
    return x.reshape(b, t * n, h, w, c // n)
  if after > before:
    n = after // before
    x = jnp.moveaxis(x.reshape(b, t // n, n, h, w, c), 2, 4)
    return x.reshape(b, t // n, h, w, n * c)
  return x


def conv3d(
  x: Float[Array, 'B t H W c'],
  kernel: Float[Array, 'kt kh kw C D'],
  strides: tuple[int, int, int],
  beside: int,
) -> Float[Array, 'B t h w d']:
  """As `models.conv.conv3d`, of frames that lie side by side.

  Args:
    x: Features, of the type in which it is computed.
    kernel: Weights; in float32, so that its gradient is summed in float32.
    strides: Of T, H and W.
    beside: Frames that lie side by side in x; a multiple of the stride.

  Returns:
    Features in which beside / strides[0] frames lie side by side.

  Raises:
    ValueError: It is no multiple.
  """
  stride, *spatial = strides
  kt, kh, kw, c, _ = kernel.shape
  if beside % stride:
    raise ValueError(f'A stride of {stride} does not divide {beside} frames.')
  first, taps = _taps(kt, stride, beside, x.shape[1])
  # A tap that does not exist weighs zero. One-hot and exact: HIGHEST.
  wide = jnp.einsum(
    'gfrt,thwcd->ghwfcrd', taps, kernel, precision=lax.Precision.HIGHEST
  ).reshape(len(taps), kh, kw, beside * c, -1)
  return lax.conv_general_dilated(
    x,
    wide.astype(x.dtype),
    (1, *spatial),
    [(-first, len(taps) - 1 + first), (kh // 2, kh // 2), (kw // 2, kw // 2)],
    dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
  )


def _taps(
  kernel: int, stride: int, beside: int, num_groups: int
) -> tuple[int, np.ndarray]:
  """Which tap of a kernel joins a frame of one group to another group's.

  Returns:
    Offset of the first group that a group's results see, and zeros and ones,
    [groups seen, frame of a group, result in its group, tap].
  """
  results = beside // stride
  places = np.arange(results)[:, None] * stride + np.arange(kernel)
  offset, frame = np.divmod(places - kernel // 2, beside)
  # What is farther away is padding alone.
  first = max(int(offset.min()), 1 - num_groups)
  last = min(int(offset.max()), num_groups - 1)
  taps = np.zeros((last - first + 1, beside, results, kernel), np.float32)
  for (result, tap), at in np.ndenumerate(offset):
    if first <= at <= last:
      taps[at - first, frame[result, tap], result, tap] = 1
  return first, taps
