"""Convolutions and pooling over [B, T, H, W, C] video, fast on every backend.

This is the one place that decides *how* a 3-D convolution is computed. The
result and the parameters never depend on it: the kernel always has shape
[kt, kh, kw, C, D].

On GPU and TPU every convolution is one `lax.conv_general_dilated`. XLA's CPU
backend has fast 2-D convolutions and fast matrix products, but runs 3-D
convolutions (and above all their gradients) through a slow path, so there the
kernel's shape picks one of:

  1 x 1 x 1     stride by slicing, then one matrix product
  kt x 1 x 1    stride 1: one product with [C, kt * D], then shift and add;
                strided: a sum of products of strided slices
  1 x kh x kw   time folded into the batch, a 2-D convolution
  kt x kh x kw  as 1 x kh x kw with kt * D outputs, then shift and add

Process CPU milliseconds (all threads), forward / input gradient / kernel
gradient, 2 cores, float32, JAX 0.10.2:

  layer                      3-D convolution   here
  stem 5x7x7, 3 > 8 (*)      1525 / - / 2892   39 / - / 47
  1x3x3, 128, stride 2, 28^2 11.6 / 186 / 54   4.8 / 5.7 / 9.1
  7x1x1, stride 4, 32 > 64   7.6 / 203 / 46    5.5 / 2.4 / 4.6
  1x1x1, stride 2, 256 > 512 5.5 / 93 / 18     3.7 / 4.0 / 5.0
  1x3x3, 64                  19 / 19 / 36      4.1 / 4.2 / 7.9

(*) 2 x 32 x 112^2, both columns in one process; the other rows were measured
in another session, before this file, with the same formulations.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# He et al. 2015, by fan-out: N(0, sqrt(2 / (kt * kh * kw * D))).
# Source: PySlowFast 287ec00, utils/weight_init_helper.py (c2_msra_fill).
conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

# A 3 x 3 convolution on a map no larger than this leaves XLA:CPU's fast path:
# 184 ms by convolution against 1.6 ms as a matrix product on a 2 x 2 map.
_SMALL_MAP = 4


def conv3d(
  x: Float[Array, 'B T H W C'],
  kernel: Float[Array, 'kt kh kw C D'],
  *,
  strides: tuple[int, int, int] = (1, 1, 1),
  formulation: str = 'auto',
) -> Float[Array, 'B t h w D']:
  """Convolves video, zero-padded by half the kernel on both sides.

  Every axis of n elements becomes ceil(n / stride) for odd kernels. (XLA's
  'SAME' has the same sizes, but other values where the padding is uneven.)

  Args:
    x: Video features.
    kernel: Weights, of the same dtype as `x`.
    strides: Of T, H and W.
    formulation: 'native' for one XLA convolution, 'folded' for the CPU's
      formulations, 'auto' to choose by `jax.default_backend()`.

  Raises:
    ValueError: If the formulation is unknown.
  """
  if formulation == 'auto':
    formulation = 'folded' if jax.default_backend() == 'cpu' else 'native'
  if formulation == 'native':
    return _native(x, kernel, strides)
  if formulation != 'folded':
    raise ValueError(
      f"Unknown formulation {formulation!r}; use 'auto', 'native' or 'folded'."
    )
  kt, kh, kw, c, d = kernel.shape
  st, sh, sw = strides
  if (kt, kh, kw) == (1, 1, 1):
    if strides != (1, 1, 1):
      # Sliced once, or else the backward pass does it again, slowly: while it
      # transposes.
      x = lax.optimization_barrier(x[:, ::st, ::sh, ::sw])
    return _pointwise(x, kernel[0, 0, 0])
  if (kh, kw) == (1, 1):
    return _temporal(x[:, :, ::sh, ::sw], kernel[:, 0, 0], st)
  if kt == 1:
    return _spatial(x[:, ::st], kernel[0], (sh, sw))
  return _full(x, kernel, strides)


def _native(x, kernel, strides):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    [(k // 2, k // 2) for k in kernel.shape[:3]],
    dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
  )


@jax.custom_vjp
def _pointwise(x, weights):
  """1 x 1 x 1 convolution. weights: [C, D]."""
  return x @ weights


def _pointwise_forward(x, weights):
  return _pointwise(x, weights), (x, weights)


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


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _temporal(x, kernel, stride):
  """kt x 1 x 1 convolution. kernel: [kt, C, D]."""
  kt, c, d = kernel.shape
  t = x.shape[1]
  pad = kt // 2
  num_out = (t + 2 * pad - kt) // stride + 1
  if stride > 1:
    x = _pad(x, 1, pad)
    return sum(
      lax.slice_in_dim(x, i, i + (num_out - 1) * stride + 1, stride, axis=1)
      @ kernel[i]
      for i in range(kt)
    )
  taps = _taps(kt, t)
  y = x @ jnp.concatenate([kernel[i] for i in taps], axis=-1)
  return _shift_and_add(y, taps, kt, d)


def _taps(kt, t):
  """Temporal taps that ever see a frame; the others see only padding."""
  return [i for i in range(kt) if abs(i - kt // 2) < t]


def _shift_and_add(y, taps, kt, d):
  """Sums the d-channel parts of y, each shifted along T by its tap."""
  return sum(
    _shift(y[..., n * d : (n + 1) * d], kt // 2 - i) for n, i in enumerate(taps)
  )


def _shift(x, offset):
  """y[:, t] = x[:, t - offset], zero outside."""
  if offset == 0:
    return x
  t = x.shape[1]
  low, high = max(offset, 0), max(-offset, 0)
  x = lax.slice_in_dim(x, high, t - low, axis=1)
  widths = [(0, 0)] * x.ndim
  widths[1] = (low, high)
  return jnp.pad(x, widths)


def _pad(x, axis, width, value=0):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (width, width)
  return jnp.pad(x, widths, constant_values=value)


def _spatial(x, kernel, strides):
  """1 x kh x kw convolution. kernel: [kh, kw, C, D]."""
  b, t, h, w, c = x.shape
  kh, kw, _, d = kernel.shape
  x = x.reshape(b * t, h, w, c)
  if min(h, w) <= _SMALL_MAP:
    y = _im2col(x, kernel, strides)
  else:
    y = lax.conv_general_dilated(
      x,
      kernel,
      strides,
      [(kh // 2, kh // 2), (kw // 2, kw // 2)],
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  return y.reshape(b, t, *y.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _full(x, kernel, strides):
  """kt x kh x kw convolution (a stem): 2-D to kt * D channels, shift, add."""
  kt, kh, kw, c, d = kernel.shape
  taps = _taps(kt, x.shape[1])
  weights = [kernel[i] for i in taps]
  # XLA:CPU is slow with 17 to 39 output channels: a 7 x 7 convolution of 64
  # frames of 64^2 takes 72 ms to 20 channels and 10 ms to 40.
  if (filling := 40 - len(taps) * d) > 0:
    weights.append(jnp.zeros((kh, kw, c, filling), kernel.dtype))
  y = _spatial(x, jnp.concatenate(weights, -1), strides[1:])
  return _shift_and_add(y, taps, kt, d)[:, :: strides[0]]


def _full_forward(x, kernel, strides):
  return _full(x, kernel, strides), (x, kernel)


def _full_backward(strides, residuals, cotangent):
  # Tap by tap, which is the slower form forward (4 to 6 times) but the faster
  # one for the kernel's gradient (2 to 2.5 times at 4 x 45^2 and 32 x 112^2).
  # All taps read the whole x, so that XLA transposes it once for all of them.
  def tap_by_tap(x, kernel):
    kt = kernel.shape[0]
    y = sum(
      _shift(_spatial(x, kernel[i], strides[1:]), kt // 2 - i)
      for i in _taps(kt, x.shape[1])
    )
    return y[:, :: strides[0]]

  _, vjp = jax.vjp(tap_by_tap, *residuals)
  return vjp(cotangent)


_full.defvjp(_full_forward, _full_backward)


def _im2col(x, kernel, strides):
  """2-D convolution as one matrix product of shifted copies."""
  kh, kw, c, d = kernel.shape
  sh, sw = strides
  num_h = (x.shape[1] + 2 * (kh // 2) - kh) // sh + 1
  num_w = (x.shape[2] + 2 * (kw // 2) - kw) // sw + 1
  x = _pad(_pad(x, 1, kh // 2), 2, kw // 2)
  columns = []
  for i in range(kh):
    rows = lax.slice_in_dim(x, i, i + (num_h - 1) * sh + 1, sh, axis=1)
    for j in range(kw):
      columns.append(
        lax.slice_in_dim(rows, j, j + (num_w - 1) * sw + 1, sw, axis=2)
      )
  return jnp.concatenate(columns, -1) @ kernel.reshape(kh * kw * c, d)


class Conv(nn.Module):
  """3-D convolution without a bias; the parameter is 'kernel'.

  Attributes:
    features: Output channels D.
    kernel_size: (kt, kh, kw); odd, so that padding is symmetric.
    strides: Of T, H and W.
    dtype: Compute type; parameters are created in float32.
    kernel_init: Initialiser of the kernel.
  """

  features: int
  kernel_size: tuple[int, int, int]
  strides: tuple[int, int, int] = (1, 1, 1)
  dtype: Any = jnp.float32
  kernel_init: Callable = conv_init

  @nn.compact
  def __call__(self, x: Float[Array, 'B T H W C']) -> Float[Array, 'B t h w D']:
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    return conv3d(
      x.astype(self.dtype), kernel.astype(self.dtype), strides=self.strides
    )


def depthwise_temporal(
  x: Float[Array, 'B T H W C'], weights: Float[Array, 'r C']
) -> Float[Array, 'B T H W C']:
  """Weighs every channel over neighbouring frames, zero-padded in time.

  y[:, t] = sum over i of weights[i] * x[:, t + i - r // 2].

  Shifted multiply-adds, which XLA fuses into one pass, on every backend.
  Forward and gradients take 0.22 to 0.60 of PyTorch's CPU time for the same (r
  depthwise convolutions and shifts; 56^2 x 64 to 7^2 x 1024); a grouped
  convolution takes 3.7 to 15.5 times PyTorch's.

  Args:
    x: Video features.
    weights: Of r frames, r odd; of the same dtype as `x`.
  """
  r = weights.shape[0]
  return sum(_shift(x, r // 2 - i) * weights[i] for i in _taps(r, x.shape[1]))


def max_pool_spatial(
  x: Float[Array, 'B T H W C'],
) -> Float[Array, 'B T h w C']:
  """1 x 3 x 3 max-pool, stride 2, padding 1: [.., H, W, ..] is halved up.

  A maximum of slices, one axis after the other: unlike reduce_window its
  gradient needs no select-and-scatter. Where several positions share the
  maximum the gradient is shared between them (it goes to the first in torch);
  behind a ReLU such ties are zeros, which pass no gradient on.
  """
  for axis in (2, 3):
    x = functools.reduce(jnp.maximum, _windows(x, axis, -jnp.inf))
  return x


def avg_pool_spatial(
  x: Float[Array, 'B T H W C'],
) -> Float[Array, 'B T h w C']:
  """1 x 3 x 3 average pool, stride 2, padding 1 that counts as zeros.

  The divisor is 9 everywhere, as that of torch's AvgPool2d(3, 2, 1).
  """
  for axis in (2, 3):
    x = sum(_windows(x, axis, 0)) / 3
  return x


def _windows(x, axis, padding):
  """First, second and third of every three positions, stride 2, padding 1."""
  num_out = (x.shape[axis] + 1) // 2
  x = _pad(x, axis, 1, padding)
  return [
    lax.slice_in_dim(x, i, i + 2 * num_out - 1, 2, axis=axis) for i in range(3)
  ]


def upsample_spatial(
  x: Float[Array, 'B T h w C'], *, height: int, width: int
) -> Float[Array, 'B T H W C']:
  """Undoes the halving of H and W by repeating: y[i] = x[i // 2].

  For h = ceil(H / 2) this is torch's "nearest", floor(i * h / H), at even and
  odd sizes alike. (jax.image.resize has another one, of pixel centres.)

  Args:
    x: Features, h = ceil(height / 2), w = ceil(width / 2).
    height: H.
    width: W.

  Raises:
    ValueError: If h or w is another size.
  """
  for axis, size in ((2, height), (3, width)):
    if x.shape[axis] != (size + 1) // 2:
      raise ValueError(
        f'Axis {axis} of {x.shape} is not the upper half of {size}.'
      )
    x = lax.slice_in_dim(jnp.repeat(x, 2, axis=axis), 0, size, axis=axis)
  return x


def max_pool_temporal(
  x: Float[Array, 'B T H W C'],
) -> Float[Array, 'B t H W C']:
  """2 x 1 x 1 max-pool, stride 2: an odd last frame is dropped."""
  t = x.shape[1] // 2 * 2
  return jnp.maximum(x[:, 0:t:2], x[:, 1:t:2])


def max_pool_temporal_overlapping(
  x: Float[Array, 'B T H W C'],
) -> Float[Array, 'B t H W C']:
  """3 x 1 x 1 max-pool, stride 2, padding 1: T frames become ceil(T / 2)."""
  return functools.reduce(jnp.maximum, _windows(x, 1, -jnp.inf))
