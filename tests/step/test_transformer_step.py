"""Steps of the transformers: one state, any grid, every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import moving_digits
from mgjax.models import example_video
from mgjax.setup import network
from mgjax.step import train_state, train_step

NETWORKS = {
  'vivit': {
    'name': 'vit',
    'positions': 'learned',
    'qkv_bias': 'qkv',
    'gelu': 'tanh',
    'pool': 'class',
    'depth': 1,
  },
  'videoprism': {
    'name': 'videoprism',
    'spatial_depth': 1,
    'temporal_depth': 1,
  },
}


@pytest.mark.parametrize(
  'kind',
  ['vivit', pytest.param('videoprism', marks=pytest.mark.slow)],
)
def test_steps_at_two_grids_change_every_parameter(kind):
  config = moving_digits.get_config('size=tiny,model=vit')
  options = {
    'patch_px': 8,
    'width': 12,
    'heads': 2,
    'mlp_width': 16,
    'position_grid': (4, 32, 32),
    'dropout': 0.1,
    'drop_path': 0.1,
  } | NETWORKS[kind]
  config.model.choose(options.pop('name'))
  config.model.update(options)
  model, tx = network.model(config), network.optimizer(config)
  state = train_state.create_state(
    model, tx, jax.random.key(0), example_video(model, 4)
  )
  assert not state.batch_stats
  step = jax.jit(
    train_step.make_train_step(model, tx, mean=(0.5,) * 3, std=(0.25,) * 3),
    # Most of the time goes into compiling.
    compiler_options={
      'xla_backend_optimization_level': 0,
      'xla_llvm_disable_expensive_passes': True,
    },
  )
  rng = np.random.default_rng(0)
  for size in ((4, 4, 32, 32), (6, 2, 16, 24)):
    batch = {
      'video': rng.integers(0, 256, (*size, 3), np.uint8),
      'label': rng.integers(0, 16, size[0], np.int32),
      'flip': np.zeros(size[0], bool),
    }
    before = state.params
    state, metrics = step(
      state, batch, jnp.float32(0.1), jnp.int32(1), jax.random.key(1)
    )
    assert np.isfinite(metrics['loss'])
    same = jax.tree.map(lambda a, b: (a == b).all(), before, state.params)
    names = [
      jax.tree_util.keystr(path)
      for path, is_same in jax.tree.leaves_with_path(same)
      if is_same
    ]
    # The softmax does not see what all keys have in common.
    assert all('k_bias' in name or "'k']['bias" in name for name in names), (
      names
    )
