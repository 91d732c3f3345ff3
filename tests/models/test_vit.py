"""Video transformers: grids, options, drop path. See test_reference_vit.py."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.config import fields
from mgjax.errors import ConfigError
from mgjax.models import norm, positions
from mgjax.models.vit import Block
from mgjax.planning import macs
from mgjax.recipes import transformers
from mgjax.setup import network

VJEPA2 = {'positions': 'rope', 'qkv_bias': 'qkv', 'pool': 'probe'}
KINDS = {
  'videomae': {'position_grid': (8, 48, 64)},
  'first': {'pool': 'first', 'qkv_bias': ''},
  'vjepa2': VJEPA2 | {'probe_blocks': 1, 'probe_heads': 1},
}
# By name: parameters and multiply-adds of the references, counted by torch.
FACTS = json.loads(
  (
    pathlib.Path(__file__).parents[1] / 'golden/transformers/facts.json'
  ).read_text()
)


def small(**options):
  options = {'patch_px': 16, 'width': 24, 'heads': 2, 'depth': 2} | options
  return models.build('vit', num_classes=5, **options)


def clips(*shape):
  return jax.random.normal(jax.random.key(1), (*shape, 3))


@functools.cache
def small_variables(kind):
  model = small(**KINDS[kind])
  variables = jax.jit(model.init)(
    jax.random.key(0), models.example_video(model, 8)
  )
  # Make all branches count, and no two features be equal.
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return jax.tree.unflatten(
    tree,
    [
      x + 0.2 * jax.random.normal(key, x.shape)
      for x, key in zip(leaves, keys, strict=True)
    ],
  )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
  'grid', [(1, 2, 16, 16), (2, 8, 48, 64), (1, 6, 112, 32), (1, 16, 16, 96)]
)
def test_one_tree_serves_every_grid(kind, grid):
  model = small(**KINDS[kind])
  found = jax.eval_shape(model.init, jax.random.key(0), clips(*grid))
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(
    jnp.shape, small_variables(kind)
  )
  logits = jax.jit(model.apply)(small_variables(kind), clips(*grid))
  assert logits.shape == (grid[0], 5) and jnp.isfinite(logits).all()


@pytest.mark.parametrize('kind', KINDS)
def test_bfloat16_gives_float32_logits_that_are_near(kind):
  video, variables = clips(2, 4, 32, 48), small_variables(kind)
  exact = jax.jit(small(**KINDS[kind]).apply)(variables, video)
  found = jax.jit(small(**KINDS[kind], dtype='bfloat16').apply)(
    variables, video
  )
  assert found.dtype == jnp.float32
  assert jnp.abs(found - exact).max() < 0.1 * jnp.std(exact)


@pytest.mark.parametrize(
  'grid,words',
  [
    (
      (7, 32, 32),
      'clips have 7 frames; with tubelet_frames=2 it must be a mul',
    ),
    (
      (8, 40, 32),
      'clips have 40 rows; .* multiple of 16 .grid.side_multiple=1',
    ),
    (
      (8, 32, 158),
      'clips have 158 columns; with patch_px=16 it must be a mult',
    ),
    ((1, 32, 32), 'clips have 1 frames; .*grid.frames_multiple=2 makes all gr'),
  ],
)
def test_a_grid_that_tubelets_do_not_divide_is_refused(grid, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(small().init, jax.random.key(0), clips(1, *grid))


@pytest.mark.parametrize(
  'options,words',
  [
    ({'heads': 5}, 'heads is 5; it must divide the width of 24'),
    ({'probe_heads': 7}, 'probe_heads is 7; it must divide the width of 24'),
    ({'position_grid': (8, 40, 48)}, 'position_grid has 40 rows; .* of 16'),
    ({'positions': 'rope', 'heads': 6}, 'every head must have 6 or more'),
    ({'qkv_bias': 'q'}, "qkv_bias is 'q'; it must be 'qkv', 'qv' or ''"),
    ({'drop_path': 1.0}, r'drop_path is 1.0; it must be in \[0, 1\)'),
    ({'blocks': (1, 1)}, "'vit' has no option blocks"),
  ],
)
def test_options_that_cannot_be_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    small(**options)


def test_options_that_mean_nothing_here_change_nothing():
  """A table's grid where there is no table may be any."""
  small(positions='rope', position_grid=(7, 7, 7))


def test_the_window_of_a_table_is_left_alone_at_its_own_size():
  for kernel in (positions._LINEAR, positions._CUBIC):
    np.testing.assert_array_equal(
      positions.interpolation(7, 7, kernel), np.eye(7)
    )
    # A constant stays one, also beyond the ends.
    for size, new_size in ((14, 10), (4, 7), (1, 3), (5, 1)):
      matrix = positions.interpolation(size, new_size, kernel)
      np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_positions_tell_frames_rows_and_columns_apart():
  """The same tokens in another order give other logits."""
  video = clips(1, 4, 32, 32)
  for kind in ('videomae', 'vjepa2'):
    apply = functools.partial(
      jax.jit(small(**KINDS[kind]).apply), small_variables(kind)
    )
    plain = apply(video)
    tubelets = video.reshape(1, 2, 2, 2, 16, 2, 16, 3)
    for axis in (1, 3, 5):
      other = jnp.flip(tubelets, axis).reshape(video.shape)
      assert jnp.abs(apply(other) - plain).max() > 1e-3 * jnp.std(plain)


# Drop path.


