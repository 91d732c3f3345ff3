"""Convolutions and pooling over [B, T, H, W, C] video, fast on every backend.

This is the one place that decides *how* a 3-D convolution is computed. The
result and the parameters never depend on it: the kernel always has shape
[kt, kh, kw, C, D].

On GPU and TPU every convolution is one `lax.conv_general_dilated`. XLA's CPU
backend has fast matrix products and, in programs of
`compilation.compile_program`, fast 2-D convolutions, both on all cores, but
runs 3-D convolutions (and above all their gradients) through a slow path. So
there the kernel's shape picks one of:

  1 x 1 x 1     stride by slicing, then one matrix product
  kt x 1 x 1    stride 1: one product with [C, kt * D], then shift and add;
                strided: a sum of products of strided slices
  1 x kh x kw   time folded into the batch, a 2-D convolution; on tiny maps one
                product of the windows side by side ("im2col")
  kt x kh x kw  as 1 x kh x kw with kt * D outputs, then shift and add

Milliseconds forward / input gradient / kernel gradient, of 2 clips in float32,
each in a program of its own; two cores of an AMD EPYC with AVX-512, JAX 0.10.2:

  8 frames                        one 3-D convolution       as above
  1 x 3 x 3, 64 to 64, 28^2         9.7 /   9.7 / 22.7    2.4 / 2.4 / 2.8
  1 x 3 x 3, 128 to 128, 14^2       6.5 /   5.8 / 12.2    2.1 / 2.1 / 2.3
  1 x 3 x 3, 256 to 256, 7^2        3.9 /   4.4 /  9.7    2.1 / 2.5 / 2.2
  the same, 128, 28^2, stride 2     6.1 /  92.5 / 26.0    2.7 / 3.8 / 3.5
  3 x 1 x 1, 256 to 64, 28^2       12.5 /   5.5 / 18.6    3.5 / 3.8 / 6.8
  1 x 7 x 7, 3 to 64, 112^2        28.3 /     - / 75.0    4.0 /   - / 6.2
  5 x 7 x 7, 3 to 64, 112^2       118.7 /     - / 240    12.2 /   - / 18.3
  the same, 3 to 8, 32 frames     493.1 /     - / 997    14.4 /   - / 20.6
"""

import functools
import operator
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

_TINY_SIDE = 4  # 86 ms against 1.3 ms as a product on maps of 2 x 2.


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
    return native(x, kernel, strides)
  if formulation != 'folded':
    raise ValueError(
      f"Unknown formulation {formulation!r}; use 'auto', 'native' or 'folded'."
    )
  kt, kh, kw, c, d = kernel.shape
  st, sh, sw = strides
  if (kt, kh, kw) == (1, 1, 1):
    if strides != (1, 1, 1):
      x = materialize(x[:, ::st, ::sh, ::sw])
    return _pointwise(x, kernel[0, 0, 0])
  if (kh, kw) == (1, 1):
    return _temporal(x[:, :, ::sh, ::sw], kernel[:, 0, 0], st)
  if kt == 1:
    return _spatial(x[:, ::st], kernel[0], (sh, sw))
  return _full(x, kernel, strides)


