"""One step against formulas; the parts of it that hide mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import moving_digits
from mgjax.config import fields as default
from mgjax.models import norm
from mgjax.setup import augmentation, network
from mgjax.step import losses, parameters, train_state, train_step

MEAN, STD = (0.45, 0.4, 0.5), (0.225, 0.2, 0.25)


@pytest.fixture(scope='module')
def setup():
  config = moving_digits.get_config('size=tiny')
  config.unlock()
  config.model.blocks = (1,)
  model = network.model(config)
  tx = network.optimizer(config)
  state = train_state.create_state(
    model, tx, jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3))
  )
  step = jax.jit(train_step.make_train_step(model, tx, mean=MEAN, std=STD))
  rng = np.random.default_rng(0)
  batch = {
    'video': rng.integers(0, 256, (8, 4, 16, 16, 3), np.uint8),
    'label': rng.integers(0, 16, 8, np.int32),
    'flip': np.zeros(8, bool),
  }
  return config, model, tx, state, step, batch


def take(setup, lr=0.1, groups=1, batch=None, state=None, seed=0):
  _, _, _, first, step, default = setup
  return step(
    state or first,
    batch or default,
    jnp.float32(lr),
    jnp.int32(groups),
    jax.random.key(seed),
  )


def leaves_equal(a, b) -> bool:
  return all(
    jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))
  )


def test_sgd_is_that_of_torch():
  """Nesterov momentum and decay as in torch.optim.SGD, in NumPy float64."""
  config = default.base()
  config.optim.weight_decay = 0.01
  tx = network.optimizer(config)
  rng = np.random.default_rng(0)
  params = {'conv': {'kernel': jnp.asarray(rng.normal(size=5), jnp.float32)}}
  opt_state = tx.init(params)
  p = np.asarray(params['conv']['kernel'], np.float64)
  buffer = np.zeros(5)
  for lr in (0.5, 0.5, 0.05, 0.4):
    gradient = rng.normal(size=5)
    grads = {'conv': {'kernel': jnp.asarray(gradient, jnp.float32)}}
    direction, opt_state = tx.update(grads, opt_state, params)
    params = jax.tree.map(lambda v, d, lr=lr: v - lr * d, params, direction)
    decayed = gradient + 0.01 * p
    buffer = 0.9 * buffer + decayed
    p = p - lr * (decayed + 0.9 * buffer)
  # Four float32 steps on numbers of size 1.
  np.testing.assert_allclose(params['conv']['kernel'], p, atol=2e-6)


def test_weight_decay_leaves_batch_norm_alone_and_nothing_else(setup):
  state = setup[3]
  marks = parameters.decayed(state.params, 'not_norms')
  flat = jax.tree_util.tree_flatten_with_path(marks)[0]
  for path, mark in flat:
    names = [p.key for p in path]
    parent = state.params
    for name in names[:-1]:
      parent = parent[name]
    assert mark == ('scale' not in parent), names
  assert sum(not mark for _, mark in flat) > 10
  assert all(marks['head']['classifier'].values())


def test_pixels_are_centred_and_scaled():
  video = np.array([0, 128, 255], np.uint8).reshape(1, 1, 1, 1, 3)
  got = train_step.normalize(jnp.asarray(video), MEAN, STD)
  want = (video / 255 - np.array(MEAN)) / np.array(STD)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_flips_mirror_the_marked_clips_only():
  video = np.arange(2 * 3 * 3).reshape(2, 1, 1, 3, 3)
  got = train_step.flip_clips(jnp.asarray(video), jnp.array([True, False]))
  np.testing.assert_array_equal(got[0], video[0, :, :, ::-1])
  np.testing.assert_array_equal(got[1], video[1])


def test_the_loss_is_the_mean_cross_entropy(setup):
  _, model, _, state, _, batch = setup
  _, metrics = take(setup)
  video = train_step.normalize(jnp.asarray(batch['video']), MEAN, STD)
  logits, _ = model.apply(
    {'params': state.params, 'batch_stats': state.batch_stats},
    video,
    same_group=norm.group_matrix(8, 1),
    rngs={'dropout': jax.random.fold_in(jax.random.key(0), 0)},
    mutable=['batch_stats'],
  )
  log_p = np.asarray(logits, np.float64)
  log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
  want = -log_p[np.arange(8), batch['label']].mean()
  assert float(metrics['loss']) == pytest.approx(want, abs=1e-5)


def test_the_update_is_proportional_to_the_learning_rate(setup):
  state = setup[3]
  one, _ = take(setup, lr=0.1)
  two, _ = take(setup, lr=0.2)
  for p, a, b in zip(
    *(jax.tree.leaves(s.params) for s in (state, one, two)), strict=True
  ):
    np.testing.assert_allclose(2 * (a - p), b - p, atol=1e-6)
  zero, _ = take(setup, lr=0.0)
  assert leaves_equal(zero.params, state.params)


def test_the_same_step_is_the_same_bit_for_bit(setup):
  assert leaves_equal(take(setup)[0].params, take(setup)[0].params)


def test_dropout_changes_with_the_step_and_with_the_seed(setup):
  state = setup[3]
  loss = float(take(setup)[1]['loss'])
  assert float(take(setup, seed=1)[1]['loss']) != loss
  later = state.replace(step=jnp.int32(1))
  assert float(take(setup, state=later)[1]['loss']) != loss


def test_groups_change_the_loss_but_not_the_program(setup):
  step = setup[4]
  programs = step._cache_size()
  losses = {float(take(setup, groups=g)[1]['loss']) for g in (1, 2, 4)}
  assert len(losses) == 3
  assert step._cache_size() == programs


def test_the_tree_of_the_state_never_depends_on_the_grid(setup):
  config, model, tx, state, step, batch = setup
  coarse = {
    'video': np.zeros((16, 2, 23, 11, 3), np.uint8),
    'label': np.zeros(16, np.int32),
    'flip': np.zeros(16, bool),
  }
  after, _ = take(setup, batch=coarse)
  shapes = lambda s: jax.tree.map(lambda x: (x.shape, x.dtype), s)
  assert shapes(after) == shapes(state)


def test_the_sigmoid_loss_is_the_mean_binary_cross_entropy():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4, 7))
  label = (rng.random((4, 7)) < 0.4).astype(np.float32)
  p = 1 / (1 + np.exp(-logits))
  want = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean(1)
  got = losses.clip_losses(jnp.array(logits), jnp.array(label), 'sigmoid')
  np.testing.assert_allclose(got, want, rtol=1e-5)  # float32.


def test_weights_of_one_class_give_the_loss_of_its_number():
  logits = jnp.array(np.random.default_rng(0).normal(size=(4, 7)))
  label = jnp.array([1, 0, 6, 3])
  number = losses.clip_losses(logits, label, 'softmax')
  weights = losses.clip_losses(logits, jnp.eye(7)[label], 'softmax')
  np.testing.assert_allclose(number, weights, rtol=1e-6)


def test_a_hit_is_a_class_of_the_greatest_weight():
  logits = jnp.array([[3.0, 2, 1], [3, 2, 1], [1, 2, 3], [1, 3, 2]])
  number = losses.hits(logits, jnp.array([0, 1, 2, 0]))
  assert number.tolist() == [True, False, True, False]
  label = jnp.array([[1.0, 1, 0], [0.4, 0.6, 0], [0, 0, 0], [0.3, 0.7, 0]])
  weights = losses.hits(logits, label)
  assert weights.tolist() == [True, False, False, True]


def test_augmentation_off_is_the_same_program_and_on_has_a_key_of_its_own(
  setup,
):
  config, model, tx, state, _, batch = setup
  arguments = (state, batch, jnp.float32(0.1), jnp.int32(1), jax.random.key(0))
  text = lambda **options: (
    jax.jit(
      train_step.make_train_step(model, tx, mean=MEAN, std=STD, **options)
    )
    .lower(*arguments)
    .as_text()
  )
  off = augmentation.augment(config)
  assert text() == text(augment=off, loss=config.optim.loss)
  seen = []

  def note(batch, rng, strengths):
    seen.append(rng)
    return batch

  # Changes nothing: the step draws the same dropout as without.
  step = jax.jit(
    train_step.make_train_step(model, tx, mean=MEAN, std=STD, augment=note)
  )
  assert float(step(*arguments)[1]['loss']) == float(take(setup)[1]['loss'])
  assert len(seen) == 1


def test_class_weights_give_the_weighted_mean_of_torch(setup):
  """sum(w[label] loss) / sum(w[label]), and equal weights change nothing."""
  _, model, tx, state, step, batch = setup
  arguments = (state, batch, jnp.float32(0.1), jnp.int32(1), jax.random.key(0))
  make = lambda weights: jax.jit(
    train_step.make_train_step(
      model, tx, mean=MEAN, std=STD, class_weights=weights
    )
  )
  plain, metrics = step(*arguments)
  equal, same = make((2.0,) * 16)(*arguments)
  assert float(same['loss']) == pytest.approx(float(metrics['loss']), rel=1e-6)
  np.testing.assert_allclose(
    *(s.params['stem']['layer']['conv']['kernel'] for s in (plain, equal))
    if 'stem' in plain.params
    else [jax.tree.leaves(s.params)[0] for s in (plain, equal)],
    rtol=1e-5,
    atol=1e-7,
  )
  # Of the clips of one class alone, where all others weigh nothing.
  label = int(batch['label'][0])
  alone, _ = make(tuple(float(k == label) for k in range(16)))(*arguments), 0
  mask = np.array(batch['label'] == label)
  weights = losses.clip_weights(jnp.array(batch['label']), jnp.eye(16)[label])
  np.testing.assert_allclose(weights, mask / mask.mean(), rtol=1e-6)
  assert np.isfinite(float(alone[1]['loss']))


def test_a_mixed_clip_has_the_weights_of_its_classes():
  label = jnp.array([[0.25, 0.75, 0], [0, 0, 1.0]])
  weights = losses.clip_weights(label, jnp.array([4.0, 2.0, 1.0]))
  np.testing.assert_allclose(weights, np.array([2.5, 1]) / 1.75, rtol=1e-6)
