"""Frozen batch norms: the same in training as in evaluation, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import moving_digits
from mgjax import models
from mgjax.cli import ConfigError
from mgjax.config import fields, network_options, rules
from mgjax.hosts import parallel
from mgjax.models import norm
from mgjax.setup import grids, network, programs, run_checks
from mgjax.step import train_state, train_step
from tests.step.test_micro_batches import PIXELS, largest_difference, make_batch

GROUPS = 4


def build(name='slow', **options):
  return models.build(
    name,
    num_classes=16,
    dropout=0.5,
    dtype='float32',
    blocks=(1,),
    width=4,
    **options,
  )


def random_like(tree):
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: (
      jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype)
      if jnp.issubdtype(x.dtype, jnp.floating)
      else jnp.zeros(x.shape, x.dtype)
    ),
    tree,
  )


def take_step(frozen, micro_batches=1, remat=False):
  """A state, and the one after a step with an average of the weights."""
  model = build(norm_frozen=frozen, remat=remat)
  config = fields.base()
  config.norm.frozen = frozen
  tx = network.optimizer(config)
  video = jnp.zeros((1, 4, 16, 16, 3))
  make = lambda: train_state.create_state(
    model, tx, jax.random.key(0), video, average=True
  )
  # The momentum is of a time when nothing was frozen.
  state = random_like(jax.eval_shape(make))
  state = state.replace(ema=state.params)
  step = train_step.make_train_step(
    model, tx, **PIXELS, ema_decay=0.9, micro_batches=micro_batches
  )
  after, metrics = jax.jit(step)(
    state,
    make_batch(),
    jnp.float32(0.1),
    jnp.int32(GROUPS),
    jax.random.key(7),
  )
  return state, after, metrics


def layers(tree, leaf):
  """Paths of the batch norms in a tree of params or statistics."""
  return {
    tuple(key.key for key in path[:-1]): value
    for path, value in jax.tree.leaves_with_path(tree)
    if path[-1].key == leaf and (leaf != 'bias' or path[-2].key == 'norm')
  }


FIRST = ('stem', 'layer', 'norm')


@pytest.mark.parametrize(
  'frozen,micro_batches', [('all', 2), ('but_first', 1), ('but_first', 2)]
)
def test_a_step_leaves_frozen_layers_as_they_are(frozen, micro_batches):
  before, after, _ = take_step(frozen, micro_batches)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  for collection, leaf in (
    ('params', 'scale'),
    ('params', 'bias'),
    ('ema', 'scale'),
    ('ema', 'bias'),
    ('batch_stats', 'mean'),
    ('batch_stats', 'var'),
  ):
    old = layers(getattr(before, collection), leaf)
    new = layers(getattr(after, collection), leaf)
    assert len(old) == 5
    moved = {path for path in old if (old[path] != new[path]).any()}
    assert moved == (set() if frozen == 'all' else {FIRST}), (collection, leaf)
  kernels = jax.tree.map(lambda a, b: (a != b).any(), before, after).params
  assert kernels['res2']['block0']['b']['conv']['kernel']


def test_micro_batches_with_frozen_layers_equal_the_whole_batch():
  _, whole, one = take_step('but_first', 1)
  _, parts, other = take_step('but_first', 2, remat=True)
  # Rounding in float32, as in test_micro_batches.py.
  assert largest_difference(whole, parts) < 1e-4
  assert largest_difference(one, other) < 1e-4


def test_training_with_all_layers_frozen_is_evaluation_with_gradients():
  model = build(norm_frozen='all')
  video = jax.random.normal(jax.random.key(0), (4, 4, 16, 16, 3))
  variables = random_like(jax.eval_shape(model.init, jax.random.key(0), video))

  @jax.jit
  def gradients(params, same_group):
    def loss(params):
      logits, updates = model.apply(
        variables | {'params': params},
        video,
        same_group=same_group,
        deterministic=True,
        mutable=['batch_stats', 'batch_moments'],
      )
      return logits[:, 0].sum(), updates

    return jax.grad(loss, has_aux=True)(params)

  params = variables['params']
  trained, updates = gradients(params, norm.group_matrix(4, 2))
  evaluated, _ = gradients(params, None)
  assert largest_difference(trained, evaluated) < 1e-5
  assert 'batch_moments' not in updates
  for leaf in ('scale', 'bias'):
    assert not any(g.any() for g in layers(trained, leaf).values())
  assert trained['head']['classifier']['bias'].any()


@pytest.mark.parametrize(
  'name',
  [n for n in models.MODELS if network_options.options_of(n).has_batch_norm],
)
def test_the_first_layer_is_that_of_every_pathway_of_every_network(name):
  model = models.build(
    name, num_classes=4, dropout=0.5, dtype='float32', blocks=(1, 1), width=8
  )
  video = jax.ShapeDtypeStruct((2, 8, 32, 32, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), video)['params']
  marks = layers(norm.frozen_parameters(params, 'but_first'), 'scale')
  stems = ('slow_stem', 'fast_stem') if name == 'slowfast' else ('stem',)
  assert {path for path, frozen in marks.items() if not frozen} == {
    (stem, 'layer', 'norm') for stem in stems
  }
  assert len(marks) > len(stems)


def test_a_word_that_freezes_nothing_is_refused():
  with pytest.raises(ValueError, match="norm_frozen is 'first'; it must be"):
    build(norm_frozen='first')


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'lars', 'lamb'])
def test_every_optimizer_leaves_frozen_parameters_alone(name):
  """Though they have gradients, and a momentum of an earlier time."""
  config = fields.base()
  config.optim.name, config.optim.clip_norm = name, 1.0
  params = {
    'stem': {'layer': {'norm': {'scale': (3,), 'bias': (3,)}}},
    'res2': {'norm': {'scale': (3,), 'bias': (3,)}, 'kernel': (2, 3)},
  }
  params = jax.tree.map(jnp.ones, params, is_leaf=lambda x: type(x) is tuple)
  gradients = jax.tree.map(lambda p: 2 * p, params)
  plain = network.optimizer(config)
  _, state = plain.update(gradients, plain.init(params), params)
  config.norm.frozen = 'but_first'
  tx = network.optimizer(config)
  assert jax.tree.structure(tx.init(params)) == jax.tree.structure(state)
  direction, new = tx.update(gradients, state, params)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert not direction['res2']['norm']['scale'].any()
  assert not direction['res2']['norm']['bias'].any()
  assert direction['res2']['kernel'].all()
  assert direction['stem']['layer']['norm']['scale'].all()
  # The frozen ones' gradients have no share in the norm that is clipped.
  zeroed = jax.tree.map(jnp.copy, gradients)
  zeroed['res2']['norm'] = jax.tree.map(jnp.zeros_like, zeroed['res2']['norm'])
  wanted, _ = plain.update(zeroed, state, params)
  np.testing.assert_array_equal(
    direction['res2']['kernel'], wanted['res2']['kernel']
  )


def test_frozen_layers_need_weights_to_start_from():
  config = moving_digits.get_config('grid=both')
  config.norm.frozen = 'but_first'
  with pytest.raises(ConfigError, match="norm.frozen is 'but_first'.*init_fr"):
    run_checks.check_norm(config)
  config.init_from = 'weights'
  run_checks.check_norm(config)
  config.norm.frozen = 'some'
  with pytest.raises(ConfigError, match="norm.frozen is 'some'; it must be ''"):
    rules.validate(config)


def test_no_statistics_are_estimated_where_all_layers_are_frozen():
  config = moving_digits.get_config('grid=both,size=tiny')
  config.init_from = 'weights'
  kinds = {}
  for frozen in ('but_first', 'all'):
    config.norm.frozen = frozen
    schedule = grids.schedule(config, 240)
    mesh = parallel.make_mesh()
    lowered = programs.lower_programs(
      config,
      schedule,
      network.compose(config, mesh),
      mesh,
      0,
      {schedule.total_steps},
      statistics_due=True,
    )
    kinds[frozen] = {program.kind for program in lowered}
  assert kinds == {
    'but_first': {'train', 'eval', 'stats'},
    'all': {'train', 'eval'},
  }
