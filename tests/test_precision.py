"""bfloat16 computes; float32 remembers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mgjax import models, optim, train_step

NUM_STEPS = 40


def small_batches():
  """Clips of 4 classes that differ in where they are bright."""
  rng = np.random.default_rng(0)
  while True:
    label = rng.integers(0, 4, 8, np.int32)
    video = rng.integers(0, 160, (8, 2, 16, 16, 3), np.uint8)
    for clip, k in zip(video, label, strict=True):
      y, x = 8 * (k // 2), 8 * (k % 2)
      clip[:, y : y + 8, x : x + 8] += 95
    yield {'video': video, 'label': label, 'flip': np.zeros(8, bool)}


def make(dtype):
  model = models.build(
    'slow', num_classes=4, dropout=0.5, dtype=dtype, blocks=(1,), width=4
  )
  tx = optim.make_optimizer(default.base().optim)
  video = jnp.zeros((1, 2, 16, 16, 3))
  make_state = lambda: train_step.create_state(
    model, tx, jax.random.key(0), video
  )
  step = train_step.make_train_step(
    model, tx, mean=(0.45,) * 3, std=(0.225,) * 3
  )
  return make_state, step


def test_all_but_the_activations_is_float32():
  make_state, step = make('bfloat16')
  state = jax.eval_shape(make_state)
  spec = lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype)
  batch = jax.tree.map(spec, next(small_batches()))
  args = batch, spec(np.float32(0.1)), spec(np.int32(1))
  after, metrics = jax.eval_shape(step, state, *args, jax.random.key(0))
  for leaf in jax.tree.leaves((after.replace(step=None), metrics)):
    assert leaf.dtype == jnp.float32
  # And the activations are not.
  jaxpr = str(jax.make_jaxpr(step)(state, *args, jax.random.key(0)))
  assert 'bf16[8,2,8,8,4]' in jaxpr


def loss_curve(dtype, seed):
  make_state, step = make(dtype)
  state, step = jax.jit(make_state)(), jax.jit(step)
  losses = []
  for _, batch in zip(range(NUM_STEPS), small_batches(), strict=False):
    state, metrics = step(
      state, batch, jnp.float32(0.05), jnp.int32(1), jax.random.key(seed)
    )
    losses.append(float(metrics['loss']))
  return np.array(losses)


@pytest.mark.slow
def test_the_loss_curve_of_bfloat16_is_within_the_noise_of_float32():
  """Noise: the distance of two runs that differ in their dropout masks."""
  one, other = (loss_curve('float32', seed) for seed in (0, 1))
  half = loss_curve('bfloat16', 0)
  # It learns, so that there is a curve to compare.
  assert one[-10:].mean() < 0.85 * one[:5].mean()
  assert np.abs(half - one).mean() < np.abs(other - one).mean()
  assert half[-10:].mean() == pytest.approx(
    one[-10:].mean(), abs=np.abs(other - one).mean()
  )
