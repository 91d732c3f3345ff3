"""Multigrid in a training loop of your own: Equinox.

python examples/equinox_net.py FOLDER

Trains a small network on arrays and keeps its state in FOLDER; where it was
killed, the same command goes on. docs/existing_training.md explains each part.
"""

import pathlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mgjax

# 1. Your data: videos, uint8 [N, T, H, W, C], and their labels. Here squares
# move in one of four directions; the last 64 videos are for the evaluation.
rng = np.random.default_rng(0)
labels = rng.integers(4, size=256, dtype=np.int32)
square = np.zeros((32, 32, 1), np.uint8)
square[:8, :8] = 255
starts = rng.integers(32, size=(256, 1, 2))
moves = np.array([(0, 2), (2, 0), (0, -2), (-2, 0)])[labels, None]
shifts = starts + moves * np.arange(8)[:, None]  # [N, T, 2]
videos = np.stack([[np.roll(square, yx, (0, 1)) for yx in v] for v in shifts])
num_train = len(videos) - 64

# 2. Which grid, which rate, which examples: all of it depends on the step only.
schedule = mgjax.make_schedule(
  frames=8,
  height=32,
  width=32,
  batch=4,
  epochs=4,
  num_train=num_train,
  mode='both',
  learning_rate=0.05,
  lr_steps=(3,),
  group_clips=4,
)
order = mgjax.Order(num_examples=num_train, seed=0)


def load(step):
  """A step's batch, on its grid: fewer frames of the span, fewer pixels."""
  grid, examples = schedule(step), order.batch(schedule, step)
  t, y, x = (
    np.arange(size) * full // size
    for size, full in zip(grid[:3], videos.shape[1:4], strict=True)
  )
  video = videos[examples][:, t][:, :, y][:, :, :, x]
  # What is random comes from a generator of each clip's own.
  clips = order.clips(schedule, step)
  light = np.array([order.generator(c).uniform(0.5, 1) for c in clips])
  video = (video * light[:, None, None, None, None]).astype(np.uint8)
  return video, labels[examples]


# 3. Your network, of one example. It ends in an average, so that it takes clips
# of any size; its batch norms take `same_group`, which says what is normalised
# together.
class BatchNorm(eqx.Module):
  scale: jax.Array
  bias: jax.Array
  running: eqx.nn.StateIndex

  def __init__(self, features):
    self.scale, self.bias = jnp.ones(features), jnp.zeros(features)
    self.running = eqx.nn.StateIndex((jnp.zeros(features), jnp.ones(features)))

  def __call__(self, x, same_group, state):
    y, running = mgjax.grouped_batch_norm(
      x,
      same_group,
      running=state.get(self.running),
      scale=self.scale,
      bias=self.bias,
      channel_axis=0,
      axis_name='batch',
    )
    return y, state.set(self.running, tuple(running))


class Net(eqx.Module):
  convs: list
  norms: list
  head: eqx.nn.Linear

  def __init__(self, key):
    keys = jax.random.split(key, 3)
    conv = lambda c, d, key: eqx.nn.Conv3d(
      c, d, (3, 5, 5), (1, 2, 2), (1, 2, 2), use_bias=False, key=key
    )
    self.convs = [conv(1, 8, keys[0]), conv(8, 16, keys[1])]
    self.norms = [BatchNorm(8), BatchNorm(16)]
    self.head = eqx.nn.Linear(16, 4, key=keys[2])

  def __call__(self, video, same_group, state):
    x = jnp.moveaxis(video, -1, 0).astype(jnp.float32) / 255
    for conv, norm in zip(self.convs, self.norms, strict=True):
      x, state = norm(conv(x), same_group, state)
      x = jax.nn.relu(x)
    return self.head(x.mean((1, 2, 3))), state


def apply(net, state, video, same_group=None):
  in_axes, out_axes = (0, None, None), (0, None)
  run = jax.vmap(net, in_axes, out_axes, axis_name='batch')
  return run(video, same_group, state)


momentum = optax.trace(0.9)
net, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
params, static = eqx.partition(net, eqx.is_inexact_array)


# 4. Your step. What changes from step to step is an argument, the rate and the
# number of batch-norm groups too: one program serves all steps of a grid.
def train_step(training, video, label, rate, groups):
  step, params, state, trace = training
  same_group = mgjax.group_matrix(len(label), groups)

  def loss_of(params):
    logits, new = apply(eqx.combine(params, static), state, video, same_group)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses.mean(), new

  differentiate = jax.value_and_grad(loss_of, has_aux=True)
  (loss, state), gradients = differentiate(params)
  direction, trace = momentum.update(gradients, trace)
  params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
  return (step + 1, params, state, trace), loss


@jax.jit
def accuracy(training, video, label):
  _, params, state, _ = training
  logits, _ = apply(eqx.combine(params, static), state, video)
  return (logits.argmax(-1) == label).mean()


def main(folder):
  # 5. The state, as it was left.
  file = pathlib.Path(folder) / 'state.eqx'
  training = jnp.int32(0), params, state, momentum.init(params)
  if file.exists():
    training = eqx.tree_deserialise_leaves(file, training)
  first_step = int(training[0])
  training_spec = mgjax.abstract(training)

  # 6. The programs: one for each grid that is still needed, compiled in the
  # background in the order of their first use.
  def arguments(grid):
    return (
      training_spec,
      jax.ShapeDtypeStruct((grid.batch, grid.T, grid.H, grid.W, 1), np.uint8),
      jax.ShapeDtypeStruct((grid.batch,), np.int32),
      jax.ShapeDtypeStruct((), np.float32),
      jax.ShapeDtypeStruct((), np.int32),
    )

  test = videos[num_train:], labels[num_train:]
  score = accuracy.lower(training_spec, *test).compile()
  jitted = jax.jit(train_step, donate_argnums=0)
  grids = schedule.first_uses(first_step)
  with mgjax.StepCache.of_step(jitted, grids, arguments) as steps:
    # 7. The loop.
    for step in range(first_step, schedule.total_steps):
      grid = schedule(step)
      rate = np.float32(schedule.lr(step))
      groups = np.int32(schedule.bn_groups(step))
      training, loss = steps[grid](training, *load(step), rate, groups)
      print(f'step {step}: grid {grid}, loss {loss:.3f}', flush=True)
      if (step + 1) % 10 == 0 or step + 1 == schedule.total_steps:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix('.new')
        eqx.tree_serialise_leaves(new, training)
        new.replace(file)  # A file is whole, or it is the one before.
  print(f'accuracy {score(training, *test):.3f}')


if __name__ == '__main__':
  main(*sys.argv[1:])
