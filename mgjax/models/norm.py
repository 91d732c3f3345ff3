"""Batch normalisation over groups of clips; the number of groups is a value.

Multigrid training changes the batch but keeps the number of clips behind one
statistic (Wu et al. 2020, "sub-batch" normalisation). Here a batch of B clips
is cut into groups, each normalised by its own mean and variance:

  1. each clip's mean and variance over T, H, W           [B, C], float32
  2. pooled inside a group by `same_group`, a [B, B] matrix     [B, C]
     of zeros and ones, which is divided by the size
  3. x * scale + shift, with one scale and shift per clip and channel

The large tensor is read elementwise only; how clips are grouped lives in a
small matrix, an argument of the program. So one compiled program serves any
number of groups, what devices exchange is [B, C]-sized, and the result does
not depend on how clips lie on devices.

`grouped_batch_norm` is that as a function, for layers of any framework;
`BatchNorm` is the Linen layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from mgjax.config.network_options import NormOptions


def group_matrix(
  batch: int, groups: int | Int[Array, '']
) -> Float[Array, 'batch batch']:
  """Says which clips share a group: entry 1 where two do, else 0.

  Clip i belongs to group i % groups. Zeros and ones are exact in every type;
  1 / size is rounded, so that is made where the type is known: a float32 third
  spoils a float64 program.

  Args:
    batch: Clips in the batch.
    groups: Number of equal groups; may be traced. It must divide `batch`,
      which is checked where the value is known.

  Raises:
    ValueError: If a known number of groups does not divide the batch.

  Source: PySlowFast 287ec00, models/batchnorm_helper.py, SubBatchNorm3d
    (interleaved splits).
  """
  if not isinstance(groups, jax.Array) and (groups < 1 or batch % groups):
    raise ValueError(
      f'{groups} batch-norm groups do not divide a batch of {batch} clips; '
      f'use a divisor of {batch}.'
    )
  # Interleaved, as in the reference. Clips m, m + M, ... are then whole groups
  # wherever M divides their number, which makes M micro-batches exact.
  group = jnp.arange(batch) % groups
  # A matrix and no reshape to [groups, B / groups, C]: the number of groups is
  # a value, and no shape may depend on it. B is at most a few hundred.
  same = group[:, None] == group[None, :]
  return same.astype(jnp.float32)


class RunningStatistics(NamedTuple):
  """What a batch norm normalises by in evaluation, of each channel.

  Attributes:
    mean: float [C].
    var: float [C], unbiased.
  """

  mean: Any
  var: Any


def grouped_batch_norm(
  x: Float[Array, '...'],
  same_group: Float[Array, 'B B'] | None,
  running: tuple[Float[Array, ' C'], Float[Array, ' C']],
  *,
  scale: Float[Array, ' C'] | float = 1.0,
  bias: Float[Array, ' C'] | float = 0.0,
  momentum: float = NormOptions.norm_momentum,
  eps: float = NormOptions.norm_eps,
  channel_axis: int = -1,
  axis_name: str | None = None,
) -> tuple[Float[Array, '...'], RunningStatistics]:
  """Batch normalisation over groups of clips, for a layer of any framework.

  Args:
    x: [B, ..., C] or, with channel_axis=1, [B, C, ...]: a batch of clips,
      images or vectors. With `axis_name`, one of them, without its B.
    same_group: In training, `group_matrix(B, groups)`, which says what is
      normalised together. None, in evaluation: normalises by `running`.
    running: Mean and variance of evaluation.
    scale: Multiplied with the result.
    bias: Added to it.
    momentum: Share of the old running statistics that a step keeps; with 0 the
      new ones are those of this batch alone.
    eps: Added to the variance.
    channel_axis: Axis of x that has the channels.
    axis_name: Of the jax.vmap over the batch inside which this is called, for
      networks that are written for one example (Equinox). `same_group` and
      `running` are the same for all of its examples, and so is what is returned
      for `running`: `in_axes=None`, `out_axes=None`.

  Returns:
    The result, of x's shape and type, and the running statistics after the
    step: those of the whole batch, whatever the groups.

  Raises:
    ValueError: `same_group` is of another batch than x.
  """
  # Counted from the front, since an axis may come in front.
  if axis_name is None:
    channel_axis %= x.ndim
  else:
    # A batch of one: what follows is written for batches.
    x, channel_axis = x[None], channel_axis % x.ndim + 1
  # The compiler chooses the layout, so this need not be a copy.
  moved = jnp.moveaxis(x, channel_axis, -1)
  # A plain pair too: that is what a layer of another framework keeps.
  running = RunningStatistics(*running)
  if same_group is None:
    mean, var = running.mean[None], running.var[None]
  else:
    clip_mean, clip_var = clip_moments(moved)
    if axis_name is not None:
      # [B, C] numbers, not the examples themselves.
      gather = lambda v: lax.all_gather(v[0], axis_name)
      clip_mean, clip_var = gather(clip_mean), gather(clip_var)
    if same_group.shape[0] != clip_mean.shape[0]:
      raise ValueError(
        f'same_group is for a batch of {same_group.shape[0]}, x is one of '
        f'{clip_mean.shape[0]}; use group_matrix({clip_mean.shape[0]}, groups).'
      )
    mean, var = pool_moments(clip_mean, clip_var, same_group)
    if axis_name is not None:
      # Every example computes the moments of all groups, and takes its own.
      own = lax.axis_index(axis_name)
      mean, var = mean[own][None], var[own][None]
    # Numbers of a channel in the whole batch; a Python number, since shapes are
    # known when the step is traced.
    count = clip_mean.shape[0] * (moved[0].size // moved.shape[-1])
    batch_mean, batch_var = _batch_moments(clip_mean, clip_var)
    running = _next_running(running, batch_mean, batch_var, count, momentum)
  y = _normalize(moved, mean, var, scale, bias, eps).astype(x.dtype)
  y = jnp.moveaxis(y, -1, channel_axis)
  return (y if axis_name is None else y[0]), running


def _normalize(x, mean, var, scale, bias, eps):
  """Normalises by the mean and variance of each clip (or one for all)."""
  # Folded to [B, C] first: the large tensor gets one multiply-add instead of
  # four operations. Statistics are float32 at least, and so is the result: it
  # is rounded once, by the caller.
  factor = scale * lax.rsqrt(var + eps)
  shift = bias - mean * factor
  return x * _like(factor, x) + _like(shift, x)


def _batch_moments(clip_mean, clip_var):
  """Mean and biased variance of the whole batch, without a gradient."""
  # Running statistics are no part of the loss: nothing is kept for them.
  clip_mean, clip_var = lax.stop_gradient((clip_mean, clip_var))
  # Clips of a batch are equally large, so that plain means are those of all its
  # numbers. The variance is that inside of clips plus that between them.
  mean = clip_mean.mean(0)
  return mean, (clip_var + jnp.square(clip_mean - mean)).mean(0)


def _next_running(running, mean, var, count, keep):
  """Running statistics after a batch of these (biased) moments."""
  # A count that is an argument of a program is no Python number.
  maximum = jnp.maximum if isinstance(count, jax.Array) else max
  # Running variances are unbiased, as in torch; Flax stores biased ones.
  unbiased = var * (count / maximum(count - 1, 1))
  return RunningStatistics(
    keep * running.mean + (1 - keep) * mean,
    keep * running.var + (1 - keep) * unbiased,
  )


# Over T, H and W of a clip alone. A device has whole clips, so that it
# exchanges nothing here.
@jax.custom_vjp
def clip_moments(
  x: Float[Array, 'B *N C'],
) -> tuple[Float[Array, 'B C'], Float[Array, 'B C']]:
  """Mean and (biased) variance of each clip's channels, at least float32."""
  # bfloat16 has 8 bits: a sum in it stops growing after some hundred terms.
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  axes = tuple(range(1, x.ndim - 1))
  mean = x.mean(axes)
  # Centred: a mean of squares less a squared mean loses all digits where the
  # mean is much larger than the spread. It reads the tensor twice.
  return mean, jnp.square(x - _like(mean, x)).mean(axes)


