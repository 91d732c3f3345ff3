"""Batch normalisation over groups of clips; the number of groups is a value.

Multigrid training changes the batch but keeps the number of clips behind one
statistic (Wu et al. 2020, "sub-batch" normalisation). Here a batch of B clips
is cut into groups of consecutive clips, each normalised by its own mean and
variance:

  1. each clip's mean and variance over T, H, W           [B, C], float32
  2. pooled inside a group by `same_group`, a [B, B] matrix     [B, C]
     of zeros and ones, which is divided by the size
  3. x * scale + shift, with one scale and shift per clip and channel

The large tensor is read elementwise only; how clips are grouped lives in a
small matrix, an argument of the program. So one compiled program serves any
number of groups.

A device that computes its own clips alone (step/on_devices.py) has whole groups
wherever they fit, and exchanges nothing. Where a group spans devices,
`same_group` is that of the clips of them all, larger than the device's batch:
they exchange [B, C]-sized moments, once forward and once back.

`grouped_batch_norm` is that as a function, for layers of any framework;
`BatchNorm` is the Linen layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from mgjax.config.network_options import NormOptions
from mgjax.models import statistics

# Axis of a mesh along which devices have the clips of a batch.
BATCH_AXIS = 'data'


def group_matrix(
  batch: int, groups: int | Int[Array, '']
) -> Float[Array, 'batch batch']:
  """Says which clips share a group: entry 1 where two do, else 0.

  Groups are of consecutive clips: clip i is in group i // (batch / groups).

  Args:
    batch: Clips in the batch.
    groups: Number of equal groups; may be traced. It must divide `batch`,
      which is checked where the value is known.

  Raises:
    ValueError: If a known number of groups does not divide the batch.

  Source: PySlowFast 287ec00, models/batchnorm_helper.py, SubBatchNorm3d.
  Differs: its splits are interleaved, clip i in split i % groups. The order of
    clips in a batch is immaterial to the method; consecutive ones lie on one
    device.
  """
  if not isinstance(groups, jax.Array) and (groups < 1 or batch % groups):
    raise ValueError(
      f'{groups} batch-norm groups do not divide a batch of {batch} clips; '
      f'use a divisor of {batch}.'
    )
  return consecutive(batch, batch // groups)


def consecutive(
  batch: int, group_clips: int | Int[Array, '']
) -> Float[Array, 'batch batch']:
  """`group_matrix` for groups of so many clips; the last one may have fewer."""
  group = jnp.arange(batch) // group_clips
  # A matrix and no reshape to [groups, B / groups, C]: the number of groups is
  # a value, and no shape may depend on it. B is at most a few hundred. (In the
  # papers' own schedules a grid occurs with two numbers of groups: as the base
  # of a phase, and in the short cycle of the next one.)
  same = group[:, None] == group[None, :]
  # Zeros and ones are exact in every type; 1 / size is rounded, so that is made
  # where the type is known: a float32 third spoils a float64 program.
  return same.astype(jnp.float32)


# The matrix of a batch, see `group_matrix`, or None in evaluation. Its sides
# are longer than B where groups span devices, see `BatchNorm`.
SameGroup = Float[Array, 'S S'] | None


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
) -> tuple[Float[Array, '...'], statistics.RunningStatistics]:
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
  running = statistics.RunningStatistics(*running)
  if same_group is None:
    mean, var = running.mean[None], running.var[None]
  else:
    clip_mean, clip_var = clip_moments(moved)
    if axis_name is None:
      _check_batch(same_group, len(clip_mean))
      mean, var = pool_moments(clip_mean, clip_var, same_group)
    else:
      _check_batch(same_group, lax.axis_size(axis_name))
      (mean, var), (clip_mean, clip_var) = _pool_over(
        axis_name, clip_mean, clip_var, same_group
      )
    # Numbers of a channel in the whole batch; a Python number, since shapes are
    # known when the step is traced.
    count = clip_mean.shape[0] * (moved[0].size // moved.shape[-1])
    batch_mean, batch_var = statistics.batch_moments(clip_mean, clip_var)
    running = statistics.next_running(
      running, batch_mean, batch_var, count, momentum
    )
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
  # Frames that lie side by side are all normalised alike.
  factor, shift = (
    jnp.tile(v, x.shape[-1] // v.shape[-1]) for v in (factor, shift)
  )
  return x * _like(factor, x) + _like(shift, x)


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
  # mean is much larger than the spread. It reads the tensor twice. One pass,
  # with a number of the clip subtracted instead of the mean, is as exact but no
  # better: XLA:CPU makes a loop of its own of each sum, slower than its
  # library's. Compiled for an H100 or a v5e, a bfloat16 network then writes
  # features in float32.
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


def _of_frames(mean, var, beside):
  """Moments over frames that lie side by side: [B, f * C] to [B, C]."""
  if beside == 1:
    return mean, var
  mean, var = (v.reshape(len(v), beside, -1) for v in (mean, var))
  of_all = mean.mean(1)
  return of_all, (var + jnp.square(mean - of_all[:, None])).mean(1)


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


def _pool_over(axis_name: str, mean: Array, var: Array, same_group: Array):
  """`pool_moments` for clips that have others of their groups elsewhere.

  Args:
    axis_name: Axis over whose members, as many consecutive ones as it takes,
      lie the clips of `same_group`: devices, or the examples of a jax.vmap.
    mean: Of each clip of this member, [c, C].
    var: Of each, biased.
    same_group: Of the clips of a multiple of c.

  Returns:
    Moments of the groups of this member's clips, [c, C], and those of all the
    clips of `same_group`.
  """
  own, sharing = len(mean), len(same_group) // len(mean)
  # One exchange for both, [c, 2 C] numbers and not the clips themselves; the
  # one of their gradients is its transpose.
  both = gather(jnp.concatenate([mean, var], -1), sharing, axis_name)
  all_mean, all_var = jnp.split(both, 2, -1)
  # Each member computes the moments of all these groups, and takes its own.
  place = lax.axis_index(axis_name) % sharing * own
  mine = lambda v: lax.dynamic_slice_in_dim(v, place, own)
  group_mean, group_var = pool_moments(all_mean, all_var, same_group)
  return (mine(group_mean), mine(group_var)), (all_mean, all_var)


def gather(x: Array, sharing: int, axis_name: str = BATCH_AXIS) -> Array:
  """Joins the arrays of neighbours along an axis of devices or examples.

  Args:
    x: [c, ...].
    sharing: Number of consecutive members whose arrays are joined.
    axis_name: Of the axis.

  Returns:
    [sharing * c, ...], the same on all of them.
  """
  members = lax.axis_size(axis_name)
  neighbours = [
    list(range(first, first + sharing)) for first in range(0, members, sharing)
  ]
  if sharing == members:  # A jax.vmap knows no other groups.
    neighbours = None
  return lax.all_gather(x, axis_name, axis_index_groups=neighbours, tiled=True)


def _check_batch(same_group: Array, clips: int) -> None:
  if len(same_group) != clips:
    raise ValueError(
      f'same_group is for a batch of {len(same_group)}, x is one of {clips}; '
      f'use group_matrix({clips}, groups).'
    )


def _is_on_devices() -> bool:
  """Whether this is traced for each device of a mesh (step/on_devices.py)."""
  try:
    lax.axis_size(BATCH_AXIS)
  except NameError:
    return False
  return True


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
  collection 'batch_moments' is mutable, it receives mean and biased variance
  [B, C] and count [B] of each clip in the same tree: `statistics.combine` makes
  statistics from several batches of those ("precise" batch norm), and
  `statistics.update` those after a step whose batch is computed on several
  devices or in parts.

  A frozen layer is the same in training as in evaluation: it normalises by the
  running statistics, updates nothing, and its scale and bias have no gradient.

  Attributes:
    momentum: Share of the old running statistics that a step keeps.
    eps: Added to the variance.
    zero_init: Start with scale 0, so that a residual block starts as identity.
    frozen: See `is_frozen`.
    beside: Frames that lie side by side in the channels of x (tpu/lanes.py).
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
  beside: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B T H W C'],
    same_group: SameGroup = None,
  ) -> Float[Array, 'B T H W C']:
    """Normalises by these groups; by the running statistics without any.

    Args:
      x: Features of the clips; inside of a jax.shard_map over BATCH_AXIS, of
        those of a device.
      same_group: Which clips share a group. Inside of a jax.shard_map, of those
        of as many consecutive devices as share groups.

    Raises:
      ValueError: `same_group` is of another batch than x.
    """
    b, t, h, w, _ = x.shape
    c = x.shape[-1] // self.beside
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
      clip_mean, clip_var = _of_frames(*clip_moments(x), self.beside)
      if len(same_group) > b and _is_on_devices():
        (mean, var), _ = _pool_over(BATCH_AXIS, clip_mean, clip_var, same_group)
      else:
        _check_batch(same_group, b)
        mean, var = pool_moments(clip_mean, clip_var, same_group)
      # Before the first step they are 0 and 1, not those of init's dummy video.
      if not self.is_initializing():
        count = t * self.beside * h * w
        self._record(clip_mean, clip_var, count, running_mean, running_var)
    return _normalize(x, mean, var, scale, bias, self.eps).astype(self.dtype)

  def _record(self, clip_mean, clip_var, count, running_mean, running_var):
    """Updates the collections that are mutable."""
    clips = len(clip_mean)
    if self.is_mutable_collection('batch_moments'):
      self.put_variable('batch_moments', 'mean', clip_mean)
      self.put_variable('batch_moments', 'var', clip_var)
      # An array, as all that a program returns.
      counts = jnp.full(clips, count, jnp.float32)
      self.put_variable('batch_moments', 'count', counts)
    # Not where moments alone are asked for: statistics that are estimated from
    # several batches replace the running ones when all are there.
    if self.is_mutable_collection('batch_stats'):
      running = statistics.RunningStatistics(
        running_mean.value, running_var.value
      )
      mean, var = statistics.batch_moments(clip_mean, clip_var)
      running_mean.value, running_var.value = statistics.next_running(
        running, mean, var, clips * count, self.momentum
      )
