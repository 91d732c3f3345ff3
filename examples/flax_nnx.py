"""Multigrid in a training loop of your own: Flax NNX.

python examples/flax_nnx.py FOLDER

Trains a small network on arrays and keeps its state in FOLDER; where it was
killed, the same command goes on. docs/existing_training.md explains each part.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, serialization

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
class BatchNorm(nnx.Module):
  def __init__(self, features):
    self.scale = nnx.Param(jnp.ones(features))
    self.bias = nnx.Param(jnp.zeros(features))
    self.mean = nnx.BatchStat(jnp.zeros(features))
    self.var = nnx.BatchStat(jnp.ones(features))

  def __call__(self, x, same_group):
    y, (self.mean[...], self.var[...]) = mgjax.grouped_batch_norm(
      x,
      same_group,
      running=(self.mean[...], self.var[...]),
      scale=self.scale[...],
      bias=self.bias[...],
    )
    return y


class Net(nnx.Module):
  def __init__(self, rngs):
    conv = lambda c, d: nnx.Conv(
      c, d, (3, 5, 5), (1, 2, 2), use_bias=False, rngs=rngs
    )
    self.conv1, self.norm1 = conv(1, 8), BatchNorm(8)
    self.conv2, self.norm2 = conv(8, 16), BatchNorm(16)
    self.head = nnx.Linear(16, 4, rngs=rngs)

  def __call__(self, video, same_group=None):
    x = video.astype(jnp.float32) / 255
    x = nnx.relu(self.norm1(self.conv1(x), same_group))
    x = nnx.relu(self.norm2(self.conv2(x), same_group))
    return self.head(x.mean((1, 2, 3)))


class Training(nnx.Module):
  """All that a step changes, and a checkpoint holds."""

  def __init__(self):
    self.net = Net(nnx.Rngs(0))
    # The rate is set before each update.
    sgd = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0, momentum=0.9)
    self.optimizer = nnx.Optimizer(self.net, sgd, wrt=nnx.Param)


# 4. Your step. What changes from step to step is an argument, the rate and the
# number of batch-norm groups too: one program serves all steps of a grid.
@nnx.jit(donate_argnums=0)
def train_step(training, video, label, rate, groups):
  same_group = mgjax.group_matrix(len(label), groups)

  def loss_of(net):
    logits = net(video, same_group)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses.mean()

  loss, gradients = nnx.value_and_grad(loss_of)(training.net)
  training.optimizer.opt_state.hyperparams['learning_rate'][...] = rate
  training.optimizer.update(training.net, gradients)
  return loss


@nnx.jit
def accuracy(net, video, label):
  return (net(video).argmax(-1) == label).mean()


def main(folder):
  # 5. The state, as it was left.
  file = pathlib.Path(folder) / 'state.msgpack'
  training = Training()
  if file.exists():
    saved = nnx.to_pure_dict(nnx.state(training))
    saved = serialization.from_bytes(saved, file.read_bytes())
    nnx.update(training, jax.device_put(saved))
  first_step = int(training.optimizer.step[...])

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

  training_spec = mgjax.abstract(training)
  test = videos[num_train:], labels[num_train:]
  score = accuracy.lower(training_spec.net, *test).compile()
  grids = schedule.first_uses(first_step)
  with mgjax.StepCache.of_step(train_step, grids, arguments) as steps:
    # 7. The loop.
    for step in range(first_step, schedule.total_steps):
      grid = schedule(step)
      rate = np.float32(schedule.lr(step))
      groups = np.int32(schedule.bn_groups(step))
      loss = steps[grid](training, *load(step), rate, groups)
      print(f'step {step}: grid {grid}, loss {loss:.3f}', flush=True)
      if (step + 1) % 10 == 0 or step + 1 == schedule.total_steps:
        saved = nnx.to_pure_dict(nnx.state(training))
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix('.new')
        new.write_bytes(serialization.to_bytes(saved))
        new.replace(file)  # A file is whole, or it is the one before.
  print(f'accuracy {score(training.net, *test):.3f}')


if __name__ == '__main__':
  main(*sys.argv[1:])