def test_drop_path_leaves_out_whole_branches_of_clips():
  block = Block(2, 96, 'qkv', 1e-6, 0.5, deterministic=False)
  x = jax.random.normal(jax.random.key(0), (64, 3, 24))
  rngs = {'params': jax.random.key(1), 'dropout': jax.random.key(2)}
  params = jax.jit(block.init)(rngs, x)

  @jax.jit
  def run(x, index):
    rngs = {'dropout': jax.random.key(3)}
    return block.apply(params, x, None, index, rngs=rngs)

  y = run(x, None)
  same = (y == x).all((1, 2))
  # Both branches of a quarter of the clips; no clip in part.
  assert 6 <= same.sum() <= 28
  assert (same == (y == x).any((1, 2))).all()
  # A clip's place in the whole batch decides.
  np.testing.assert_allclose(
    run(x[1::2], jnp.arange(1, 64, 2)), y[1::2], rtol=1e-5, atol=1e-5
  )


def test_drop_path_grows_from_the_first_block_to_the_last(monkeypatch):
  rates = []
  setup = Block.__call__

  def call(self, *args):
    rates.append(self.drop_path)
    return setup(self, *args)

  monkeypatch.setattr(Block, '__call__', call)
  model = small(depth=4, drop_path=0.3, pool='probe', probe_blocks=1)
  jax.eval_shape(model.init, jax.random.key(0), clips(1, 2, 16, 16))
  assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0])


def test_nothing_is_dropped_in_evaluation():
  model, plain = small(drop_path=0.5, dropout=0.5), small()
  video, variables = clips(8, 4, 32, 32), small_variables('videomae')
  expected = jax.jit(plain.apply)(variables, video)
  np.testing.assert_array_equal(
    jax.jit(model.apply)(variables, video), expected
  )
  trained = jax.jit(model.apply)(
    variables,
    video,
    same_group=norm.group_matrix(8, 1),
    rngs={'dropout': jax.random.key(0)},
  )
  assert jnp.abs(trained - expected).max() > 0.1


# Published sizes.


def config_of(name):
  config = fields.base()
  transformers.set_network(config, name)
  return config


@pytest.mark.parametrize(
  'name',
  [
    # Large ones take seconds to trace.
    pytest.param(name, marks=pytest.mark.slow if name[-1] in 'hg' else ())
    for name in transformers.NETWORKS
  ],
)
def test_a_published_transformer_has_the_size_of_its_reference(name):
  """Multiply-adds and parameters to the unit; no weight is made."""
  config = config_of(name)
  if name not in FACTS:
    assert network.model(with_classes(config, 4))
    return
  for fact in FACTS[name]:
    config.model.pool = fact.get('pool', config.model.pool)
    model = network.model(with_classes(config, fact['num_classes']))
    t, h, w = fact['grid']
    # What is not of the encoder, where the reference is an encoder alone.
    classes, width = fact['num_classes'], model.width
    extra = fact.get('pool') == 'first'
    shapes = jax.eval_shape(
      model.init, jax.random.key(0), models.example_video(model, t)
    )
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count - extra * classes * (width + 1) == fact['parameters']
    count = macs.forward_macs(model, T=t, H=h, W=w)
    assert count - extra * classes * width == fact['multiply_adds']


def with_classes(config, num_classes):
  config = config.copy_and_resolve_references()
  config.model.num_classes = num_classes
  return config


def test_an_unknown_transformer_lists_the_known_ones():
  with pytest.raises(ConfigError, match='videomae_s, .* vjepa2_g'):
    config_of('videomae_g')


# Initial weights.


def stds(params, *names):
  return [float(np.std(params[n]['kernel'])) for n in names]


@pytest.mark.parametrize('rescaled', [False, True])
def test_initial_weights_have_the_spread_of_the_references(rescaled):
  """0.02, but V-JEPA 2's last layers of block i, from 1: over root 2 i."""
  model = small(
    width=96, depth=3, pool='probe', probe_blocks=2, rescaled_init=rescaled
  )
  params = jax.jit(model.init)(jax.random.key(0), clips(1, 2, 16, 16))['params']
  scales = [(2 * i) ** -0.5 for i in (1, 2, 3)]
  for i, scale in enumerate(scales):
    block, expected = params[f'block{i}'], scale if rescaled else 1
    found = stds(block['mlp'], 'fc2') + stds(block['attention'], 'proj')
    assert found == pytest.approx([0.02 * expected] * 2, rel=0.05)
    plain = stds(block['mlp'], 'fc1') + stds(block['attention'], 'qkv')
    assert plain == pytest.approx([0.02] * 2, rel=0.05)
  probe = params['probe']
  for i, scale in enumerate(scales[:2]):
    assert stds(probe[f'block{i}']['mlp'], 'fc2') == pytest.approx(
      [0.02 * scale], rel=0.05
    )
  # The query's own MLP as the last block in front of it.
  assert stds(probe['mlp'], 'fc2') == pytest.approx(
    [0.02 * scales[1]], rel=0.05
  )
  assert stds(probe, 'q', 'kv') == pytest.approx([0.02] * 2, rel=0.05)
  # Nothing is cut off at two standard deviations.
  assert np.abs(params['block0']['mlp']['fc1']['kernel']).max() > 3.5 * 0.02


def test_the_classifier_starts_as_small_as_its_option_says():
  model = small(width=96, head_std=2e-5)
  params = jax.jit(model.init)(jax.random.key(0), clips(1, 2, 16, 16))['params']
  classifier = params['head']['classifier']
  assert stds(params['head'], 'classifier') == pytest.approx([2e-5], rel=0.15)
  assert not classifier['bias'].any()
