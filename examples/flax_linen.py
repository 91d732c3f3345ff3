"""Multigrid in a training loop of your own: Flax Linen.

python examples/flax_linen.py FOLDER

Trains a small network on arrays and keeps its state in FOLDER; where it was
killed, the same command goes on. docs/existing_training.md explains each part.
"""

import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

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


# 3. Your network. It ends in an average, so that it takes clips of any size;
# its batch norms take `same_group`, which says what is normalised together.
class Net(nn.Module):
  @nn.compact
  def __call__(self, video, same_group=None):
    x = video.astype(jnp.float32) / 255
    for features in (8, 16):
      x = nn.Conv(features, (3, 5, 5), (1, 2, 2), use_bias=False)(x)
      x = nn.relu(mgjax.BatchNorm()(x, same_group))
    return nn.Dense(4)(x.mean((1, 2, 3)))


net = Net()
momentum = optax.trace(0.9)


@jax.jit
def initial_state():
  variables = net.init(jax.random.key(0), videos[:1])
  trace = momentum.init(variables['params'])
  return {'step': jnp.int32(0), 'trace': trace, **variables}


# 4. Your step. What changes from step to step is an argument, the rate and the
# number of batch-norm groups too: one program serves all steps of a grid.
def train_step(state, video, label, rate, groups):
  same_group = mgjax.group_matrix(len(label), groups)

  def loss_of(params):
    variables = {'params': params, 'batch_stats': state['batch_stats']}
    logits, new = net.apply(
      variables, video, same_group, mutable=['batch_stats']
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses.mean(), new['batch_stats']

  differentiate = jax.value_and_grad(loss_of, has_aux=True)
  (loss, batch_stats), gradients = differentiate(state['params'])
  direction, trace = momentum.update(gradients, state['trace'])
  update = lambda p, d: p - rate * d
  return {
    'step': state['step'] + 1,
    'trace': trace,
    'params': jax.tree.map(update, state['params'], direction),
    'batch_stats': batch_stats,
  }, loss


@jax.jit
def accuracy(state, video, label):
  variables = {'params': state['params'], 'batch_stats': state['batch_stats']}
  return (net.apply(variables, video).argmax(-1) == label).mean()


def main(folder):
  # 5. The state, as it was left.
  file = pathlib.Path(folder) / 'state.msgpack'
  state = initial_state()
  if file.exists():
    state = serialization.from_bytes(state, file.read_bytes())
    state = jax.device_put(state)
  first_step = int(state['step'])
  state_spec = mgjax.abstract(state)

  # 6. The programs: one for each grid that is still needed, compiled in the
  # background in the order of their first use.
  def arguments(grid):
    return (
      state_spec,
      jax.ShapeDtypeStruct((grid.batch, grid.T, grid.H, grid.W, 1), np.uint8),
      jax.ShapeDtypeStruct((grid.batch,), np.int32),
      jax.ShapeDtypeStruct((), np.float32),
      jax.ShapeDtypeStruct((), np.int32),
    )

  test = videos[num_train:], labels[num_train:]
  score = accuracy.lower(state_spec, *test).compile()
  jitted = jax.jit(train_step, donate_argnums=0)
  grids = schedule.first_uses(first_step)
  with mgjax.StepCache.of_step(jitted, grids, arguments) as steps:
    # 7. The loop.
    for step in range(first_step, schedule.total_steps):
      grid = schedule(step)
      rate = np.float32(schedule.lr(step))
      groups = np.int32(schedule.bn_groups(step))
      state, loss = steps[grid](state, *load(step), rate, groups)
      print(f'step {step}: grid {grid}, loss {loss:.3f}', flush=True)
      if (step + 1) % 10 == 0 or step + 1 == schedule.total_steps:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix('.new')
        new.write_bytes(serialization.to_bytes(state))
        new.replace(file)  # A file is whole, or it is the one before.
  print(f'accuracy {score(state, *test):.3f}')


if __name__ == '__main__':
  main(*sys.argv[1:])
