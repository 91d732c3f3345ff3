"""Video transformers: grids, options, drop path. See test_reference_vit.py."""

import functools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mgjax import models
from mgjax.config import fields
from mgjax.errors import ConfigError
from mgjax.models import attention, norm, positions
from mgjax.models.attention import Block
from mgjax.planning import macs
from mgjax.recipes import transformers
from mgjax.setup import network

VJEPA2 = {'positions': 'rope', 'qkv_bias': 'qkv', 'pool': 'probe'}
VIVIT = {
  'positions': 'learned',
  'qkv_bias': 'qkv',
  'gelu': 'tanh',
  'pool': 'class',
}
KINDS = {
  'videomae': {'position_grid': (8, 48, 64)},
  'first': {'pool': 'first', 'qkv_bias': ''},
  'vjepa2': VJEPA2 | {'probe_blocks': 1, 'probe_heads': 1},
  'vivit': VIVIT | {'position_grid': (8, 48, 64)},
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
    (
      {'positions': 'learned', 'position_grid': (7, 48, 48)},
      'position_grid has 7 frames; .* of 2',
    ),
    ({'gelu': 'fast'}, "gelu is 'fast'; it must be 'exact' or 'tanh'"),
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
  for kernel in (positions.LINEAR, positions.CUBIC):
    np.testing.assert_array_equal(
      positions.interpolation(7, positions.centred(7, 7), kernel), np.eye(7)
    )
    # A constant stays one, also beyond the ends.
    for size, new_size in ((14, 10), (4, 7), (1, 3), (5, 1)):
      place = positions.centred(size, new_size)
      matrix = positions.interpolation(size, place, kernel)
      np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize('size', [(4, 3, 5), (2, 6, 5), (8, 2, 10), (1, 1, 1)])
def test_a_learned_table_is_resized_as_a_fixed_one(size):
  base, width = (4, 3, 5), 12
  table = positions.sinusoid(60, width)
  place = tuple(map(positions.centred, base, size))
  found = jax.jit(lambda table: positions.resized(table, base, place))(table)
  expected = positions.sincos(place, base, width)
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
  if size == base:
    np.testing.assert_array_equal(found, table)


@pytest.mark.parametrize('kind', ['sincos', 'rope', 'learned'])
def test_a_class_token_has_no_place_in_the_clip(kind):
  """The others have theirs beside it, and it sees them."""
  options = {'positions': kind, 'position_grid': (4, 32, 32), 'depth': 1}
  model, video = small(pool='class', **options), clips(1, 4, 32, 32)
  variables = jax.jit(model.init)(jax.random.key(0), video)
  assert variables['params']['class_token'].shape == (24,)
  size = (2, 2, 2)
  place = (np.arange(2.0),) * 3
  kept = []

  def keep_inputs(call, args, kwargs, context):
    if isinstance(context.module, Block) and context.method_name == '__call__':
      kept.append(args)
    return call(*args, **kwargs)

  with nn.intercept_methods(keep_inputs):
    # Tubelets of zeros are tokens of zeros: what is left are the positions.
    model.apply(variables, jnp.zeros_like(video))
  ((placed, rotation, _),) = kept
  assert placed.shape == (1, 9, 24)
  if kind == 'rope':
    x = jax.random.normal(jax.random.key(3), (1, 9, 2, 12))
    turned = positions.rotate(x, rotation)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_allclose(
      turned[:, 1:],
      positions.rotate(x[:, 1:], positions.rope(place, 12, jnp.float32)),
      atol=1e-6,
    )
  elif kind == 'sincos':
    assert not placed[:, 0].any()
    np.testing.assert_array_equal(
      placed[0, 1:], positions.sincos(place, size, 24)
    )
  else:
    table = variables['params']['position_table']
    np.testing.assert_array_equal(placed[0], table)
  gradient = jax.jit(jax.grad(lambda v: model.apply(variables, v).sum()))(video)
  tubelets = jnp.abs(gradient).reshape(2, 2, 2, 16, 2, 16, 3).max((1, 3, 5, 6))
  assert (tubelets > 0).all()


def test_positions_tell_frames_rows_and_columns_apart():
  """The same tokens in another order give other logits."""
  video = clips(1, 4, 32, 32)
  for kind in ('videomae', 'vjepa2', 'vivit'):
    apply = functools.partial(
      jax.jit(small(**KINDS[kind]).apply), small_variables(kind)
    )
    plain = apply(video)
    tubelets = video.reshape(1, 2, 2, 2, 16, 2, 16, 3)
    for axis in (1, 3, 5):
      other = jnp.flip(tubelets, axis).reshape(video.shape)
      assert jnp.abs(apply(other) - plain).max() > 1e-3 * jnp.std(plain)


# Positions of clips with fewer tokens.


def place_of(model, size):
  """Where the tokens of a clip lie, by what a network adds or turns by."""
  x = jnp.zeros((1, np.prod(size), model.width))
  table, rotation = model.bind({})._place(x, size)
  return table[0] if rotation is None else rotation.cos[:, 0]


@pytest.mark.parametrize('kind', ['sincos', 'rope'])
def test_positions_of_a_coarse_clip_are_those_of_what_it_covers(kind):
  """Scaled, a third of the tokens sit on every third one, from the second."""
  made = functools.partial(
    small, positions=kind, patch_px=8, position_grid=(12, 48, 72)
  )
  full = place_of(made(), (6, 6, 9)).reshape(6, 6, 9, -1)
  for scale, index in (
    ('thw', np.s_[1::3, 1::3, 1::3]),
    ('t', np.s_[1::3, :2, :3]),
    ('hw', np.s_[:2, 1::3, 1::3]),
    ('none', np.s_[:2, :2, :3]),
  ):
    found = place_of(made(position_scale=scale), (2, 2, 3))
    # The table is one running index, so no product of axes.
    np.testing.assert_allclose(
      found, full[index].reshape(12, -1), atol=1e-6, err_msg=scale
    )
  default = {'sincos': 'thw', 'rope': 'none'}[kind]
  np.testing.assert_array_equal(
    place_of(made(), (2, 2, 3)),
    place_of(made(position_scale=default), (2, 2, 3)),
  )


def test_a_table_ends_where_its_grid_ends():
  model = small(patch_px=8, position_grid=(4, 16, 16), position_scale='none')
  with pytest.raises(ValueError, match='3 tokens along w.*position_grid'):
    jax.eval_shape(model.init, jax.random.key(0), clips(1, 4, 16, 24))
  # Rotations go on.
  model = model.changed(positions='rope')
  jax.eval_shape(model.init, jax.random.key(0), clips(1, 8, 16, 24))


# Attention.


def test_attention_follows_the_platform_that_a_program_is_for(monkeypatch):
  """cuDNN's in half precision on NVIDIA GPUs, einsums everywhere else."""
  monkeypatch.setattr(attention, '_flash', lambda q, k, v: jnp.sin(v))
  attention._is_flash.cache_clear()
  qkv = [jax.ShapeDtypeStruct((2, 6, 2, 8), jnp.bfloat16)] * 3

  def text(dtype, platform):
    arrays = [jax.ShapeDtypeStruct(x.shape, dtype) for x in qkv]
    traced = jax.jit(attention.attend).trace(*arrays)
    return traced.lower(lowering_platforms=(platform,)).as_text()

  assert 'dot_general' not in text(jnp.bfloat16, 'cuda')
  for dtype, platform in (
    (jnp.bfloat16, 'cpu'),
    (jnp.bfloat16, 'tpu'),
    (jnp.bfloat16, 'rocm'),
    (jnp.float32, 'cuda'),
  ):
    found = text(dtype, platform)
    assert 'dot_general' in found and 'sine' not in found, (dtype, platform)
  attention._is_flash.cache_clear()


def test_attention_is_einsums_where_cudnn_does_not_take_it(monkeypatch):
  def refuse(*arrays):
    raise NotImplementedError('head dim of 3')

  monkeypatch.setattr(attention, '_flash', refuse)
  attention._is_flash.cache_clear()
  q = jax.random.normal(jax.random.key(0), (2, 5, 2, 3), jnp.bfloat16)
  assert jax.jit(attention.attend)(q, q, q).shape == (2, 5, 6)
  attention._is_flash.cache_clear()


def test_attention_in_half_precision_has_a_float32_softmax():
  """The error is that of rounded inputs and weights: 2^-8 of values."""
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 64, 2, 8))
  exact = jax.jit(attention.attend)(q, k, v)
  rounded = jax.jit(attention.attend)(
    *(x.astype(jnp.bfloat16) for x in (q, k, v))
  )
  assert rounded.dtype == jnp.bfloat16
  assert jnp.abs(rounded.astype(jnp.float32) - exact).max() < 0.03