def native(
  x: Float[Array, 'B T H W C'],
  kernel: Float[Array, 'kt kh kw _ D'],
  strides: tuple[int, int, int],
) -> Float[Array, 'B t h w D']:
  """`conv3d` as one XLA convolution; grouped if the kernel's C is a part."""
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    [(k // 2, k // 2) for k in kernel.shape[:3]],
    dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
    feature_group_count=x.shape[-1] // kernel.shape[3],
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
      _pointwise(
        lax.slice_in_dim(x, i, i + (num_out - 1) * stride + 1, stride, axis=1),
        kernel[i],
      )
      for i in range(kt)
    )
  taps = _taps(kt, t)
  weights = jnp.concatenate([kernel[i] for i in taps], axis=-1)
  return _shift_and_add(_pointwise(x, weights), taps, kt, d)


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
  x = materialize(_pad(_pad(x, 1, kh // 2), 2, kw // 2))
  columns = []
  for i in range(kh):
    rows = lax.slice_in_dim(x, i, i + (num_h - 1) * sh + 1, sh, axis=1)
    for j in range(kw):
      columns.append(
        lax.slice_in_dim(rows, j, j + (num_w - 1) * sw + 1, sw, axis=2)
      )
  return _pointwise(jnp.concatenate(columns, -1), kernel.reshape(-1, d))


def _full(x, kernel, strides):
  """kt x kh x kw convolution (a stem), as one 2-D convolution."""
  kt, kh, kw, c, d = kernel.shape
  taps = _taps(kt, x.shape[1])
  weights = jnp.concatenate([kernel[i] for i in taps], -1)
  y = _spatial(x, weights, strides[1:])
  return _shift_and_add(y, taps, kt, d)[:, :: strides[0]]


class Conv(nn.Module):
  """3-D convolution without a bias; the parameter is 'kernel'.

  Attributes:
    features: Output channels D.
    kernel_size: (kt, kh, kw); odd, so that padding is symmetric.
    strides: Of T, H and W.
    depthwise: Whether every channel has a kernel of its own, [kt, 1, 1, 1, C];
      for temporal kernels and strides, and as many outputs as inputs.
    dtype: Compute type; parameters are created in float32.
    kernel_init: Initialiser of the kernel.
  """

  features: int
  kernel_size: tuple[int, int, int]
  strides: tuple[int, int, int] = (1, 1, 1)
  depthwise: bool = False
  dtype: Any = jnp.float32
  kernel_init: Callable = conv_init

  def __post_init__(self):
    super().__post_init__()
    spatial = (*self.kernel_size[1:], *self.strides[1:])
    if self.depthwise and spatial != (1, 1, 1, 1):
      raise ValueError(
        f'A depthwise layer of kernel {self.kernel_size} and strides '
        f'{self.strides} is not temporal only, such as (3, 1, 1).'
      )

  @nn.compact
  def __call__(self, x: Float[Array, 'B T H W C']) -> Float[Array, 'B t h w D']:
    inputs = 1 if self.depthwise else x.shape[-1]
    shape = (*self.kernel_size, inputs, self.features)
    kernel = self.param('kernel', self.kernel_init, shape).astype(self.dtype)
    x = x.astype(self.dtype)
    if self.depthwise:
      return depthwise_temporal(x, kernel[:, 0, 0, 0], stride=self.strides[0])
    return conv3d(x, kernel, strides=self.strides)


def materialize(x: Array) -> Array:
  """Has XLA:CPU write x to memory, once, for all that read it.

  XLA:CPU's fusions compute cheap operands again for each of their readers. A
  sum of residual blocks is such an operand, and an operand of the next one: the
  last block of a stage read the results of all others, forward and backward.
  Works in programs of `compilation.compile_program`; elsewhere XLA drops it.
  """
  return lax.optimization_barrier(x)


@jax.custom_vjp
def relu(x: Array) -> Array:
  """max(x, 0), whose gradient needs the result only, not x."""
  return jnp.maximum(x, 0)


def _relu_forward(x):
  y = relu(x)
  return y, y


def _relu_backward(y, cotangent):
  return (jnp.where(y > 0, cotangent, 0),)


relu.defvjp(_relu_forward, _relu_backward)


def depthwise_temporal(
  x: Float[Array, 'B T H W C'],
  weights: Float[Array, 'r C'],
  *,
  stride: int = 1,
  blend: Callable[[Array, Array], Array] = operator.add,
) -> Float[Array, 'B t H W C']:
  """Weighs every channel over neighbouring frames, zero-padded in time.

  y[:, t] = sum over i of weights[i] * x[:, t * stride + i - r // 2].

  Shifted multiply-adds, which XLA fuses into one pass, on every backend.
  Forward and gradients take 0.22 to 0.60 of PyTorch's CPU time for the same (r
  depthwise convolutions and shifts; 56^2 x 64 to 7^2 x 1024); a grouped
  convolution takes 3.7 to 15.5 times PyTorch's.

  Args:
    x: Video features.
    weights: Of r frames, r odd; of the same dtype as `x`.
    stride: Of T: t = ceil(T / stride).
    blend: What takes the sum's place, such as jnp.maximum. Frames outside the
      clip may be left out of it: put a ReLU behind.
  """
  r = weights.shape[0]
  return functools.reduce(
    blend,
    (
      _shift(x, r // 2 - i)[:, ::stride] * weights[i]
      for i in _taps(r, x.shape[1])
    ),
  )


def dense_temporal(
  x: Float[Array, 'B T H W C'],
  weights: Float[Array, 'r C D'],
  *,
  blend: Callable[[Array, Array], Array] = operator.add,
) -> Float[Array, 'B T H W D']:
  """As `depthwise_temporal`, but mixes the channels of every frame.

  y[:, t] = sum over i of x[:, t + i - r // 2] @ weights[i].

  Args:
    x: Video features.
    weights: Of r frames, r odd; of the same dtype as `x`.
    blend: As there.
  """
  if blend is operator.add:
    return conv3d(x, weights[:, None, None])
  r = weights.shape[0]
  return functools.reduce(
    blend,
    (
      _shift(_pointwise(x, weights[i]), r // 2 - i)
      for i in _taps(r, x.shape[1])
    ),
  )


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
  return _average(x, (2, 3))


def _average(x, axes):
  """Mean of every three positions of each axis, rounded once."""
  y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  for axis in axes:
    y = sum(_windows(y, axis, 0)) / 3
  return y.astype(x.dtype)


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
  """2 x 1 x 1 max-pool, stride 2: an odd last frame is dropped, a sole kept."""
  if x.shape[1] == 1:
    return x
  t = x.shape[1] // 2 * 2
  return jnp.maximum(x[:, 0:t:2], x[:, 1:t:2])


def max_pool_temporal_overlapping(
  x: Float[Array, 'B T H W C'],
) -> Float[Array, 'B t H W C']:
  """3 x 1 x 1 max-pool, stride 2, padding 1: T frames become ceil(T / 2)."""
  return functools.reduce(jnp.maximum, _windows(x, 1, -jnp.inf))


def avg_pool_temporal_overlapping(
  x: Float[Array, 'B T H W C'],
) -> Float[Array, 'B t H W C']:
  """3 x 1 x 1 average pool, stride 2, padding 1 that counts as zeros.

  The divisor is 3 everywhere, as that of torch's AvgPool3d.
  """
  return _average(x, (1,))
