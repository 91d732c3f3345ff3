"""The optimizer: an optax chain whose learning rate comes from outside."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mgjax.models import norm
from mgjax.step import parameters


def make_optimizer(
  name: str,
  *,
  weight_decay: float,
  momentum: float,
  nesterov: bool,
  b1: float,
  b2: float,
  eps: float,
  trust_coefficient: float,
  clip_norm: float,
  frozen: str,
  decay_on: str = 'not_norms',
  additions: Sequence[str] = (),
  layer_decay: float = 1.0,
  layer_of: Callable[[parameters.Path], int | None] | None = None,
  trained: Callable[[dict], parameters.Marks] = lambda params: None,
) -> optax.GradientTransformation:
  """Makes an optimizer at learning rate 1.

  The train step multiplies the update by the schedule's learning rate, which
  is a program argument: the optimizer's state is free of it, so that a jump of
  the learning rate (a new phase) acts at once, as in torch.optim.SGD.

  Gradients are first scaled down to a norm of `clip_norm`, over all trained
  parameters. Weight decay acts on what `decay_on` says; the layer-wise rates of
  LARS and LAMB spare norms and biases (`adapted`). Scales and biases of frozen
  batch norms stay as they are, and their gradients count as zero.

  Where only some parameters are trained, `update` gets gradients of those and
  all parameters, and gives directions of those; the state has nothing of the
  others.

  Layer-wise decay multiplies the direction at the end, as a learning rate of
  the layer's own would: momentum and the norms of LARS and LAMB do not see it.

  sgd    g + decay * p, then momentum, Nesterov's where asked.
  adamw  Adam's direction + decay * p.
  lars   SGD whose g + decay * p is scaled to trust_coefficient * |p|, layer by
         layer, before the momentum.
  lamb   AdamW whose direction is scaled to |p|, layer by layer.

  Args:
    name: 'sgd', 'adamw', 'lars' or 'lamb'.
    weight_decay: Decay per unit of learning rate, 0 or more.
    momentum: sgd, lars: in [0, 1).
    nesterov: sgd, lars: Nesterov's momentum.
    b1: adamw, lamb: decay of the mean of gradients, in [0, 1).
    b2: adamw, lamb: decay of the mean of their squares, in [0, 1).
    eps: adamw, lamb: added to the root of the latter.
    trust_coefficient: lars: norm of a layer's update, per unit of learning
      rate and weight norm.
    clip_norm: Norm that gradients are scaled down to; 0: any norm.
    frozen: Which batch norms stay as they are: '', 'all' or 'but_first'.
    decay_on: What weight decay acts on; see `parameters.decayed`.
    additions: See `parameters.decayed`.
    layer_decay: Factor on the learning rate from a layer to the one before it,
      in (0, 1]; 1: all layers have the same.
    layer_of: See `parameters.layers`; needed where that is not 1.
    trained: From all parameters to marks of those that are trained.

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
  trace = optax.trace(decay=momentum, nesterov=nesterov)
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  layerwise = lambda coefficient: optax.masked(
    optax.scale_by_trust_ratio(trust_coefficient=coefficient), adapted
  )

  def of_part(params: dict) -> optax.GradientTransformation:
    """The optimizer of the part of some parameters that is trained."""
    # Marks are those of the whole tree: a part may lack what tells a norm.
    pick = functools.partial(parameters.part, marks=trained(params))
    decay = optax.add_decayed_weights(
      weight_decay, mask=pick(parameters.decayed(params, decay_on, additions))
    )
    parts = {
      'sgd': lambda: (decay, trace),
      'adamw': lambda: (adam, decay),
      'lars': lambda: (decay, layerwise(trust_coefficient), trace),
      'lamb': lambda: (adam, decay, layerwise(1.0)),
    }[name]()
    if clip_norm:
      parts = (optax.clip_by_global_norm(clip_norm), *parts)
    tx = optax.chain(*parts)
    if frozen:
      tx = _sparing(tx, pick(norm.frozen_parameters(params, frozen)))
    if layer_decay != 1:
      assert layer_of is not None
      scales = parameters.layer_scales(params, layer_of, layer_decay)
      tx = _scaled(tx, pick(scales))
    return tx

  return optax.GradientTransformation(
    lambda params: of_part(params).init(
      parameters.part(params, trained(params))
    ),
    lambda gradients, state, params: of_part(params).update(
      gradients, state, parameters.part(params, trained(params))
    ),
  )


def _sparing(
  tx: optax.GradientTransformation, marks: parameters.Marks
) -> optax.GradientTransformation:
  """An optimizer that leaves frozen batch norms alone, with the same state.

  Their directions are set to zero as well as their gradients: the state may
  have a momentum, of a time before they were frozen.
  """

  def spare(tree):
    return jax.tree.map(lambda m, x: jnp.zeros_like(x) if m else x, marks, tree)

  def update(gradients, state, params):
    directions, state = tx.update(spare(gradients), state, params)
    return spare(directions), state

  return optax.GradientTransformation(tx.init, update)


def _scaled(
  tx: optax.GradientTransformation, scales: Any
) -> optax.GradientTransformation:
  """An optimizer whose directions are multiplied, with the same state."""

  def update(gradients, state, params):
    directions, state = tx.update(gradients, state, params)
    # Python's numbers: the type of the direction stays.
    return jax.tree.map(lambda s, d: s * d, scales, directions), state

  return optax.GradientTransformation(tx.init, update)


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
