"""Networks against PySlowFast 287ec00 and pytorchvideo f3142bb.

The references are float64 results stored as float32. In float64 everything
agrees to 1e-5, which finds what float32 cannot: an eps of 1e-6 for 1e-5 moves
evaluation logits by only 2e-4. Gradients in float32 are ill-conditioned (a
pre-activation within rounding of zero flips its ReLU), in torch too: hence
their tolerances. Dropout is off.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mgjax import models
from mgjax.config import fields
from mgjax.recipes import published
from mgjax.setup.network import model as model_of
from mgjax.step import eval_step
from tests.golden import rule
from tests.models import reference

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'forward'

# Relative to the standard deviation (logits, scores, statistics) or the norm
# (gradients) of the array; the loss is absolute. float32: what torch's own
# float32 needs, times 5 to 20.
TOLERANCES = {
  'float64': dict.fromkeys(
    (
      'logits',
      'scores',
      'train_logits',
      'loss',
      'running',
      'logits_after',
      'global_norm',
      'norm',
      'probe',
    ),
    1e-5,
  )
  | {'zero': 1e-12},
  'float32': {
    'logits': 1e-4,
    'scores': 5e-4,
    'train_logits': 2e-3,
    'loss': 5e-4,
    'running': 1e-3,
    'logits_after': 4e-4,
    'global_norm': 1.5e-2,
    'norm': 6e-2,
    'probe': 0.6,
    'zero': 1e-6,
  },
}

NETWORKS = {
  'psf_c2d_8x8_r50': 'c2d',
  'psf_i3d_8x8_r50': 'i3d',
  'psf_i3d_nln_8x8_r50': 'i3d_nln',
  'psf_slow_8x8_r50': 'slow',
  'psf_slowfast_8x8_r50': 'slowfast',
  'ptv_c2d_r50': 'c2d',
  'ptv_i3d_r50': 'i3d',
  'ptv_slow_r50': 'slow',
  'ptv_slow_r50_hub224': 'slow',
  'ptv_slowfast_r50': 'slowfast',
  'ptv_slowfast_r50_hub224': 'slowfast',
}
# One network of each peer stands for all in the fast tests.
FAST = ('psf_i3d_nln_8x8_r50', 'ptv_slowfast_r50')

# Most of the time goes into compiling; the programs run once.
jit = functools.partial(
  jax.jit,
  compiler_options={
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  },
)


def marked(*fast):
  return [
    pytest.param(name, marks=() if name in fast else pytest.mark.slow)
    for name in NETWORKS
  ]


def load(network):
  """The golden, and where an entry of its state belongs."""
  golden = json.loads((GOLDEN / f'{network}.json').read_text())
  arch = NETWORKS[network]
  place_of = functools.partial(
    reference.path_of,
    num_pathways=2 if arch == 'slowfast' else 1,
    pools_time=arch.startswith(('c2d', 'i3d')),
  )
  return golden, place_of


def config_of(network, dtype):
  config = fields.base()
  published.set_network(config, NETWORKS[network], frames='8x8')
  config.data.crop_px = 224 if network.endswith('hub224') else 64
  config.model.num_classes = 400
  config.model.dropout = 0.0
  config.model.dtype = dtype
  return config


def build(network, dtype):
  """The model, and the window of its fully convolutional head."""
  config = config_of(network, dtype)
  window = config.data.num_frames, config.data.crop_px, config.data.crop_px
  return model_of(config), window


def array_of(stored):
  return np.asarray(stored['data'], np.float64).reshape(stored['shape'])


def assert_close_relative(actual, expected, tolerance, name=''):
  np.testing.assert_allclose(
    actual,
    expected,
    rtol=0,
    atol=tolerance * np.std(expected),
    err_msg=name,
  )


def case_of(golden, name):
  return next((c for c in golden['cases'] if c['name'] == name), None)


@pytest.mark.parametrize('network', marked(*FAST))
def test_parameters_and_statistics_are_those_of_the_reference(network):
  golden, place_of = load(network)
  model, _ = build(network, 'float32')
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 8, 64, 64, 3), jnp.float32),
  )
  found = {
    (path[0].key, tuple(k.key for k in path[1:])): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(shapes)
  }
  expected = {
    place_of(name): reference.to_jax(np.broadcast_to(0, shape)).shape
    for name, shape, *_ in golden['state']
    if not name.endswith('num_batches_tracked')
  }
  assert found == expected


@pytest.mark.parametrize(
  'network,name,dtype',
  [
    pytest.param(
      network,
      name,
      dtype,
      marks=()
      if (network, name, dtype)
      == ('psf_i3d_nln_8x8_r50', 'eval_fullconv', 'float64')
      else pytest.mark.slow,
    )
    for network in NETWORKS
    for name in ('eval', 'eval_fullconv')
    for dtype in ('float64', 'float32')
    if (name, network[-6:]) != ('eval_fullconv', 'hub224')
  ],
)
def test_evaluation_equals_the_reference(network, name, dtype):
  """Both heads; where there is one position they are the same."""
  golden, place_of = load(network)
  case = case_of(golden, name)
  model, window = build(network, dtype)
  tolerances = TOLERANCES[dtype]
  with jax.enable_x64(dtype == 'float64'):
    variables = reference.variables_of(rule.state(golden), place_of, dtype)
    video = rule.video(case, golden['rule']['salt']).astype(dtype)
    logits = jit(functools.partial(model.apply, window=window))(
      variables, video
    )
    assert logits.dtype == dtype
    logits = np.asarray(logits, np.float64)
  if network.startswith('ptv'):
    # pytorchvideo averages logits, not probabilities.
    want = array_of(case['outputs']['output'])
    assert_close_relative(logits.mean((1, 2, 3)), want, tolerances['logits'])
    return
  want = array_of(case['outputs']['logits'])
  assert_close_relative(
    logits.reshape(want.shape), want, tolerances['logits'], 'logits'
  )
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  scores = (exp / exp.sum(-1, keepdims=True)).mean((1, 2, 3))
  want = array_of(case['outputs']['output'])
  assert_close_relative(scores, want, tolerances['scores'], 'scores')


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float64', 'float32'])
@pytest.mark.parametrize(
  'network', [name for name in NETWORKS if not name.endswith('hub224')]
)
def test_a_training_step_equals_the_reference(network, dtype):
  """Logits, loss, gradients, running statistics, and evaluation with them."""
  golden, place_of = load(network)
  salt = golden['rule']['salt']
  case = case_of(golden, 'train')
  model, _ = build(network, dtype)
  tolerances = TOLERANCES[dtype]

  def loss_fn(params, batch_stats, video, labels, same_group):
    logits, updates = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      video,
      same_group=same_group,
      deterministic=True,
      mutable=['batch_stats'],
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return loss.mean(), (logits, updates)

  with jax.enable_x64(dtype == 'float64'):
    variables = reference.variables_of(rule.state(golden), place_of, dtype)
    (loss, (logits, updates)), grads = jit(
      jax.value_and_grad(loss_fn, has_aux=True)
    )(
      variables['params'],
      variables['batch_stats'],
      rule.video(case, salt).astype(dtype),
      np.asarray(case['labels']),
      models.group_matrix(case['n'], 1),
    )
    grads = jax.device_get(grads)
    stats = jax.device_get(updates['batch_stats'])
    first = golden['cases'][0]
    after = jit(model.apply)(
      {'params': variables['params'], 'batch_stats': stats},
      rule.video(first, salt).astype(dtype),
    )

  outputs = case['outputs']
  assert_close_relative(
    logits, array_of(outputs['logits']), tolerances['train_logits'], 'logits'
  )
  np.testing.assert_allclose(
    loss, outputs['loss'], rtol=0, atol=tolerances['loss']
  )

  grads = jax.tree.map(lambda g: np.asarray(g, np.float64), grads)
  global_norm = np.sqrt(sum(np.vdot(g, g) for g in jax.tree.leaves(grads)))
  expected = case['gradients']
  np.testing.assert_allclose(
    global_norm, expected['global_norm'], rtol=tolerances['global_norm']
  )
  for name, want in expected['chosen'].items():
    _, path = place_of(name)
    grad = reference.to_torch(reference.lookup(grads, path))
    np.testing.assert_allclose(
      np.linalg.norm(grad), want['norm'], rtol=tolerances['norm'], err_msg=name
    )
    np.testing.assert_allclose(
      rule.probe(name, grad),
      want['probe'],
      rtol=0,
      atol=tolerances['probe'] * want['norm'] / np.sqrt(grad.size),
      err_msg=name,
    )
  for name in expected['zero']:
    _, path = place_of(name)
    grad = reference.lookup(grads, path)
    assert np.linalg.norm(grad) < tolerances['zero'] * global_norm, name

  for layer, want in case['running'].items():
    for leaf, torch_leaf in (('mean', 'running_mean'), ('var', 'running_var')):
      _, path = place_of(f'{layer}.{torch_leaf}')
      assert_close_relative(
        reference.lookup(stats, path), want[leaf], tolerances['running'], layer
      )
  stored = outputs.get('eval_after_logits') or outputs['eval_after_output']
  assert_close_relative(
    after, array_of(stored), tolerances['logits_after'], 'logits afterwards'
  )


@pytest.mark.slow
def test_the_evaluation_step_scores_like_the_reference():
  """The program that evaluate.py runs, with the fully convolutional head."""
  network = 'psf_slow_8x8_r50'
  golden, place_of = load(network)
  case = case_of(golden, 'eval_fullconv')
  model, window = build(network, 'float32')
  # The golden's pixels are normalised already.
  step = eval_step.make_eval_step(
    model, mean=(0.0,) * 3, std=(1 / 255,) * 3, window=window
  )
  variables = reference.variables_of(rule.state(golden), place_of, 'float32')
  scores = jit(step)(
    variables['params'],
    variables['batch_stats'],
    rule.video(case, golden['rule']['salt']),
  )
  want = array_of(case['outputs']['output'])
  assert_close_relative(scores, want, TOLERANCES['float32']['scores'])
