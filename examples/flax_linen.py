"""Multigrid in a training loop of your own: Flax Linen.

python examples/flax_linen.py FOLDER

It keeps its state in FOLDER; where it was killed, the same command goes on.
docs/existing_training.md explains each part.
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
# move in one of four directions; 192 are for training, 64 for the evaluation.
rng = np.random.default_rng(0)
labels = rng.integers(4, size=256, dtype=np.int32)
moves = np.array([(0, 2), (2, 0), (0, -2), (-2, 0)])[labels, None]
places = rng.integers(32, size=(256, 1, 2)) + moves * np.arange(8)[:, None]
square = np.pad(np.full((8, 8, 1), 255, np.uint8), [(0, 24), (0, 24), (0, 0)])
videos = np.stack([[np.roll(square, yx, (0, 1)) for yx in v] for v in places])
test = videos[192:], labels[192:]

# 2. Which grid, which rate, which examples: all of it depends on the step only.
baseline = {'frames': 8, 'height': 32, 'width': 32, 'batch': 4, 'epochs': 4}
schedule = mgjax.make_schedule(
  **baseline, num_train=192, learning_rate=0.2, lr_steps=(3,), group_clips=4
)
order = mgjax.Order(num_examples=192, seed=0)


def inputs(step):
  """Clips of a step, on its grid; their labels; rate and number of groups."""
  (*sizes, _), examples = schedule(step), order.batch(schedule, step)
  full = videos.shape[1:4]
  t, y, x = (np.arange(n) * m // n for n, m in zip(sizes, full, strict=True))
  video = videos[np.ix_(examples, t, y, x)]
  # What is random comes from a generator of each clip's own.
  clips = order.clips(schedule, step)
  light = [order.generator(clip).uniform(0.5, 1) for clip in clips]
  video = (video * np.reshape(light, (-1, 1, 1, 1, 1))).astype(np.uint8)
  rate, groups = schedule.lr(step), schedule.bn_groups(step)
  return video, labels[examples], np.float32(rate), np.int32(groups)


# 3. Your network. It ends in an average, so that it takes clips of any size;
# its batch norm takes `same_group`, which says what is normalised together.
class Net(nn.Module):
  @nn.compact
  def __call__(self, video, same_group=None):
    x = nn.Conv(16, (3, 5, 5), (1, 2, 2), use_bias=False)(video / 255)
    x = nn.relu(mgjax.BatchNorm()(x, same_group))
    return nn.Dense(4)(x.mean((1, 2, 3)))


net = Net()
momentum = optax.trace(0.9)


# 4. Your step. What changes from step to step is an argument, the rate and the
# number of batch-norm groups too: one program serves all steps of a grid.
@jax.jit(donate_argnums=0)
def train_step(state, video, label, rate, groups):
  same_group = mgjax.group_matrix(len(label), groups)

  def loss_of(params):
    variables = {**state['variables'], 'params': params}
    logits, new = net.apply(variables, video, same_group, mutable='batch_stats')
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses.mean(), new

  params = state['variables']['params']
  differentiate = jax.value_and_grad(loss_of, has_aux=True)
  (loss, new), gradients = differentiate(params)
  direction, trace = momentum.update(gradients, state['trace'])
  new['params'] = optax.tree.add_scale(params, -rate, direction)
  return {'step': state['step'] + 1, 'variables': new, 'trace': trace}, loss


@jax.jit
def accuracy(state, video, label):
  return (net.apply(state['variables'], video).argmax(-1) == label).mean()


# 5. The state: a new one, or as it was left.
file = pathlib.Path(sys.argv[1]) / 'state.msgpack'
file.parent.mkdir(parents=True, exist_ok=True)
variables = net.init(jax.random.key(0), videos[:1])
trace = momentum.init(variables['params'])
state = {'step': jnp.int32(0), 'variables': variables, 'trace': trace}
if file.exists():
  state = jax.device_put(serialization.from_bytes(state, file.read_bytes()))
first_step = int(state['step'])
state_spec = mgjax.abstract(state)


# 6. The programs: one for each grid that is still needed, compiled in the
# background in the order of their first use.
def arguments(grid):
  frames, height, width, batch = grid
  video = jax.ShapeDtypeStruct((batch, frames, height, width, 1), np.uint8)
  label = jax.ShapeDtypeStruct((batch,), np.int32)
  return state_spec, video, label, np.float32(0), np.int32(0)


score = accuracy.lower(state_spec, *test).compile()
grids = schedule.first_uses(first_step)

# 7. The loop.
with mgjax.StepCache.of_step(train_step, grids, arguments) as steps:
  for step in range(first_step, schedule.total_steps):
    grid = schedule(step)
    state, loss = steps[grid](state, *inputs(step))
    print(f'step {step}: grid {grid}, loss {loss:.3f}', flush=True)
    if (step + 1) % 10 == 0 or step + 1 == schedule.total_steps:
      new = file.with_suffix('.new')
      new.write_bytes(serialization.to_bytes(state))
      new.replace(file)  # A file is whole, or it is the one before.
print(f'accuracy {score(state, *test):.3f}')
