"""Convolutions and pooling over [B, T, H, W, C] video, fast on every backend.

This is the one place that decides *how* a 3-D convolution is computed. The
result and the parameters never depend on it: the kernel always has shape
[kt, kh, kw, C, D]. On GPU and TPU every convolution is one
`lax.conv_general_dilated`; on CPUs it is what mgjax/cpu/folded.py makes of it.
"""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mgjax.cpu import folded
from mgjax.tpu import lanes

# He et al. 2015, by fan-out: N(0, sqrt(2 / (kt * kh * kw * D))).
# Source: PySlowFast 287ec00, utils/weight_init_helper.py (c2_msra_fill).
conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


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
      formulations, 'auto' to choose by the platform that the program is
      lowered for: 'folded' on CPUs, 'native' elsewhere.

  Raises:
    ValueError: If the formulation is unknown.
  """
  if formulation == 'auto':
    # Not by the backend that JAX has found here, which is another one where a
    # program is compiled ahead for other devices. Both are traced, which takes
    # longer; one becomes part of the program.
    return lax.platform_dependent(
      x,
      kernel,
      cpu=functools.partial(folded.conv3d, strides=strides),
      default=functools.partial(native, strides=strides),
    )
  if formulation == 'native':
    return native(x, kernel, strides)
  if formulation != 'folded':
    raise ValueError(
      f"Unknown formulation {formulation!r}; use 'auto', 'native' or 'folded'."
    )
  return folded.conv3d(x, kernel, strides)


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


class Conv(nn.Module):
  """3-D convolution; the parameters are 'kernel' and, where asked, 'bias'.

  Attributes:
    features: Output channels D.
    kernel_size: (kt, kh, kw); odd, so that padding is symmetric.
    strides: Of T, H and W.
    depthwise: Whether every channel has a kernel of its own, [kt, 1, 1, 1, C];
      for temporal kernels and strides, and as many outputs as inputs.
    use_bias: Whether a bias is added.
    beside: Frames that lie side by side in the channels of x (tpu/lanes.py).
    dtype: Compute type; parameters are created in float32.
    kernel_init: Initialiser of the kernel.
  """

  features: int
  kernel_size: tuple[int, int, int]
  strides: tuple[int, int, int] = (1, 1, 1)
  depthwise: bool = False
  use_bias: bool = False
  beside: int = 1
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
    inputs = 1 if self.depthwise else x.shape[-1] // self.beside
    shape = (*self.kernel_size, inputs, self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    x = x.astype(self.dtype)
    if self.beside > 1:
      return lanes.conv3d(x, kernel, self.strides, self.beside)
    kernel = kernel.astype(self.dtype)
    if self.depthwise:
      x = depthwise_temporal(x, kernel[:, 0, 0, 0], stride=self.strides[0])
    else:
      x = conv3d(x, kernel, strides=self.strides)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      x = x + bias.astype(self.dtype)
    return x


class DepthwiseConv(nn.Module):
  """3-D convolution of every channel by itself; the parameter is 'kernel'.

  Attributes:
    features: Channels of the kernel, [kt, kh, kw, 1, features].
    kernel_size: (kt, kh, kw); odd, so that padding is symmetric.
    strides: Of T, H and W.
    dtype: Compute type; the parameter is created in float32.
    kernel_init: Initialiser of the kernel.
  """

  features: int
  kernel_size: tuple[int, int, int]
  strides: tuple[int, int, int] = (1, 1, 1)
  dtype: Any = jnp.float32
  kernel_init: Callable = conv_init

  @nn.compact
  def __call__(self, x: Float[Array, 'B T H W C']) -> Float[Array, 'B t h w C']:
    """Convolves.

    Args:
      x: Its channels are a multiple of the kernel's, which is repeated: heads
        share a kernel.
    """
    shape = (*self.kernel_size, 1, self.features)
    kernel = self.param('kernel', self.kernel_init, shape).astype(self.dtype)
    kernel = jnp.tile(kernel[:, :, :, 0], x.shape[-1] // self.features)
    return depthwise(x.astype(self.dtype), kernel, self.strides)


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


def join(x: Array, y: Array, *, relu_after: bool = True) -> Array:
  """The sum of two branches, such as a block and its shortcut.

  Args:
    x, y: Of the same shape.
    relu_after: Whether the sum goes through a ReLU.
  """
  x = x + y
  return folded.materialize(relu(x) if relu_after else x)


def depthwise_temporal(
  x: Float[Array, 'B T H W C'],
  weights: Float[Array, 'r C'],
  *,
  stride: int = 1,
  blend: Callable[[Array, Array], Array] = operator.add,
) -> Float[Array, 'B t H W C']:
  """Weighs every channel over neighbouring frames, zero-padded in time.

  y[:, t] = sum over i of weights[i] * x[:, t * stride + i - r // 2].

  Shifted multiply-adds, which XLA fuses into one pass, on every backend; on
  CPUs a grouped convolution is much slower.

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
      folded.shift_time(x, r // 2 - i)[:, ::stride] * weights[i]
      for i in folded.taps(r, x.shape[1])
    ),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
  x: Float[Array, 'B T H W C'],
  kernel: Float[Array, 'kt kh kw C'],
  strides: tuple[int, int, int],
) -> Float[Array, 'B t h w C']:
  """Convolves every channel by itself, zero-padded by half the kernel.

  As `conv3d`, every axis of n elements becomes ceil(n / stride); sums are in
  float32 at least.

  Multiply-adds of slices, which XLA fuses into one pass, on every backend. (A
  grouped convolution is much slower on CPUs, above all its gradients.)

  Args:
    x: Video features.
    kernel: Weights, of the same dtype as `x`; its sides are odd.
    strides: Of T, H and W.
  """
  exact = jnp.promote_types(x.dtype, jnp.float32)
  axes = list(zip(x.shape[1:4], kernel.shape[:3], strides, strict=True))
  counts = [-(-n // s) for n, _, s in axes]
  # Taps that see nothing but padding are left out.
  taps = [
    [a for a in range(k) if any(0 <= i * s + a - k // 2 < n for i in range(m))]
    for (n, k, s), m in zip(axes, counts, strict=True)
  ]
  padded = _pad_for(x, kernel.shape[:3])
  y = jnp.zeros((), exact)
  for tap in itertools.product(*taps):
    part = padded
    for axis, (a, m, s) in enumerate(zip(tap, counts, strides, strict=True), 1):
      part = lax.slice_in_dim(part, a, a + (m - 1) * s + 1, s, axis=axis)
    y = y + part.astype(exact) * kernel[tap].astype(exact)
  return y.astype(x.dtype)


def _depthwise_forward(x, kernel, strides):
  return depthwise(x, kernel, strides), (x, kernel)


def _depthwise_backward(strides, residuals, cotangent):
  x, kernel = residuals
  # Dilated to x's size, the cotangent meets the taps in reverse.
  sides = zip(x.shape[1:4], cotangent.shape[1:4], strides, strict=True)
  dilated = lax.pad(
    cotangent,
    jnp.zeros((), cotangent.dtype),
    [(0, 0, 0)]
    + [(0, n - 1 - (m - 1) * s, s - 1) for n, m, s in sides]
    + [(0, 0, 0)],
  )
  return (
    depthwise(dilated, kernel[::-1, ::-1, ::-1], (1, 1, 1)),
    _depthwise_kernel_gradient(x, kernel, strides, cotangent),
  )


def _depthwise_kernel_gradient(x, kernel, strides, cotangent):
  """Of each tap, the cotangents times what it weighs, summed.

  A loop: a program of as many reductions takes seconds to compile.
  """
  exact = jnp.promote_types(x.dtype, jnp.float32)
  x = _pad_for(x, kernel.shape[:3])
  counts = cotangent.shape[1:4]
  sides = [(m - 1) * s + 1 for m, s in zip(counts, strides, strict=True)]
  st, sh, sw = strides

  def of_tap(tap):
    part = lax.dynamic_slice(x, (0, *tap, 0), (x.shape[0], *sides, x.shape[4]))[
      :, ::st, ::sh, ::sw
    ]
    return (part.astype(exact) * cotangent.astype(exact)).sum((0, 1, 2, 3))

  taps = jnp.indices(kernel.shape[:3]).reshape(3, -1)
  sums = lax.map(of_tap, tuple(taps))
  return sums.reshape(kernel.shape).astype(kernel.dtype)


def _pad_for(x, kernel_size):
  """Adds half a kernel of zeros on both sides of T, H and W."""
  halves = ((k // 2, k // 2) for k in kernel_size)
  return jnp.pad(x, ((0, 0), *halves, (0, 0)))


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


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
      folded.shift_time(folded.pointwise(x, weights[i]), r // 2 - i)
      for i in folded.taps(r, x.shape[1])
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
  x = folded.pad_axis(x, axis, 1, padding)
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