# Blocks in a loop.


@pytest.mark.parametrize(
  'remat', [False, pytest.param(True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('kind', KINDS)
def test_blocks_in_a_loop_are_the_same_network(kind, remat):
  plain = small(**KINDS[kind])
  loop = plain.changed(scan_blocks=True, remat=remat)
  video, variables = clips(2, 4, 32, 48), small_variables(kind)

  def loss(model, variables):
    logits = model.apply(variables, video, same_group=norm.group_matrix(2, 1))
    return jax.nn.logsumexp(logits, -1).sum()

  expected, found = (
    jax.jit(jax.value_and_grad(functools.partial(loss, model)))(variables)
    for model in (plain, loop)
  )
  # The keys' bias has a gradient of zero but for rounding.
  atol = 1e-6 * optax.tree.norm(expected[1])
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol),
    found,
    expected,
  )
  shapes = [
    jax.tree.map(jnp.shape, jax.eval_shape(m.init, jax.random.key(0), video))
    for m in (plain, loop)
  ]
  assert shapes[0] == shapes[1]
  text = str(jax.make_jaxpr(functools.partial(loss, loop))(variables))
  assert text.count(' scan[') == 1
  assert macs.forward_macs(loop, T=4, H=32, W=32) == macs.forward_macs(
    plain, T=4, H=32, W=32
  )


def test_a_loop_drops_paths_at_the_rates_of_the_blocks():
  """None at the first block, all but none at the last."""
  model = small(**KINDS['first'], drop_path=0.999, scan_blocks=True)
  variables, video = small_variables('first'), clips(8, 2, 16, 32)
  first = {'params': {**variables['params']}}
  run = jax.jit(
    lambda variables: model.apply(
      variables,
      video,
      same_group=norm.group_matrix(8, 1),
      rngs={'dropout': jax.random.key(0)},
    )
  )
  dropped = run(first)
  first['params']['block1'] = jax.tree.map(
    jnp.zeros_like, first['params']['block1']
  )
  # What the last block has is of no consequence; what the first has, is.
  np.testing.assert_allclose(run(first), dropped, rtol=1e-5, atol=1e-5)
  first['params']['block0'] = first['params']['block1']
  assert jnp.abs(run(first) - dropped).max() > 1e-2


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
    if 'pool' in fact:
      config.model.pool = fact['pool']
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
