"""Micro-batches and rematerialised blocks change nothing but the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import moving_digits
from mgjax import models
from mgjax.cli import ConfigError
from mgjax.config import fields
from mgjax.models import norm
from mgjax.setup import grids, network
from mgjax.step import train_state, train_step

PIXELS = {'mean': (0.45, 0.4, 0.5), 'std': (0.225, 0.2, 0.25)}
GROUPS = 4


def make_batch():
  rng = np.random.default_rng(0)
  return {
    'video': rng.integers(0, 256, (8, 4, 16, 16, 3), np.uint8),
    'label': rng.integers(0, 16, 8, np.int32),
    'flip': rng.integers(0, 2, 8).astype(bool),
  }


def steps(dtype, *variants):
  """The states and metrics of one step, for each variant of the program."""
  config = fields.base()
  model = models.build(
    'slow',
    num_classes=16,
    dropout=0.5,
    dtype=dtype,
    blocks=(1,),
    width=4,
  )
  tx = network.optimizer(config)
  state = train_state.create_state(
    model, tx, jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3)), average=True
  )
  rng = np.random.default_rng(1)
  # All at random: some start at zero and would hide mistakes. Not so the
  # momentum, which is the gradient after one step from zero.
  at_random = jax.tree.map(
    lambda x: (
      jnp.asarray(rng.uniform(0.5, 1.5, x.shape), dtype)
      if jnp.issubdtype(x.dtype, jnp.floating)
      else x
    ),
    state,
  )
  state = at_random.replace(
    opt_state=jax.tree.map(jnp.zeros_like, at_random.opt_state)
  )
  results = []
  for variant in variants:
    remat = variant.pop('remat', False)
    step = train_step.make_train_step(
      model.clone(remat=remat), tx, **PIXELS, ema_decay=0.9, **variant
    )
    results.append(
      jax.jit(step)(
        state,
        make_batch(),
        jnp.float32(0.1),
        jnp.int32(GROUPS),
        jax.random.key(7),
      )
    )
  return state, results


def largest_difference(a, b):
  """Over all arrays, relative to the largest number of each."""
  return max(
    float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-3))
    for x, y in zip(
      *(
        [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
        for tree in (a, b)
      ),
      strict=True,
    )
  )


@pytest.fixture(scope='module')
def float32():
  return steps(
    'float32', {}, {'micro_batches': 2}, {'remat': True, 'micro_batches': 1}
  )


def test_micro_batches_equal_the_whole_batch_in_float64():
  with jax.enable_x64(True):
    _, ((whole, one), (parts, other)) = steps(
      'float64', {}, {'micro_batches': 4}
    )
    # State: parameters, gradients (the momentum), running statistics.
    assert largest_difference(whole, parts) < 1e-12
    assert largest_difference(one, other) < 1e-12


def test_micro_batches_equal_the_whole_batch_in_float32(float32):
  _, ((whole, one), (parts, other), _) = float32
  # The momentum after the first step is the gradient and weight decay. That
  # 2.05e-5 is rounding, the test above shows.
  assert largest_difference(whole.opt_state, parts.opt_state) < 3e-5
  assert largest_difference(whole.batch_stats, parts.batch_stats) < 1e-6
  assert largest_difference(one, other) < 1e-6


def test_rematerialised_blocks_give_the_same_step(float32):
  _, ((kept, one), _, (again, other)) = float32
  # Rounding, as above.
  assert largest_difference(kept, again) < 2e-5
  assert largest_difference(one, other) < 1e-6


def test_the_step_moves_the_average_of_the_weights(float32):
  before, ((after, _), *_) = float32
  d = 1 / 10  # The first step of a decay of 0.9.
  want = jax.tree.map(
    lambda a, p: d * a + (1 - d) * p, before.ema, after.params
  )
  assert largest_difference(after.ema, want) < 1e-6
  assert after.eval_params is after.ema
  assert after.replace(ema={}).eval_params is after.params


def test_dropout_masks_belong_to_the_clips():
  """A part of a batch has the masks that its clips have in the whole."""
  from mgjax.models.dropout import Dropout

  x = jnp.ones((8, 100))
  run = lambda x, clips: Dropout(0.25).apply(
    {}, x, clips, deterministic=False, rngs={'dropout': jax.random.key(0)}
  )
  whole = run(x, None)
  np.testing.assert_array_equal(run(x[1::2], jnp.arange(1, 8, 2)), whole[1::2])
  assert not (whole[0] == whole[1]).all()
  # 800 draws of a rate of 0.25; kept features are scaled up.
  assert float((whole == 0).mean()) == pytest.approx(0.25, abs=0.05)
  np.testing.assert_allclose(whole[whole != 0], 1 / 0.75, rtol=1e-6)


# Networks without stages of blocks.
SMALL = {
  'vit': {'depth': 2, 'heads': 2},
  'timesformer': {'depth': 2, 'heads': 2},
  'videoprism': {
    'spatial_depth': 2,
    'temporal_depth': 1,
    'heads': 2,
    'patch_px': 16,
  },
}


@pytest.mark.parametrize('name', sorted(models.MODELS))
def test_rematerialisation_keeps_the_tree_and_reaches_the_blocks(name):
  size = SMALL.get(name, {'blocks': (1, 1)})
  model = models.build(
    name, num_classes=4, dropout=0.5, dtype='float32', width=8, **size
  )
  video = jnp.zeros((2, 8, 32, 32, 3))

  def residual_bytes(model, variables):
    """What automatic differentiation keeps for the backward pass."""

    def loss(params):
      logits, _ = model.apply(
        {**variables, 'params': params},
        video,
        same_group=norm.group_matrix(2, 1),
        rngs={'dropout': jax.random.key(0)},
        mutable=['batch_stats'],
      )
      return logits.sum()

    kept = jax.eval_shape(
      lambda params: jax.vjp(loss, params)[1], variables['params']
    )
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))

  init = lambda model: jax.eval_shape(model.init, jax.random.key(0), video)
  again = model.clone(remat=True)
  variables = init(model)
  assert jax.tree.structure(variables) == jax.tree.structure(init(again))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
  assert residual_bytes(again, zeros) < 0.8 * residual_bytes(model, zeros)


def test_groups_that_do_not_divide_into_micro_batches_are_refused():
  config = moving_digits.get_config('grid=both')
  config.norm.group_clips = 4
  config.train.micro_batches = 4
  with pytest.raises(
    ConfigError, match=r'phase 4 of 5 \(1B x .*micro_batches=4'
  ):
    grids.schedule(config, 4000)
  config.train.micro_batches = 2
  grids.schedule(config, 4000)
  with pytest.raises(ConfigError, match='do not divide among 8 devices'):
    grids.schedule(config, 4000, num_devices=8)


def test_parts_add_up_where_classes_have_weights():
  weights = tuple(np.linspace(0.1, 3, 16))
  with jax.enable_x64(True):
    _, ((whole, one), (parts, other)) = steps(
      'float64',
      {'class_weights': weights},
      {'class_weights': weights, 'micro_batches': 4},
    )
    assert largest_difference(whole, parts) < 1e-12
    assert largest_difference(one, other) < 1e-12
