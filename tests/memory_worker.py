"""Takes one training step; prints by how much the process grew, in bytes.

Arguments: name of the network, T, side in pixels, clips, micro-batches, whether
blocks are rematerialised (0 or 1).
"""

import re
import sys

import jax
import jax.numpy as jnp

from configs import moving_digits
from mgjax import models
from mgjax.cpu import allocator
from mgjax.grids.schedule import Grid
from mgjax.planning import memory
from mgjax.setup import network
from mgjax.step import compilation, train_state, train_step


def status(name: str) -> int:
  """Bytes of a line of /proc/self/status."""
  with open('/proc/self/status') as file:
    return 1024 * int(re.search(rf'{name}:\s+(\d+)', file.read())[1])


def main(
  name: str, T: int, side: int, num_clips: int, parts: int, remat: int
) -> None:
  allocator.keep()
  model = models.build(
    name,
    num_classes=16,
    dropout=0.5,
    dtype='float32',
    blocks=(1, 1),
    width=16,
    remat=bool(remat),
  )
  config = moving_digits.get_config()
  tx = network.optimizer(config)
  make_state = lambda: train_state.create_state(
    model, tx, jax.random.key(0), jnp.zeros((1, T, 32, 32, 3))
  )
  step = train_step.make_train_step(
    model, tx, mean=(0.45,) * 3, std=(0.2,) * 3, micro_batches=parts
  )
  batch = {
    'video': jnp.zeros((num_clips, T, side, side, 3), jnp.uint8),
    'label': jnp.zeros(num_clips, jnp.int32),
    'flip': jnp.zeros(num_clips, bool),
  }
  arguments = (
    jax.jit(make_state)(),
    batch,
    jnp.float32(0.1),
    jnp.int32(parts),
    jax.random.key(0),
  )
  compiled = compilation.compile_program(
    jax.jit(step, donate_argnums=0).lower(*arguments)
  )
  before = status('VmRSS')
  jax.block_until_ready(compiled(*arguments))
  grown = status('VmHWM') - before
  grid = Grid(T, side, side, num_clips)
  copies = memory.state_copies(tx, averaged=False)
  estimate = memory.estimate(
    model, grid, num_devices=1, micro_batches=parts, copies=copies
  )
  print(grown, estimate.activations + estimate.gradients)


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))
