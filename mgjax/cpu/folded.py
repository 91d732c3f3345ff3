"""3-D convolutions as matrix products and 2-D ones, which CPUs do fast.

XLA's CPU backend has fast matrix products and, in programs of
`compilation.compile_program`, fast 2-D convolutions, both on all cores, but
runs 3-D convolutions (and above all their gradients) through a slow path. So
the kernel's shape picks one of:

  1 x 1 x 1     stride by slicing, then one matrix product
  kt x 1 x 1    stride 1: one product with [C, kt * D], then shift and add;
                strided: a sum of products of strided slices
  1 x kh x kw   time folded into the batch, a 2-D convolution; on tiny maps one
                product of the windows side by side ("im2col")
  kt x kh x kw  as 1 x kh x kw with kt * D outputs, then shift and add
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_TINY_SIDE = 4  # Where a product is faster than a 2-D convolution.


def conv3d(
  x: Float[Array, 'B T H W C'],
  kernel: Float[Array, 'kt kh kw C D'],
  strides: tuple[int, int, int],
) -> Float[Array, 'B t h w D']:
  """As `models.conv.conv3d`, of which this is one of the formulations."""
  kt, kh, kw, c, d = kernel.shape
  st, sh, sw = strides
  if (kt, kh, kw) == (1, 1, 1):
    if strides != (1, 1, 1):
      x = materialize(x[:, ::st, ::sh, ::sw])
    return pointwise(x, kernel[0, 0, 0])
  if (kh, kw) == (1, 1):
    return _temporal(x[:, :, ::sh, ::sw], kernel[:, 0, 0], st)
  if kt == 1:
    return _spatial(x[:, ::st], kernel[0], (sh, sw))
  return _full(x, kernel, strides)


@jax.custom_vjp
def pointwise(x, weights):
  """1 x 1 x 1 convolution: x [..., C], weights [C, D]."""
  return x @ weights


def _pointwise_forward(x, weights):
  return pointwise(x, weights), (x, weights)


def _pointwise_backward(residuals, cotangent):
  # XLA:CPU transposes the left factor of the product over all positions: the
  # one with fewer channels had better stand there. (JAX's own rule puts the
  # cotangent there, four times as wide as x at the end of a bottleneck.)
  x, weights = residuals
  positions = tuple(range(x.ndim - 1))
  over_positions = lambda left, right: lax.dot_general(
    left, right, ((positions, positions), ((), ()))
  )
  if x.shape[-1] <= cotangent.shape[-1]:
    gradient = over_positions(x, cotangent)
  else:
    gradient = over_positions(cotangent, x).T
  return cotangent @ weights.T, gradient


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _temporal(x, kernel, stride):
  """kt x 1 x 1 convolution. kernel: [kt, C, D]."""
  kt, c, d = kernel.shape
  t = x.shape[1]
  pad = kt // 2
  num_out = (t + 2 * pad - kt) // stride + 1
  if stride > 1:
    x = pad_axis(x, 1, pad)
    return sum(
      pointwise(
        lax.slice_in_dim(x, i, i + (num_out - 1) * stride + 1, stride, axis=1),
        kernel[i],
      )
      for i in range(kt)
    )
  seen = taps(kt, t)
  weights = jnp.concatenate([kernel[i] for i in seen], axis=-1)
  return _shift_and_add(pointwise(x, weights), seen, kt, d)


def taps(kt, t):
  """Temporal taps that ever see a frame; the others see only padding."""
  return [i for i in range(kt) if abs(i - kt // 2) < t]


def _shift_and_add(y, taps, kt, d):
  """Sums the d-channel parts of y, each shifted along T by its tap."""
  return sum(
    shift_time(y[..., n * d : (n + 1) * d], kt // 2 - i)
    for n, i in enumerate(taps)
  )


def shift_time(x, offset):
  """y[:, t] = x[:, t - offset], zero outside."""
  if offset == 0:
    return x
  t = x.shape[1]
  low, high = max(offset, 0), max(-offset, 0)
  x = lax.slice_in_dim(x, high, t - low, axis=1)
  widths = [(0, 0)] * x.ndim
  widths[1] = (low, high)
  return jnp.pad(x, widths)


def pad_axis(x, axis, width, value=0):
  """Adds `width` of a value on both sides of an axis."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (width, width)
  return jnp.pad(x, widths, constant_values=value)


def _spatial(x, kernel, strides):
  """1 x kh x kw convolution. kernel: [kh, kw, C, D]."""
  b, t, h, w, c = x.shape
  y = _conv2d(x.reshape(b * t, h, w, c), kernel, strides)
  return y.reshape(b, t, *y.shape[1:])


def _conv2d(x, kernel, strides):
  """2-D convolution. x: [N, H, W, C]; kernel: [kh, kw, C, D]."""
  if min(x.shape[1:3]) <= _TINY_SIDE:
    return _by_columns(x, kernel, strides)
  return _native2d(x, kernel, strides)


def _native2d(x, kernel, strides):
  kh, kw = kernel.shape[:2]
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    [(kh // 2, kh // 2), (kw // 2, kw // 2)],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _by_columns(x, kernel, strides):
  """2-D convolution as one product with the windows of x ("im2col")."""
  kh, kw, c, d = kernel.shape
  sh, sw = strides
  num_h, num_w = (
    (n + 2 * (k // 2) - k) // stride + 1
    for n, k, stride in zip(x.shape[1:3], (kh, kw), strides, strict=True)
  )
  x = materialize(pad_axis(pad_axis(x, 1, kh // 2), 2, kw // 2))
  columns = []
  for i in range(kh):
    rows = lax.slice_in_dim(x, i, i + (num_h - 1) * sh + 1, sh, axis=1)
    for j in range(kw):
      columns.append(
        lax.slice_in_dim(rows, j, j + (num_w - 1) * sw + 1, sw, axis=2)
      )
  return pointwise(jnp.concatenate(columns, -1), kernel.reshape(-1, d))


def _full(x, kernel, strides):
  """kt x kh x kw convolution (a stem), as one 2-D convolution."""
  kt, kh, kw, c, d = kernel.shape
  seen = taps(kt, x.shape[1])
  weights = jnp.concatenate([kernel[i] for i in seen], -1)
  y = _spatial(x, weights, strides[1:])
  return _shift_and_add(y, seen, kt, d)[:, :: strides[0]]


def materialize(x: Array) -> Array:
  """Has XLA:CPU write x to memory, once, for all that read it.

  XLA:CPU's fusions compute cheap operands again for each of their readers. A
  sum of residual blocks is such an operand, and an operand of the next one: the
  last block of a stage read the results of all others, forward and backward. In
  a transformer the gradient of the sum is such an operand: computed again, and
  transposed on the way, for each product that reads it.
  Works in programs of `compilation.compile_program`; elsewhere XLA drops it.
  """
  return lax.optimization_barrier(x)
