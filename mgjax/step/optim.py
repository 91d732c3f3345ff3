"""The optimizer: an optax chain whose learning rate comes from outside."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mgjax.models import norm


def make_optimizer(
  optim: ml_collections.ConfigDict, frozen: str = ''
) -> optax.GradientTransformation:
  """Makes the optimizer `optim.name`, at learning rate 1.

  The train step multiplies the update by the schedule's learning rate, which
  is a program argument: the optimizer's state is free of it, so that a jump of
  the learning rate (a new phase) acts at once, as in torch.optim.SGD.

  Gradients are first scaled down to a norm of `optim.clip_norm`, over all
  parameters. Weight decay spares batch norm (`decayed`); the layer-wise rates
  of LARS and LAMB spare batch norm and biases (`adapted`). Scales and biases of
  frozen batch norms stay as they are, and their gradients count as zero.

  sgd    g + decay * p, then momentum, Nesterov's where asked.
  adamw  Adam's direction + decay * p.
  lars   SGD whose g + decay * p is scaled to trust_coefficient * |p|, layer by
         layer, before the momentum.
  lamb   AdamW whose direction is scaled to |p|, layer by layer.

  Args:
    optim: config.optim.
    frozen: config.norm.frozen.

  Returns:
    A transformation from gradients to descent directions (to be subtracted).

  Source: sgd: facebookresearch/SlowFast 287ec00, slowfast/models/optimizer.py.
    adamw: Loshchilov and Hutter 2019 (arXiv:1711.05101), with the decay times
    the learning rate as in torch. lars: You et al. 2017 (arXiv:1708.03888).
    lamb: You et al. 2020 (arXiv:1904.00962).
  Differs: The paper's LARS has the learning rate inside the momentum (the same
    where it is constant), and divides by |g| + decay * |p| where optax and
    this take |g + decay * p|.
  """
  decay = optax.add_decayed_weights(optim.weight_decay, mask=decayed)
  momentum = optax.trace(decay=optim.momentum, nesterov=optim.nesterov)
  adam = optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
  layerwise = lambda coefficient: optax.masked(
    optax.scale_by_trust_ratio(trust_coefficient=coefficient), adapted
  )
  parts = {
    'sgd': lambda: (decay, momentum),
    'adamw': lambda: (adam, decay),
    'lars': lambda: (decay, layerwise(optim.trust_coefficient), momentum),
    'lamb': lambda: (adam, decay, layerwise(1.0)),
  }[optim.name]()
  if optim.clip_norm:
    parts = (optax.clip_by_global_norm(optim.clip_norm), *parts)
  return _sparing(optax.chain(*parts), frozen)


def _sparing(
  tx: optax.GradientTransformation, frozen: str
) -> optax.GradientTransformation:
  """An optimizer that leaves frozen batch norms alone, with the same state.

  Their directions are set to zero as well as their gradients: the state may
  have a momentum, of a time before they were frozen.
  """
  if not frozen:
    return tx

  def spare(tree):
    marks = norm.frozen_parameters(tree, frozen)
    return jax.tree.map(lambda m, x: jnp.zeros_like(x) if m else x, marks, tree)

  def update(gradients, state, params):
    directions, state = tx.update(spare(gradients), state, params)
    return spare(directions), state

  return optax.GradientTransformation(tx.init, update)


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


def adapted(params: dict) -> dict:
  """Marks the parameters with a rate of their own in LARS and LAMB: kernels.

  Batch norm's scales and biases, and the biases of other layers, are vectors;
  the norm of a bias that starts at zero would leave it there.

  Args:
    params: Nested dict of arrays.

  Returns:
    The same tree of booleans.
  """
  return jax.tree.map(lambda p: p.ndim > 1, params)


def update_average(average: Any, params: Any, step: Any, decay: float) -> Any:
  """Moves the average of the weights (EMA) towards new weights.

  average <- d * average + (1 - d) * params, where d is `decay`, but
  (1 + step) / (10 + step) as long as that is less: so the initial weights are
  forgotten early, whatever the decay.

  Args:
    average: Tree of arrays.
    params: The same tree, after the step.
    step: int32 [], the number of steps before it.
    decay: In (0, 1).

  Source: tf.train.ExponentialMovingAverage with num_updates.
  """
  step = step.astype(jnp.float32)
  d = jnp.minimum(decay, (1 + step) / (10 + step))
  return optax.incremental_update(params, average, 1 - d)


def num_parameters(params: dict) -> int:
  """Number of scalars in a tree of arrays."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
