"""The state of a training: what a checkpoint holds, and how it begins."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mgjax.hosts import parallel


class TrainState(flax.struct.PyTreeNode):
  """Everything that a checkpoint holds. Its tree is the same at every grid.

  Attributes:
    step: int32 [], steps taken; the only clock of a run.
    params: Trained parameters.
    batch_stats: Running means and variances, of use in evaluation only; {}
      where there are no batch norms.
    opt_state: The optimizer's state.
    ema: Average of the parameters over the steps; {} where it is off.
  """

  step: Any
  params: dict
  batch_stats: Any  # A dict; Orbax puts a leaf in the place of an empty one.
  opt_state: optax.OptState
  ema: Any = flax.struct.field(default_factory=dict)

  @property
  def eval_params(self) -> dict:
    """The parameters that evaluation uses: the average, where there is one."""
    return self.ema or self.params


def create_state(
  model: nn.Module,
  tx: optax.GradientTransformation,
  rng: jax.Array,
  video,
  *,
  average: bool = False,
) -> TrainState:
  """Makes the state before the first step.

  Args:
    model: The network.
    tx: The optimizer.
    rng: Key of the initial parameters.
    video: float [B, T, H, W, 3]; its shape does not matter.
    average: Whether the state has an average of the parameters (`ema`).
  """
  variables = model.init(rng, video, same_group=None)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=tx.init(variables['params']),
    # A copy: the step donates both.
    ema=jax.tree.map(jnp.copy, variables['params']) if average else {},
  )


def abstract_state(
  make_state: Callable[[], TrainState], sharding: jax.sharding.Sharding
) -> TrainState:
  """Shapes, dtypes and shardings of a state, without making one.

  Args:
    make_state: Makes the state; it is traced, not run.
    sharding: That of every array.

  Returns:
    The state with a jax.ShapeDtypeStruct for every array.
  """
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    jax.eval_shape(make_state),
  )


def first_state(
  make_state: Callable[[jax.Array], TrainState],
  seed: int,
  initial: dict,
  mesh: jax.sharding.Mesh,
) -> TrainState:
  """Makes the state before the first step.

  Args:
    make_state: Makes the state with random weights, of a seed, uint32 [].
    seed: Of the run, in [0, 2^32).
    initial: {'params', 'batch_stats'} to start from instead; {}: the random
      ones. What 'params' lacks, such as the classifier, stays random.
    mesh: Devices, each of which gets all of it.
  """
  make = jax.jit(make_state, out_shardings=parallel.replicated(mesh))
  state = make(np.uint32(seed))
  if not initial:
    return state
  params = state.params | initial['params']
  return state.replace(
    params=params,
    batch_stats=initial['batch_stats'],
    # A copy: the step donates both.
    ema=jax.tree.map(jnp.copy, params) if state.ema else {},
  )


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
  """Whether a state holds neither a NaN nor an infinity, bool []."""
  return jnp.stack(
    [jnp.isfinite(x).all() for x in jax.tree.leaves(state)]
  ).all()


def num_parameters(params: dict) -> int:
  """Number of scalars in a tree of arrays."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
