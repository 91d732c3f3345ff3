"""Optimizers, averages and losses against their formulas, in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import moving_digits
from mgjax.cli import ConfigError
from mgjax.config import fields as default
from mgjax.config.setting import accepted
from mgjax.setup import grids, network, run_checks
from mgjax.step import losses, optim

# A layer, a bias and a batch norm: weight decay spares the last, layer-wise
# rates the last two.
SHAPES = {
  'conv': {'kernel': (2, 3), 'bias': (3,)},
  'norm': {'scale': (3,), 'bias': (3,)},
}
LRS = (0.5, 0.05, 0.4)


def flat(tree):
  return {
    f'{layer}/{name}': np.asarray(value, np.float64)
    for layer, values in tree.items()
    for name, value in values.items()
  }


def trajectory(**fields):
  """Runs a few steps; returns first parameters, gradients, last parameters."""
  config = default.base()
  config.optim.update(fields)
  tx = network.optimizer(config)
  rng = np.random.default_rng(0)
  random_tree = lambda: jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  params = first = random_tree()
  opt_state = tx.init(params)
  gradients = []
  for lr in LRS:
    grads = random_tree()
    gradients.append(flat(grads))
    direction, opt_state = tx.update(grads, opt_state, params)
    params = jax.tree.map(lambda p, d, lr=lr: p - lr * d, params, direction)
  return flat(first), gradients, flat(params)


def assert_close(got, want):
  for name in want:
    # Three float32 steps on numbers of size 1.
    np.testing.assert_allclose(got[name], want[name], atol=3e-6, err_msg=name)


def decay_of(name):
  return 0.0 if name.startswith('norm') else 0.01


def trust(name, p, update, coefficient=1.0):
  """The layer-wise factor: of kernels only."""
  if name != 'conv/kernel':
    return 1.0
  return coefficient * np.linalg.norm(p) / np.linalg.norm(update)


def adam_directions(gradients):
  """torch.optim.Adam: means over steps, without their bias towards zero."""
  m = v = 0.0
  for t, g in enumerate(gradients, start=1):
    m = 0.8 * m + 0.2 * g
    v = 0.9 * v + 0.1 * g * g
    yield m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-6)


ADAM = {'b1': 0.8, 'b2': 0.9, 'eps': 1e-6, 'weight_decay': 0.01}


def test_adamw_is_that_of_torch():
  p, gradients, got = trajectory(name='adamw', **ADAM)
  for name in p:
    directions = adam_directions([g[name] for g in gradients])
    for lr, direction in zip(LRS, directions, strict=True):
      p[name] = p[name] - lr * (direction + decay_of(name) * p[name])
  assert_close(got, p)


def test_lamb_scales_each_kernel_to_its_norm_and_nothing_else():
  p, gradients, got = trajectory(name='lamb', **ADAM)
  for name in p:
    directions = adam_directions([g[name] for g in gradients])
    for lr, direction in zip(LRS, directions, strict=True):
      update = direction + decay_of(name) * p[name]
      p[name] = p[name] - lr * trust(name, p[name], update) * update
  assert_close(got, p)


def test_lars_scales_each_kernel_before_the_momentum_and_nothing_else():
  p, gradients, got = trajectory(
    name='lars',
    trust_coefficient=0.2,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.01,
  )
  for name in p:
    buffer = 0.0
    for lr, g in zip(LRS, gradients, strict=True):
      update = g[name] + decay_of(name) * p[name]
      buffer = 0.9 * buffer + trust(name, p[name], update, 0.2) * update
      p[name] = p[name] - lr * buffer
  assert_close(got, p)


def test_a_clipped_gradient_has_the_norm_of_the_bound_and_its_direction():
  fields = {'momentum': 0.0, 'nesterov': False, 'weight_decay': 0.0}
  p, gradients, got = trajectory(name='sgd', clip_norm=0.5, **fields)
  for lr, g in zip(LRS, gradients, strict=True):
    norm = np.sqrt(sum(np.square(value).sum() for value in g.values()))
    assert norm > 0.5
    p = {name: p[name] - lr * g[name] * 0.5 / norm for name in p}
  assert_close(got, p)


def test_a_gradient_below_the_bound_is_left_alone():
  _, _, bounded = trajectory(clip_norm=100.0)
  _, _, free = trajectory(clip_norm=0.0)
  assert_close(bounded, free)


def test_every_optimizer_that_settings_can_name_is_there():
  config = default.base()
  (section,) = (d for p, _, d in default.sections(config) if p == 'optim.')
  (rule,) = (accepted(field) for field in section if field.name == 'name')
  names = re.findall(r"'(\w+)'", rule.text)
  assert len(names) > 1
  for name in names:
    config.optim.name = name
    network.optimizer(config).init({'kernel': jnp.ones(3)})


def test_the_average_of_the_weights_forgets_the_first_ones_early():
  average = want = np.array([1.0, -2.0])
  rng = np.random.default_rng(0)
  for step in range(5):
    params = rng.normal(size=2)
    average = optim.update_average(
      jnp.asarray(average, jnp.float32),
      jnp.asarray(params, jnp.float32),
      jnp.int32(step),
      0.3,
    )
    d = min(0.3, (1 + step) / (10 + step))
    want = d * want + (1 - d) * params
  np.testing.assert_allclose(average, want, atol=1e-6)


def test_smoothed_cross_entropy_is_that_of_torch():
  rng = np.random.default_rng(0)
  logits, label = rng.normal(size=(4, 5)), np.array([0, 3, 3, 1], np.int32)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  right = log_p[np.arange(4), label]
  for smoothing in (0.0, 0.1):
    got = losses.clip_losses(
      jnp.asarray(logits, jnp.float32),
      jnp.asarray(label),
      'softmax',
      smoothing,
    )
    want = -(1 - smoothing) * right - smoothing * log_p.mean(1)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize('mode', ['both', 'ladder'])
def test_all_learning_rates_follow_the_batch_that_they_are_meant_for(mode):
  config = moving_digits.get_config(f'grid={mode}')
  plain = grids.schedule(config, 4000)
  config.optim.base_batch = 32  # The batch is 8.
  scaled = grids.schedule(config, 4000)
  epochs = np.linspace(0, plain.total_epochs, 60)
  assert [scaled.lr_at_epoch(e) for e in epochs] == pytest.approx(
    [plain.lr_at_epoch(e) / 4 for e in epochs], rel=1e-12
  )
  assert scaled.phases == plain.phases


def test_averaged_weights_without_statistics_of_their_own_are_refused():
  config = moving_digits.get_config()
  config.optim.ema_decay = 0.999
  config.norm.precise_batches = 0
  with pytest.raises(ConfigError, match='norm.precise_batches is 0'):
    run_checks.check_norm(config)