def _clip_moments_forward(x):
  mean, var = clip_moments(x)
  # x costs nothing more: `_normalize` keeps it, too, for the scale's gradient.
  return (mean, var), (x, mean)


def _clip_moments_backward(residuals, cotangents):
  # Affine in x: the difference to the mean, as large as the video, need not be
  # kept from the forward pass, as JAX's own rule would have it. (It costs
  # digits only where the mean is many standard deviations away from zero.)
  x, mean = residuals
  by_mean, by_var = cotangents
  count = x[0, ..., 0].size
  factor = by_var * (2 / count)
  shift = by_mean / count - mean * factor
  gradient = x * _like(factor, x) + _like(shift, x)
  # Computed in float32 at least; JAX wants the type of x.
  return (gradient.astype(x.dtype),)


clip_moments.defvjp(_clip_moments_forward, _clip_moments_backward)


def _like(statistic, x):
  """[B, C] to [B, 1, ..., 1, C], with as many axes as x."""
  return jnp.expand_dims(statistic, tuple(range(1, x.ndim - 1)))


def pool_moments(
  mean: Float[Array, 'B C'],
  var: Float[Array, 'B C'],
  same_group: Float[Array, 'B B'],
) -> tuple[Float[Array, 'B C'], Float[Array, 'B C']]:
  """Moments of each clip's group, by the law of total variance.

  Args:
    mean: Of each clip.
    var: Of each clip, biased.
    same_group: `group_matrix`.
  """
  # Zeros and ones: exact in any type.
  same_group = same_group.astype(mean.dtype)
  # The matrix is divided, not the sums: the compiler makes it once for all
  # layers, and no division stands between a layer's other operations.
  same_group = same_group / same_group.sum(1, keepdims=True)
  # HIGHEST: TPUs multiply in bfloat16 by default, which costs the statistics
  # all but three digits; the product is too small to take time.
  average = lambda v: jnp.matmul(same_group, v, precision=lax.Precision.HIGHEST)
  group_mean = average(mean)
  # The spread inside clips and the spread between them.
  return group_mean, average(var + jnp.square(mean - group_mean))


