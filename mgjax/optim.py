"""The optimizer: an optax chain whose learning rate comes from outside."""

import jax
import ml_collections
import optax


def make_optimizer(
  optim: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  """SGD with momentum as the reference has it, at learning rate 1.

  The train step multiplies the update by the schedule's learning rate, which
  is a program argument: the momentum buffer is free of it, so that a jump of
  the learning rate (a new phase) acts at once, as in torch.optim.SGD.

  Args:
    optim: config.optim.

  Returns:
    A transformation from gradients to descent directions (to be subtracted).

  Source: facebookresearch/SlowFast 287ec00, slowfast/models/optimizer.py.
  """
  return optax.chain(
    optax.add_decayed_weights(optim.weight_decay, mask=decayed),
    optax.trace(decay=optim.momentum, nesterov=optim.nesterov),
  )


def decayed(params: dict) -> dict:
  """Marks the parameters that weight decay acts on: all but batch norm's.

  A batch norm is recognized by its scale: no other layer has one.

  Args:
    params: Nested dict of arrays.

  Returns:
    The same tree of booleans.
  """

  def mark(tree: dict) -> dict:
    is_norm = 'scale' in tree
    return {
      name: mark(leaf) if isinstance(leaf, dict) else not is_norm
      for name, leaf in tree.items()
    }

  return mark(params)


def num_parameters(params: dict) -> int:
  """Number of scalars in a tree of arrays."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
