"""Which parameters train, decay and at what rate; against VideoMAE's groups."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from configs import moving_digits
from mgjax import models
from mgjax.config import fields, rules
from mgjax.errors import ConfigError
from mgjax.hosts import parallel
from mgjax.recipes import transformers
from mgjax.setup import grids, network, planning, programs
from mgjax.step import parameters
from tests.models import reference_vit

GOLDEN = json.loads(
  (
    pathlib.Path(__file__).parents[1]
    / 'golden/transformers/layer_decay_videomae_b.json'
  ).read_text()
)


# Most of the time goes into compiling; the programs run once.
jit = functools.partial(
  jax.jit,
  compiler_options={
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  },
)


def shapes_of(model, num_frames=16):
  video = models.example_video(model, num_frames)
  return jax.eval_shape(model.init, jax.random.key(0), video)['params']


@pytest.fixture(scope='module')
def videomae_b():
  config = fields.base()
  transformers.set_network(config, 'videomae_b')
  config.model.num_classes = 400
  model = network.model(config)
  return model, shapes_of(model)


def entry(tree, name):
  """The number of a tree that belongs to a parameter of the reference."""
  (path, _, _), *_ = reference_vit.places(name)
  for key in path:
    tree = tree[key]
  return tree


def test_layers_rates_and_decay_of_videomae_b_are_those_of_the_reference(
  videomae_b,
):
  model, params = videomae_b
  ids, last = parameters.layers(params, model.layer_of)
  scales = parameters.layer_scales(
    params, model.layer_of, GOLDEN['layer_decay']
  )
  marks = parameters.decayed(params, 'kernels', model.additions)
  assert last == 13 and len(GOLDEN['parameters']) == 162
  for name, layer, scale, decay in GOLDEN['parameters']:
    assert entry(ids, name) == layer, name
    assert entry(scales, name) == pytest.approx(scale, rel=1e-12), name
    assert entry(marks, name) == (decay > 0), name
  # Nothing but those.
  assert len(jax.tree.leaves(params)) == 162


def test_the_probe_learns_at_the_full_rate_and_its_query_does_not_decay():
  config = fields.base()
  transformers.set_network(config, 'vjepa2_b')
  config.model.depth, config.model.num_classes = 3, 5
  model = network.model(config)
  params = shapes_of(model)
  ids, last = parameters.layers(params, model.layer_of)
  assert last == 4
  assert set(jax.tree.leaves([ids['probe'], ids['norm'], ids['head']])) == {4}
  marks = parameters.decayed(params, 'kernels', model.additions)
  assert not marks['probe']['query'] and marks['probe']['kv']['kernel']
  assert not marks['block0']['attention']['q_bias']


def test_stages_of_residual_networks_are_layers():
  for name, prefixes in (
    ('slow', ('',)),
    ('slowfast', ('slow_', 'fast_', 'fuse_')),
    ('blvnet_tam', ('',)),
  ):
    model = models.build(name, num_classes=5, blocks=(1, 1))
    ids, last = parameters.layers(shapes_of(model, 32), model.layer_of)
    assert last == 3
    for i, stage in enumerate(('stem', 'res2', 'res3')):
      for prefix in prefixes:
        if prefix + stage in ids:
          assert set(jax.tree.leaves(ids[prefix + stage])) == {i}
    assert set(jax.tree.leaves(ids['head'])) == {3}


def test_temporal_blocks_follow_spatial_ones():
  model = models.build(
    'videoprism',
    num_classes=5,
    **{'width': 24, 'heads': 2, 'spatial_depth': 3, 'temporal_depth': 2},
  )
  ids, last = parameters.layers(shapes_of(model, 2), model.layer_of)
  assert last == 6
  found = {
    (encoder, module): set(jax.tree.leaves(ids[encoder][module]))
    for encoder in ('spatial', 'temporal')
    for module in ids[encoder]
  }
  assert found == {
    ('spatial', 'position_table'): {0},
    **{('spatial', f'block{i}'): {i + 1} for i in range(3)},
    ('spatial', 'norm'): {3},
    ('temporal', 'position_table'): {3},
    **{('temporal', f'block{i}'): {i + 4} for i in range(2)},
    ('temporal', 'norm'): {5},
  }
  assert set(jax.tree.leaves([ids['probe'], ids['head']])) == {6}
  assert set(jax.tree.leaves(ids['embed'])) == {0}


def test_additions_and_biases_of_several_axes_do_not_decay():
  params = {
    'positions': np.ones((2, 3)),
    'mlp': {'kernel': np.ones((2, 3)), 'bias': np.ones((2, 3))},
    'norm': {'scale': np.ones(3), 'bias': np.ones(3)},
  }
  expected = {
    'kernels': (False, True, False, False, False),
    'not_norms': (True, True, True, False, False),
    'all': (True,) * 5,
  }
  for which, (table, kernel, bias, scale, shift) in expected.items():
    assert parameters.decayed(params, which, ('positions',)) == {
      'positions': table,
      'mlp': {'kernel': kernel, 'bias': bias},
      'norm': {'scale': scale, 'bias': shift},
    }


# The optimizer of such groups.


def transformer_config(**optim):
  config = moving_digits.get_config('size=tiny,model=vit,grid=none')
  config.model.update({'depth': 2, 'pool': 'probe', 'probe_blocks': 1})
  config.model.update({'positions': 'rope', 'drop_path': 0.5, 'dropout': 0.5})
  config.optim.update({'name': 'sgd', 'momentum': 0.0, 'nesterov': False})
  config.optim.update(optim)
  return rules.validate(config)


def random_tree(shapes, seed):
  leaves, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return tree.unflatten(
    [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  )


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'lars', 'lamb'])
def test_layer_decay_is_a_learning_rate_of_each_layer(name):
  config = transformer_config(name=name, momentum=0.9, weight_decay=0.1)
  model = network.model(config)
  kernel = {'kernel': jax.ShapeDtypeStruct((2, 3), jnp.float32)}
  scales = {'embed': 0.125, 'block0': 0.25, 'block1': 0.5, 'head': 1.0}
  params = random_tree(dict.fromkeys(scales, kernel), 0)
  directions = {}
  for decay in (1.0, 0.5):
    config.optim.layer_decay = decay
    tx = network.optimizer(config, model)
    state = tx.init(params)
    for seed in (1, 2):  # The second step has a momentum of the first.
      directions[decay], state = tx.update(
        random_tree(params, seed), state, params
      )
  for module, scale in scales.items():
    np.testing.assert_allclose(
      directions[0.5][module]['kernel'],
      scale * directions[1.0][module]['kernel'],
      rtol=1e-6,
    )


def step_of(config, batch=4):
  """A step of a small run: state before and after, and its jaxpr."""
  mesh = parallel.make_mesh()
  parts = network.compose(config, mesh)
  step = programs.make_train_step(config, parts)
  rng = np.random.default_rng(0)
  data = {
    'video': rng.integers(0, 256, (batch, 4, 16, 16, 3), np.uint8),
    'label': np.arange(batch, dtype=np.int32),
    'flip': np.zeros(batch, bool),
  }
  state = parts.make_state()
  arguments = (
    *(state, data, jnp.float32(0.1), jnp.int32(batch), jax.random.key(1)),
  )
  return state, step, arguments


def changed(before, after):
  """Paths of what differs, in part or as a whole."""
  flat = lambda tree: {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(x)
    for path, x in jax.tree.leaves_with_path(tree)
  }
  before, after = flat(before), flat(after)
  assert before.keys() == after.keys()
  return {name for name in before if (before[name] != after[name]).any()}


@pytest.mark.parametrize(
  'train,modules,micro_batches',
  [
    ('head', {'head', 'probe'}, 1),
    ('block1/mlp|head/', {'block1', 'head'}, 2),
  ],
)
def test_nothing_changes_but_what_is_trained(train, modules, micro_batches):
  config = transformer_config(train=train, weight_decay=0.1, ema_decay=0.9)
  config.optim.name = 'adamw'
  config.train.micro_batches = micro_batches
  state, step, arguments = step_of(config)
  after, metrics = jit(step)(*arguments)
  found = changed(state.params, after.params)
  assert {name.split('/')[0] for name in found} == modules
  assert ('block1/attention/qkv/kernel' in found) is False
  # The average of what is not trained is what it is, exactly.
  assert changed(state.ema, after.ema) <= found
  # Two numbers of AdamW for each trained parameter, and none for others.
  kept = parameters.part(
    state.params, network.trained(config, network.model(config))(state.params)
  )
  assert len(jax.tree.leaves(state.opt_state)) == 1 + 2 * len(
    jax.tree.leaves(kept)
  )
  assert float(metrics['grad_norm']) > 0


def products(jaxpr):
  """Multiply-adds of the matrix products of a program."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (axes, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total += eqn.outvars[0].aval.size * int(np.prod([shape[a] for a in axes]))
    for sub in core.jaxprs_in_params(eqn.params):
      total += products(sub)
  return total