def is_frozen(path: Sequence[str], frozen: str) -> bool:
  """Whether a batch norm keeps its statistics, scale and bias in training.

  Args:
    path: Names of the modules that lead to it, its own last.
    frozen: config.norm.frozen: 'all'; 'but_first', all but the first of each
      pathway, which adapts to the new videos; '', none.

  Source: Wang et al. 2016 (arXiv:1608.00859), section 3.2 ("partial BN");
    mit-han-lab/temporal-shift-module, ops/models.py, TSN.train.
  """
  # Names are all that tells them apart: stem/layer/norm, or
  # slow_stem/layer/norm and fast_stem/layer/norm. The path of a layer by itself
  # has one.
  *_, stem, layer, _ = ('', '', *path)
  is_first = stem.endswith('stem') and layer == 'layer'
  return frozen == 'all' or (frozen == 'but_first' and not is_first)


def frozen_parameters(params: PyTree, frozen: str) -> PyTree:
  """Marks the scales and biases of frozen batch norms: a tree of booleans.

  A batch norm is recognized by its scale: no other layer has one.
  """

  def mark(tree: Mapping, path: tuple[str, ...]) -> dict:
    marked = 'scale' in tree and is_frozen(path, frozen)
    return {
      name: mark(leaf, (*path, name)) if isinstance(leaf, Mapping) else marked
      for name, leaf in tree.items()
    }

  return mark(params, ())


