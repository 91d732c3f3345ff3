"""Weights and clips that were made up, to time programs that want some."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mgjax.hosts import parallel
from mgjax.step.train_state import TrainState


def variables(shapes: Any) -> Any:
  """Draws weights for which no layer is idle: no scale starts at zero.

  Kernels have variance 2 / fan-in. Drawing them here saves the compilation of
  the network's own initialisation, a minute for a large one.

  Args:
    shapes: A tree of arrays, or jax.ShapeDtypeStruct, whose names end in
      'kernel', 'scale', 'var' or others.

  Returns:
    The tree with NumPy arrays of these shapes and types.
  """
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == 'kernel':
      x = rng.standard_normal(leaf.shape, np.float32)
      x *= np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)
      return x.astype(leaf.dtype)
    return np.full(leaf.shape, path[-1].key in ('scale', 'var'), leaf.dtype)

  return jax.tree.map_with_path(draw, shapes)


def state(abstract: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
  """Makes up the state of a training before its first step.

  Args:
    abstract: Shapes and types of the state.
    mesh: Devices, each of which gets all of it.
  """
  zeros = lambda tree: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
  made = TrainState(
    step=np.zeros((), np.int32),
    params=variables(abstract.params),
    batch_stats=variables(abstract.batch_stats),
    opt_state=zeros(abstract.opt_state),
    ema=variables(abstract.ema),
  )
  return parallel.put_replicated(mesh, made)


def batch(
  spec: Mapping[str, jax.ShapeDtypeStruct],
  mesh: jax.sharding.Mesh,
  num_classes: int,
) -> dict[str, jax.Array]:
  """Makes up a batch of random pixels.

  Args:
    spec: Of `step.programs.batch_spec`.
    mesh: Devices that share it.
    num_classes: Of the labels.
  """
  rng = np.random.default_rng(0)

  def make(leaf):
    if leaf.dtype == np.uint8:
      return rng.integers(0, 256, leaf.shape, np.uint8)
    if leaf.dtype == np.int32:
      return rng.integers(0, num_classes, leaf.shape, np.int32)
    return np.zeros(leaf.shape, leaf.dtype)  # Nothing flipped; no class true.

  made = {name: make(leaf) for name, leaf in spec.items()}
  return parallel.put_batch(mesh, made)
