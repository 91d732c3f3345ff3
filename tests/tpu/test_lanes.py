"""Frames beside channels: the same numbers as frames one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import kinetics400
from mgjax import models
from mgjax.hosts import parallel
from mgjax.models import conv
from mgjax.setup import network
from mgjax.tpu import lanes


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def normal(seed: int, *shape: int):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize(
  ('channels', 'frames', 'found'),
  [(8, 32, 16), (8, 8, 8), (8, 12, 12), (8, 18, 9), (3, 32, 32), (256, 8, 1)],
)
def test_as_many_frames_as_fill_the_lanes_lie_beside(channels, frames, found):
  assert lanes.num_beside(channels, frames, 128) == found
  assert lanes.num_beside(channels, frames, 1) == 1


@pytest.mark.parametrize(('before', 'after'), [(1, 4), (6, 2), (2, 6), (4, 6)])
def test_frames_are_regrouped_in_their_order(before, after):
  video = normal(0, 2, 12, 2, 3, 5)

  def beside(n):
    groups = video.reshape(2, 12 // n, n, 2, 3, 5)
    return jnp.moveaxis(groups, 2, 4).reshape(2, 12 // n, 2, 3, n * 5)

  np.testing.assert_array_equal(
    lanes.regroup(beside(before), before, after), beside(after)
  )


def test_frames_that_are_no_multiple_are_not_regrouped():
  with pytest.raises(ValueError, match='12 frames are not a multiple of 5'):
    lanes.regroup(normal(0, 1, 12, 1, 1, 2), 1, 5)


@pytest.mark.parametrize(
  ('kernel', 'strides', 'frames', 'beside'),
  [
    ((1, 1, 1), (1, 1, 1), 8, 4),
    ((1, 3, 3), (1, 2, 2), 8, 4),
    ((3, 1, 1), (1, 1, 1), 8, 4),
    ((3, 1, 1), (1, 1, 1), 8, 8),  # All frames beside: no others are seen.
    ((7, 1, 1), (4, 1, 1), 16, 8),
    ((7, 1, 1), (2, 1, 1), 6, 2),  # A kernel of more than two groups.
    ((5, 7, 7), (1, 2, 2), 8, 4),
    ((5, 1, 1), (3, 1, 1), 12, 3),
  ],
)
def test_a_convolution_and_its_gradients_are_the_same(
  kernel, strides, frames, beside
):
  x = normal(1, 2, frames, 6, 5, 3)
  weights = normal(2, *kernel, 3, 2)

  def plain(x, weights):
    return conv.native(x, weights, strides)

  def folded(x, weights):
    y = lanes.conv3d(lanes.regroup(x, 1, beside), weights, strides, beside)
    return lanes.regroup(y, beside // strides[0], 1)

  expected, pull = jax.vjp(plain, x, weights)
  found, pull_folded = jax.vjp(folded, x, weights)
  np.testing.assert_allclose(found, expected, atol=1e-12)
  cotangent = normal(3, *expected.shape)
  for got, wanted in zip(pull_folded(cotangent), pull(cotangent), strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_a_stride_that_does_not_divide_the_frames_is_refused():
  with pytest.raises(ValueError, match='stride of 4 does not divide 6'):
    lanes.conv3d(
      normal(0, 1, 2, 1, 1, 12), normal(1, 1, 1, 1, 2, 2), (4, 1, 1), 6
    )


@pytest.mark.parametrize(
  'options',
  [
    {'alpha': 4, 'frames': 8},
    # Fewer frames beside than alpha, and none at non-local blocks.
    pytest.param(
      {
        'alpha': 8,
        'frames': 16,
        'num_lanes': 16,
        'nonlocal_blocks_fast': ((), (0,)),
      },
      marks=pytest.mark.slow,
    ),
    pytest.param({'alpha': 2, 'frames': 6}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_a_slowfast_with_frames_beside_is_the_same(options):
  options = {'num_lanes': 128, **options}
  frames, num_lanes = options.pop('frames'), options.pop('num_lanes')
  plain = models.build(
    'slowfast',
    num_classes=3,
    dtype='float64',
    blocks=(1, 1),
    width=8,
    beta_inv=4,
    **options,
  )
  folded = plain.changed(num_lanes=num_lanes)
  video = normal(4, 2, frames, 8, 8, 3)
  variables = jax.tree.map(
    lambda v: v + 0.1 * np.abs(normal(v.size, *v.shape)),
    jax.jit(plain.init)(jax.random.key(0), video),
  )
  assert jax.tree.structure(
    jax.eval_shape(folded.init, jax.random.key(0), video)
  ) == jax.tree.structure(variables)

  def all_of(model):
    def loss(params):
      logits, moments = model.apply(
        {**variables, 'params': params},
        video,
        same_group=models.group_matrix(2, 2),
        deterministic=True,
        mutable=['batch_stats', 'batch_moments'],
      )
      return jax.nn.logsumexp(logits), (logits, moments)

    evaluated = model.apply(variables, video)
    return jax.grad(loss, has_aux=True)(variables['params']), evaluated

  compute = jax.jit(all_of, static_argnums=0)
  jax.tree.map(
    lambda found, expected: np.testing.assert_allclose(
      found, expected, atol=1e-9 * max(1, np.abs(expected).max())
    ),
    compute(folded),
    compute(plain),
  )


def test_networks_have_frames_beside_channels_on_tpus_alone(monkeypatch):
  config = kinetics400.get_config('grid=both')
  mesh = parallel.make_mesh()
  assert network.compose(config, mesh).model.num_lanes == 1
  assert network.model(config).on('tpu').num_lanes == 128
  monkeypatch.setattr(parallel, 'platform', lambda mesh: 'tpu')
  assert network.compose(config, mesh).model.num_lanes == 128
