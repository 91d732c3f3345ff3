"""Temporal aggregation and shift, and that the one contains the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mgjax import models
from mgjax.models import conv, temporal


def convolve(x, weights, stride=1):
  """Sum over r frames as one convolution; weights: [r, 1 or C, D]."""
  r, inputs, _ = weights.shape
  return lax.conv_general_dilated(
    x,
    weights[:, None, None],
    (stride, 1, 1),
    ((r // 2, r // 2), (0, 0), (0, 0)),
    dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
    feature_group_count=x.shape[-1] // inputs,
  )


def largest(x, weights):
  """Maximum over r frames, zeros outside, as one maximum of an array."""
  r, inputs, _ = weights.shape
  t = x.shape[1]
  if inputs == 1:
    y = x[..., None, :] * weights[:, 0]
  else:
    y = jnp.einsum('bthwc,rcd->bthwrd', x, weights)
  y = jnp.pad(y, [(0, 0), (r // 2, r // 2), *[(0, 0)] * 4])
  return jnp.stack([y[:, i : i + t, ..., i, :] for i in range(r)]).max(0)


def assert_same_values_and_gradients(ours, theirs, x, weights):
  def run(f):
    y, vjp = jax.vjp(f, jnp.asarray(x), jnp.asarray(weights))
    return y, *vjp(jnp.sin(y))

  # float64, sums of at most 72 terms of order 1.
  for found, expected in zip(run(ours), run(theirs), strict=True):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('r,t', [(1, 6), (3, 1), (3, 6), (5, 2), (7, 6)])
def test_depthwise_temporal_equals_a_grouped_convolution(r, t, stride):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    assert_same_values_and_gradients(
      lambda x, w: conv.depthwise_temporal(x, w, stride=stride),
      lambda x, w: convolve(x, w[:, None], stride),
      rng.normal(size=(2, t, 2, 3, 4)),
      rng.normal(size=(r, 4)),
    )


@pytest.mark.parametrize('depthwise', [True, False])
@pytest.mark.parametrize('blend', ['sum', 'max'])
@pytest.mark.parametrize('r,t', [(3, 1), (3, 4), (5, 2), (7, 6)])
def test_aggregation_blends_weighted_frames(r, t, blend, depthwise):
  reference = {'sum': convolve, 'max': largest}[blend]
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    module = temporal.TemporalAggregation(r, blend, depthwise, jnp.float64)
    assert_same_values_and_gradients(
      lambda x, w: module.apply({'params': {'kernel': w}}, x),
      lambda x, w: jax.nn.relu(reference(x, w[:, None] if depthwise else w)),
      rng.normal(size=(2, t, 2, 3, 4)),
      rng.normal(size=(r, 4) if depthwise else (r, 4, 4)),
    )


@pytest.mark.parametrize('channels,shift_div', [(16, 8), (12, 8), (9, 3)])
def test_a_shift_moves_the_first_channels_back_and_the_next_on(
  channels, shift_div
):
  x = np.random.default_rng(0).normal(size=(2, 5, 1, 2, channels))
  x = x.astype(np.float32)
  fold = channels // shift_div
  expected = np.zeros_like(x)
  expected[:, :-1, ..., :fold] = x[:, 1:, ..., :fold]
  expected[:, 1:, ..., fold : 2 * fold] = x[:, :-1, ..., fold : 2 * fold]
  expected[..., 2 * fold :] = x[..., 2 * fold :]
  y = temporal.TemporalShift(shift_div).apply({}, jnp.asarray(x))
  np.testing.assert_array_equal(y, expected)


def test_tsm_is_tam_with_fixed_weights():
  options = dict(num_classes=3, dropout=0.0, dtype='float32')
  options |= dict(depth=18, blocks=(1, 1), width=8)
  tsm, tam = (models.build(name, **options) for name in ('tsm', 'tam'))
  video = jax.random.normal(jax.random.key(0), (1, 4, 16, 16, 3))
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    if path[-2].key == 'temporal':
      return jnp.asarray(temporal.shift_weights(leaf.shape[1], 8))
    return jnp.asarray(rng.uniform(0.5, 1.0, leaf.shape) - 0.7, jnp.float32)

  shapes = jax.eval_shape(tam.init, jax.random.key(1), video)
  variables = jax.tree.map_with_path(fill, shapes)
  variables['batch_stats'] = jax.tree.map(jnp.abs, variables['batch_stats'])
  learned = jax.jit(tam.apply)(variables, video)
  for stage in ('res2', 'res3'):
    variables['params'][stage]['block0'].pop('temporal')
  # A block's input is never negative, so that TAM's ReLU changes nothing.
  shifted = jax.jit(tsm.apply)(variables, video)
  np.testing.assert_allclose(learned, shifted, rtol=1e-5)
  # The shift matters: without it the logits of reversed frames are the same.
  backwards = jax.jit(tsm.apply)(variables, video[:, ::-1])
  assert np.abs(backwards - shifted).max() > 1e-3 * np.abs(shifted).max()


def test_aggregation_starts_with_he_weights_over_all_channels():
  kernel = temporal.aggregation_init(jax.random.key(0), (7, 4096))
  # 28672 normal draws: the standard deviation is known to 0.4 % (1 sigma).
  assert np.std(kernel) == pytest.approx((2 / 4096) ** 0.5, rel=0.02)


def test_an_even_number_of_frames_is_refused():
  with pytest.raises(ValueError, match='tam_frames is 4; use an odd number'):
    temporal.TemporalAggregation(4).init(
      jax.random.key(0), jnp.zeros((1, 4, 1, 1, 2))
    )