@pytest.mark.parametrize('remat', ['', 'block'])
def test_no_backward_pass_goes_through_a_frozen_backbone(remat):
  """A step costs its forward pass, and nothing else: the probe is small."""
  costs = {}
  for train in ('all', 'head', 'head/'):
    config = transformer_config(train=train)
    config.train.remat = remat
    config.model.depth, config.model.probe_blocks = 6, 0
    _, step, arguments = step_of(config)
    costs[train] = products(jax.make_jaxpr(step)(*arguments).jaxpr)
  assert costs['head/'] < costs['head'] < 0.5 * costs['all']
  config.optim.train = 'all'
  model = network.model(config)
  forward = jax.make_jaxpr(lambda params, video: model.apply(params, video))(
    {'params': shapes_of(model)},
    jax.ShapeDtypeStruct((4, 4, 16, 16, 3), jnp.float32),
  )
  assert costs['head/'] < 1.01 * products(forward.jaxpr)


def draws(jaxpr):
  """How often a program draws random numbers."""
  return sum(
    (eqn.primitive.name == 'random_bits')
    + sum(map(draws, core.jaxprs_in_params(eqn.params)))
    for eqn in jaxpr.eqns
  )


def test_a_frozen_backbone_has_no_dropout_unless_it_is_asked_for():
  """The head's dropout stays; of two blocks, the second has drop path."""
  found = {}
  for train, frozen_dropout in (
    ('all', False),
    ('head', True),
    ('head', False),
    ('block1', False),
  ):
    config = transformer_config(train=train, frozen_dropout=frozen_dropout)
    _, step, arguments = step_of(config)
    found[train, frozen_dropout] = draws(jax.make_jaxpr(step)(*arguments).jaxpr)
  # Two branches of a block, and the classifier's features.
  assert found == {
    ('all', False): 3,
    ('head', True): 3,
    ('head', False): 1,
    ('block1', False): 2,
  }


