"""Statistics of batch norm: of a whole batch, of several, and the running ones.

They come in trees like 'batch_stats', with {'mean', 'var'} for each layer. A
layer gives the moments of each clip; here these become those of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree


class RunningStatistics(NamedTuple):
  """What a batch norm normalises by in evaluation, of each channel.

  Attributes:
    mean: float [C].
    var: float [C], unbiased.
  """

  mean: Any
  var: Any


def batch_moments(clip_mean, clip_var):
  """Mean and biased variance of all clips, [..., C], without a gradient."""
  # Running statistics are no part of the loss: nothing is kept for them.
  clip_mean, clip_var = lax.stop_gradient((clip_mean, clip_var))
  axes = tuple(range(clip_mean.ndim - 1))
  # Clips of a batch are equally large, so that plain means are those of all its
  # numbers. The variance is that inside of clips plus that between them.
  mean = clip_mean.mean(axes)
  return mean, (clip_var + jnp.square(clip_mean - mean)).mean(axes)


def next_running(
  running: RunningStatistics, mean: Any, var: Any, count: Any, keep: float
) -> RunningStatistics:
  """Running statistics after a batch.

  Args:
    running: Those before it.
    mean: Of the batch, [C].
    var: Of the batch, biased.
    count: Numbers of a channel in the batch.
    keep: Share of the old ones.
  """
  # A count that is an argument of a program is no Python number.
  maximum = jnp.maximum if isinstance(count, jax.Array) else max
  # Running variances are unbiased, as in torch; Flax stores biased ones.
  unbiased = var * (count / maximum(count - 1, 1))
  return RunningStatistics(
    keep * running.mean + (1 - keep) * mean,
    keep * running.var + (1 - keep) * unbiased,
  )


def whole_moments(moments: PyTree) -> PyTree:
  """Mean and biased variance of all clips together, of all layers at once.

  Args:
    moments: A tree of {'mean', 'var', ...} of clips (or of equal batches),
      [..., C].

  Returns:
    The tree of {'mean', 'var'}, [C]: mean of means; mean of variances plus
    variance of means.
  """
  # Side by side, because devices that have some of the clips each add up once
  # for all layers then, not once for each.
  layers, tree = jax.tree.flatten(moments, is_leaf=_is_layer)
  found = [None] * len(layers)
  # All of one shape, unless a layer of the user's own gives other ones.
  for shape in dict.fromkeys(layer['mean'].shape[:-1] for layer in layers):
    places = [i for i, x in enumerate(layers) if x['mean'].shape[:-1] == shape]
    joined = [
      jnp.concatenate([layers[i][name] for i in places], -1)
      for name in ('mean', 'var')
    ]
    ends = np.cumsum([layers[i]['mean'].shape[-1] for i in places])[:-1]
    pooled = (jnp.split(v, ends) for v in batch_moments(*joined))
    for i, mean, var in zip(places, *pooled, strict=True):
      found[i] = {'mean': mean, 'var': var}
  return jax.tree.unflatten(tree, found)


def combine(moments: Sequence[PyTree]) -> PyTree:
  """Population statistics of several equal batches, for 'batch_stats'.

  Args:
    moments: 'batch_moments' of each batch, or `whole_moments` of it.

  Returns:
    The tree of {'mean', 'var'}. See `replace` for layers without moments.

  Source: fvcore, nn/precise_bn.py (population statistics).
  """
  if not moments:
    raise ValueError('No batch statistics to combine; give at least one batch.')

  # Batches are equal, so they need no weights. Biased, the variance of the
  # population, as in the source; running variances are unbiased.
  return whole_moments(jax.tree.map(lambda *x: jnp.stack(x), *moments))


def replace(batch_stats: PyTree, new: PyTree) -> PyTree:
  """Running statistics with those of `combine` where it has some.

  Frozen layers have no moments, and keep theirs.
  """
  return _update_layers(lambda old, new: new, batch_stats, new)


def update(batch_stats: PyTree, moments: PyTree, momentum: float) -> PyTree:
  """Running statistics after a step, from the moments of all its clips.

  They are those that `BatchNorm` itself records for the whole batch.

  Args:
    batch_stats: Running statistics before the step.
    moments: 'batch_moments' of the batch. Where it was computed in equal parts,
      those of all of them, stacked: a step for each part would keep
      momentum^parts of the old statistics.
    momentum: Share of the old running statistics that the step keeps.
  """

  def update(old, moment, whole):
    # In the statistics' type: a ratio of float32 numbers would cost a float64
    # program its digits.
    count = moment['count'].astype(old['var'].dtype).sum()
    running = RunningStatistics(**old)
    return next_running(
      running, whole['mean'], whole['var'], count, momentum
    )._asdict()

  return _update_layers(update, batch_stats, moments, whole_moments(moments))


def _update_layers(update, batch_stats: Mapping, *moments: Mapping) -> dict:
  """Calls update(old, *moments) for the layers that have moments."""
  if _is_layer(batch_stats):
    return update(batch_stats, *moments)
  return {
    # Frozen layers have none, nor has a module all of whose layers are frozen.
    name: _update_layers(update, old, *(tree[name] for tree in moments))
    if name in moments[0]
    else old
    for name, old in batch_stats.items()
  }


def _is_layer(node: Mapping) -> bool:
  """Whether a node of a tree of moments is those of one batch norm."""
  # A module may have the name 'mean': its node has other nodes in it.
  return 'mean' in node and not isinstance(node['mean'], Mapping)
