"""Every formulation of a convolution is the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mgjax.models import conv

CASES = [  # Kernel, strides, [B, T, H, W].
  ((1, 1, 1), (1, 1, 1), (2, 3, 5, 4)),
  ((1, 1, 1), (1, 2, 2), (2, 3, 5, 4)),
  ((1, 1, 1), (2, 1, 1), (1, 5, 2, 3)),
  ((3, 1, 1), (1, 1, 1), (2, 5, 3, 3)),
  ((3, 1, 1), (1, 1, 1), (2, 1, 3, 3)),  # Fewer frames than taps.
  ((7, 1, 1), (4, 1, 1), (2, 16, 3, 2)),
  ((7, 1, 1), (4, 1, 1), (2, 9, 3, 2)),
  ((5, 1, 1), (8, 1, 1), (2, 8, 2, 2)),
  ((1, 3, 3), (1, 1, 1), (2, 2, 7, 6)),
  ((1, 3, 3), (1, 2, 2), (2, 2, 10, 7)),
  ((1, 3, 3), (1, 1, 1), (2, 2, 2, 4)),  # Maps smaller than the kernel.
  ((1, 3, 3), (1, 2, 2), (2, 2, 4, 9)),
  ((1, 3, 3), (1, 2, 2), (2, 2, 1, 1)),
  ((1, 7, 7), (1, 2, 2), (2, 2, 11, 14)),
  ((5, 7, 7), (1, 2, 2), (2, 4, 11, 8)),
  ((5, 7, 7), (1, 2, 2), (1, 2, 9, 9)),
  ((3, 3, 3), (2, 2, 1), (2, 5, 7, 6)),
]
WIDE = [  # And channels: every form that is chosen by their number.
  ((3, 1, 1), (1, 1, 1), (2, 4, 3, 2), (64, 72)),  # Frames, transposed.
  ((5, 1, 1), (1, 1, 1), (2, 2, 3, 2), (64, 8)),  # Not all taps see a frame.
  ((1, 3, 3), (1, 1, 1), (2, 2, 9, 8), (64, 64)),  # Rows, both ways.
  ((1, 3, 3), (1, 1, 1), (2, 2, 9, 8), (64, 128)),
  ((1, 3, 3), (1, 1, 1), (2, 2, 9, 8), (128, 64)),
  ((1, 3, 3), (1, 1, 1), (2, 2, 9, 8), (32, 64)),
  ((1, 3, 3), (1, 1, 1), (2, 2, 7, 6), (64, 72)),  # Columns forward.
  ((1, 3, 3), (1, 1, 1), (1, 64, 1, 2), (64, 64)),  # One row, many positions.
  ((1, 3, 3), (1, 1, 1), (1, 1, 5, 7), (64, 64)),  # Few positions.
  ((1, 3, 3), (1, 2, 2), (2, 2, 17, 18), (64, 72)),
  ((1, 7, 7), (1, 2, 2), (2, 2, 13, 14), (3, 64)),  # Planes.
  ((5, 7, 7), (1, 2, 2), (2, 4, 11, 8), (3, 16)),
  ((5, 7, 7), (1, 2, 2), (2, 2, 11, 8), (3, 24)),  # Fewer frames than taps.
  ((5, 7, 7), (2, 2, 2), (1, 5, 11, 8), (3, 16)),
]


@pytest.mark.parametrize(
  'kernel_size,strides,shape,channels', [*((*c, (3, 4)) for c in CASES), *WIDE]
)
def test_folded_convolution_and_gradients_equal_native(
  kernel_size, strides, shape, channels
):
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*shape, channels[0]))
    kernel = rng.normal(size=(*kernel_size, *channels))

    def run(formulation, x, kernel):
      f = lambda x, kernel: conv.conv3d(
        x, kernel, strides=strides, formulation=formulation
      )
      y, vjp = jax.vjp(f, x, kernel)
      return y, *vjp(
        jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
      )

    # float64, sums of at most 1152 terms of order 1: rounding is below 1e-12.
    run = jax.jit(run, static_argnums=0)
    results = run('folded', x, kernel), run('native', x, kernel)
    for folded, native in zip(*results, strict=True):
      np.testing.assert_allclose(folded, native, rtol=0, atol=1e-12)


@pytest.mark.parametrize('size', [32, 45, 79, 113])
def test_strided_axes_are_halved_upwards(size):
  out = jax.eval_shape(
    lambda x, k: conv.conv3d(x, k, strides=(1, 2, 2)),
    jax.ShapeDtypeStruct((1, 4, size, size, 3), jnp.float32),
    jax.ShapeDtypeStruct((5, 7, 7, 3, 8), jnp.float32),
  )
  half = -(-size // 2)
  assert out.shape == (1, 4, half, half, 8)


def test_average_pools_of_bfloat16_are_rounded_once():
  x = jax.random.normal(jax.random.key(0), (2, 7, 9, 10, 4), jnp.bfloat16)
  for pool in (conv.avg_pool_spatial, conv.avg_pool_temporal_overlapping):
    exact = pool(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(pool(x), exact)


def test_unknown_formulation_is_an_error():
  with pytest.raises(ValueError, match="'auto', 'native' or 'folded'"):
    conv.conv3d(
      jnp.zeros((1, 1, 1, 1, 1)),
      jnp.zeros((1, 1, 1, 1, 1)),
      formulation='winograd',
    )


@pytest.mark.parametrize(
  'kernel_size,strides,shape',
  [
    ((3, 3, 3), (1, 1, 1), (2, 4, 5, 6)),
    ((3, 3, 3), (1, 2, 2), (2, 2, 7, 4)),
    ((3, 3, 3), (1, 8, 8), (2, 3, 17, 9)),  # Most elements are not seen.
    ((3, 3, 3), (2, 4, 1), (1, 5, 6, 2)),
    ((5, 1, 3), (1, 2, 1), (1, 1, 1, 1)),  # Most taps see padding only.
    ((1, 7, 3), (1, 3, 2), (1, 2, 5, 8)),
  ],
)
def test_a_depthwise_convolution_and_gradients_equal_a_grouped_one(
  kernel_size, strides, shape
):
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*shape, 4))
    kernel = rng.normal(size=(*kernel_size, 4))

    @jax.jit
    def run(x, kernel):
      ours = lambda x, kernel: conv.depthwise(x, kernel, strides)
      theirs = lambda x, k: conv.native(x, k[:, :, :, None], strides)
      found = []
      for f in (ours, theirs):
        y, vjp = jax.vjp(f, x, kernel)
        found.append((y, *vjp(jnp.sin(y))))
      return found

    for found, expected in zip(*run(x, kernel), strict=True):
      np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_heads_share_a_depthwise_kernel():
  layer = conv.DepthwiseConv(3, (1, 3, 3), (1, 2, 2))
  x = jax.random.normal(jax.random.key(0), (1, 2, 5, 4, 6))
  y, variables = layer.init_with_output(jax.random.key(1), x)
  assert variables['params']['kernel'].shape == (1, 3, 3, 1, 3)
  for part in (slice(3), slice(3, 6)):
    np.testing.assert_allclose(
      y[..., part], layer.apply(variables, x[..., part]), atol=1e-6
    )


def test_a_depthwise_convolution_in_bfloat16_sums_in_float32():
  """256 + 27 * 0.5 would stay 256 if each sum were rounded."""
  x = jnp.full((1, 3, 3, 3, 1), 0.5, jnp.bfloat16).at[0, 0, 0, 0, 0].set(256)
  ones = jnp.ones((3, 3, 3, 1), jnp.bfloat16)
  y = conv.depthwise(x, ones, (1, 1, 1))
  assert y.dtype == jnp.bfloat16
  assert float(y[0, 1, 1, 1, 0]) == 268  # Of 256 + 13, in steps of 2: even.


def test_a_bias_is_added_where_asked():
  layer = conv.Conv(2, (1, 1, 1), use_bias=True)
  kernel = jnp.ones((1, 1, 1, 1, 2))
  params = {'kernel': kernel, 'bias': jnp.array([1.0, -2.0])}
  y = layer.apply({'params': params}, jnp.full((1, 1, 1, 1, 1), 5.0))
  assert y.ravel().tolist() == [6, 3]


@pytest.mark.parametrize('kernel', [(1, 3, 3), (3, 1, 1)])
def test_depthwise_layers_are_temporal(kernel):
  strides = (1, 1, 1) if kernel == (1, 3, 3) else (1, 2, 2)
  with pytest.raises(ValueError, match='is not temporal only'):
    conv.Conv(4, kernel, strides, depthwise=True)


@pytest.mark.parametrize('h,w', [(8, 8), (7, 10), (1, 2)])
def test_spatial_max_pool_equals_reduce_window(h, w):
  x = jax.random.normal(jax.random.key(0), (2, 3, h, w, 4))
  expected = lax.reduce_window(
    x,
    -jnp.inf,
    lax.max,
    (1, 1, 3, 3, 1),
    (1, 1, 2, 2, 1),
    ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)),
  )
  np.testing.assert_array_equal(conv.max_pool_spatial(x), expected)


@pytest.mark.parametrize(
  't,expected', [(4, [1, 3]), (5, [1, 3]), (2, [1]), (1, [0])]
)
def test_temporal_max_pool_takes_pairs_and_drops_an_odd_frame(t, expected):
  x = jnp.arange(t, dtype=jnp.float32).reshape(1, t, 1, 1, 1)
  assert conv.max_pool_temporal(x).ravel().tolist() == expected


def test_kernels_start_with_the_variance_of_their_fan_out():
  module = conv.Conv(64, (3, 3, 3))
  kernel = module.init(jax.random.key(0), jnp.zeros((1, 3, 3, 3, 32)))
  kernel = kernel['params']['kernel']
  # 55296 normal draws: the standard deviation is known to 0.3 % (1 sigma).
  assert np.std(kernel) == pytest.approx((2 / (27 * 64)) ** 0.5, rel=0.015)


@pytest.mark.parametrize('h,w', [(8, 8), (7, 10), (1, 2)])
def test_spatial_average_pool_counts_its_padding(h, w):
  x = jax.random.normal(jax.random.key(0), (2, 3, h, w, 4))
  window, strides = (1, 1, 3, 3, 1), (1, 1, 2, 2, 1)
  padding = ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))
  expected = lax.reduce_window(x, 0.0, lax.add, window, strides, padding) / 9
  # float32, sums of nine terms of order 1.
  np.testing.assert_allclose(conv.avg_pool_spatial(x), expected, atol=1e-6)


@pytest.mark.parametrize('t,expected', [(4, [1, 3]), (5, [1, 3, 4]), (1, [0])])
def test_overlapping_temporal_max_pool_is_centred_and_rounds_up(t, expected):
  x = jnp.arange(t, dtype=jnp.float32).reshape(1, t, 1, 1, 1)
  pooled = conv.max_pool_temporal_overlapping(x)
  assert pooled.ravel().tolist() == expected


@pytest.mark.parametrize('height,width', [(6, 8), (7, 10), (79, 113), (1, 2)])
def test_upsampling_takes_the_nearest_as_torch_does(height, width):
  h, w = (height + 1) // 2, (width + 1) // 2
  x = np.random.default_rng(0).normal(size=(1, 2, h, w, 3)).astype(np.float32)
  rows = np.arange(height) * h // height
  columns = np.arange(width) * w // width
  y = conv.upsample_spatial(jnp.asarray(x), height=height, width=width)
  np.testing.assert_array_equal(y, x[:, :, rows][:, :, :, columns])


def test_upsampling_to_another_size_is_an_error():
  with pytest.raises(ValueError, match='not the upper half of 9'):
    conv.upsample_spatial(jnp.zeros((1, 1, 4, 4, 1)), height=9, width=8)