@pytest.mark.parametrize(
  'field,value,words',
  [
    ('train', 'blok3', "optim.train is 'blok3', which no parameter has in its"),
    ('train', '', "optim.train is ''; it must be 'all', 'head' or a regular"),
    ('train', '(', "optim.train is '.'; it must be 'all', 'head' or a regular"),
    ('layer_decay', 0.0, r'optim.layer_decay is 0.0; it must be in \(0, 1\]'),
    ('decay_on', 'weights', "must be 'not_norms', 'kernels' or 'all'"),
  ],
)
def test_groups_that_cannot_be_are_refused(field, value, words):
  with pytest.raises(ConfigError, match=words):
    config = transformer_config(**{field: value})
    network.check_parameters(config, network.model(config))


def test_a_plan_refuses_a_network_whose_layers_nobody_knows(monkeypatch):
  config = transformer_config(layer_decay=0.75)
  model = network.model(config)
  with pytest.raises(
    ValueError, match='layer of spatial/block0/x, which the n'
  ):
    model.layer_of(('spatial', 'block0', 'x'))
  phases = grids.schedule(config, 240).phases
  planning.check_network(config, [], phases)
  monkeypatch.setattr(type(model), 'layer_of', lambda self, path: None)
  with pytest.raises(ConfigError, match='optim.layer_decay does nothing for a'):
    planning.check_network(config, [], phases)