class BatchNorm(nn.Module):
  """Batch normalisation over groups of clips.

  Variables: params 'scale' and 'bias' [C]; batch_stats 'mean' and 'var' [C],
  of the whole batch whatever the groups.

  In training, 'batch_stats' is updated where it is mutable. Where the
  collection 'batch_moments' is mutable, it receives this batch's own mean,
  biased variance and count in the same tree: `combine_statistics` makes
  running statistics from several of those ("precise" batch norm), and
  `update_statistics` those of a step whose batch is computed in parts.

  A frozen layer is the same in training as in evaluation: it normalises by the
  running statistics, updates nothing, and its scale and bias have no gradient.

  Attributes:
    momentum: Share of the old running statistics that a step keeps.
    eps: Added to the variance.
    zero_init: Start with scale 0, so that a residual block starts as identity.
    frozen: See `is_frozen`.
    dtype: Type of the result. Statistics and the affine map are computed in
      float32 at least.

  Source: PySlowFast 287ec00, models/batchnorm_helper.py; Wu et al. 2020.
  Differs: PySlowFast keeps running statistics per split and averages those
    later; here they are of the whole batch, so their tree never changes. The
    mean is the same; the variance contains the spread between the *batch's*
    group means, not between their running averages.
  """

  momentum: float = NormOptions.norm_momentum
  eps: float = NormOptions.norm_eps
  zero_init: bool = False
  frozen: str = NormOptions.norm_frozen
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B T H W C'],
    same_group: Float[Array, 'B B'] | None = None,
  ) -> Float[Array, 'B T H W C']:
    """Normalises by these groups; by the running statistics without any."""
    b, t, h, w, c = x.shape
    init = nn.initializers.zeros if self.zero_init else nn.initializers.ones
    scale = self.param('scale', init, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    # Of the whole batch, [C]: with one of each group, their number would be a
    # shape, and a checkpoint would fit one phase only.
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (c,))
    running_var = self.variable('batch_stats', 'var', jnp.ones, (c,))
    # `self.path` first exists inside apply, so this cannot be a field.
    if self.frozen and is_frozen(self.path, self.frozen):
      same_group = None
      scale, bias = lax.stop_gradient((scale, bias))
    if same_group is None:
      mean, var = running_mean.value[None], running_var.value[None]
    else:
      clip_mean, clip_var = clip_moments(x)
      mean, var = pool_moments(clip_mean, clip_var, same_group)
      # Before the first step they are 0 and 1, not those of init's dummy video.
      if not self.is_initializing():
        self._record(
          clip_mean, clip_var, b * t * h * w, running_mean, running_var
        )
    return _normalize(x, mean, var, scale, bias, self.eps).astype(self.dtype)

  def _record(self, clip_mean, clip_var, count, running_mean, running_var):
    """Updates the collections that are mutable."""
    mean, var = _batch_moments(clip_mean, clip_var)
    if self.is_mutable_collection('batch_moments'):
      # Biased, with a count: several batches can be put together later.
      self.put_variable('batch_moments', 'mean', mean)
      self.put_variable('batch_moments', 'var', var)
      # Numbers per channel. An array, as all that a program returns. Above 2^24
      # float32 rounds it, by less than the digits of an unbiased variance.
      self.put_variable(
        'batch_moments', 'count', jnp.asarray(count, jnp.float32)
      )
    # Not where moments alone are asked for: statistics that are estimated from
    # several batches replace the running ones when all are there.
    if self.is_mutable_collection('batch_stats'):
      running = RunningStatistics(running_mean.value, running_var.value)
      running_mean.value, running_var.value = _next_running(
        running, mean, var, count, self.momentum
      )


def combine_statistics(moments: Sequence[PyTree]) -> PyTree:
  """Population statistics of several equal batches, for 'batch_stats'.

  Args:
    moments: 'batch_moments' of each batch: a tree of {'mean', 'var', 'count'}
      with biased variances.

  Returns:
    The tree of {'mean', 'var'}: mean of means; mean of variances plus
    variance of means. See `replace_statistics` for layers without moments.

  Source: fvcore, nn/precise_bn.py (population statistics).
  """
  if not moments:
    raise ValueError('No batch statistics to combine; give at least one batch.')

  # Batches are equal, so they need no weights. Biased, the variance of the
  # population, as in the source; running variances are unbiased.
  def combine(*layers):
    means = jnp.stack([layer['mean'] for layer in layers])
    variances = jnp.stack([layer['var'] for layer in layers])
    mean = means.mean(0)
    return {
      'mean': mean,
      'var': (variances + jnp.square(means - mean)).mean(0),
    }

  return jax.tree.map(combine, *moments, is_leaf=_is_layer)


def replace_statistics(batch_stats: PyTree, new: PyTree) -> PyTree:
  """Running statistics with those of `combine_statistics` where it has some.

  Frozen layers have no moments, and keep theirs.
  """
  return _update_layers(lambda old, new: new, batch_stats, new)


def update_statistics(
  batch_stats: PyTree, moments: Sequence[PyTree], momentum: float
) -> PyTree:
  """Running statistics after a step whose batch was computed in equal parts.

  They are those that `BatchNorm` itself records for the whole batch.

  Args:
    batch_stats: Running statistics before the step.
    moments: 'batch_moments' of each part of the batch.
    momentum: Share of the old running statistics that the step keeps.
  """
  # First those of the whole batch, then one step of the running ones: a step
  # for each part would keep momentum^parts of the old.
  whole = combine_statistics(moments)

  def update(old, moment, batch):
    # Parts are equal. In the statistics' type: a ratio of float32 numbers would
    # cost a float64 program its digits.
    count = len(moments) * moment['count'].astype(old['var'].dtype)
    running = RunningStatistics(**old)
    return _next_running(
      running, batch['mean'], batch['var'], count, momentum
    )._asdict()

  return _update_layers(update, batch_stats, moments[0], whole)


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
