"""A step on several devices: each computes its own clips alone.

What crosses between them is written here and nowhere else: gradients and
metrics, once a step; batch norm's moments, where a group of clips spans
devices (models/norm.py). Left to the compiler, gradients of a bfloat16 network
would be summed in bfloat16, and each batch norm would add up its statistics by
itself.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from mgjax.grids.schedule import Grid
from mgjax.models import norm


class Layout(NamedTuple):
  """How the clips of a batch lie on devices: equal shares, one after the other.

  Attributes:
    mesh: The devices, along the axis `norm.BATCH_AXIS`.
    group_clips: From a grid to a number of consecutive clips that are whole
      batch-norm groups in every step (`GridSchedule.group_clips`).
  """

  mesh: Mesh
  group_clips: Callable[[Grid], int]

  def sharing(self, grid: Grid, parts: int) -> int:
    """The number of neighbouring devices whose clips are whole groups.

    Args:
      grid: Of the batch.
      parts: In which the batch is computed, one after the other.
    """
    clips = grid.batch // (self.mesh.size * parts)
    return math.lcm(self.group_clips(grid), clips) // clips

  def blocks(self, grid: Grid, parts: int) -> int:
    """The number of such neighbourhoods."""
    return self.mesh.size // self.sharing(grid, parts)


def grid_of(batch: dict[str, Any]) -> Grid:
  """The grid of 'video' [B, T, H, W, 3]."""
  b, t, h, w, _ = batch['video'].shape
  return Grid(t, h, w, b)


def parts_of(batch: Any, parts: int, sharing: int, blocks: int = 1) -> Any:
  """Cuts a batch in equal parts of whole batch-norm groups.

  Args:
    batch: A tree of [c, ...], the clips of a device.
    parts: M.
    sharing: Devices that share groups, see `Layout`. With more than one, a part
      has c / M clips of each of them, which are not whole groups of its own: a
      device then computes others than it holds.
    blocks: Where the batch is that of all devices, and XLA cuts it: equal
      blocks of clips, of each of which a part has the same share.

  Returns:
    The tree of [M, c / M, ...].
  """

  def cut(x):
    if sharing > 1:
      x = norm.gather(x, sharing).reshape(parts, sharing, -1, *x.shape[1:])
      place = lax.axis_index(norm.BATCH_AXIS) % sharing
      return lax.dynamic_index_in_dim(x, place, 1, keepdims=False)
    x = x.reshape(blocks, parts, -1, *x.shape[1:])
    return x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:])

  return jax.tree.map(cut, batch)


def on_devices(
  compute: Callable, layout: Layout, parts: int, reduce_dtype: str
) -> Callable:
  """Makes what computes a batch on one device compute it on several.

  Args:
    compute: From (state, batch, group_clips, rng, clip_index, sharing), of a
      part of a batch, to gradients, metrics (means over its clips) and moments
      of each clip.
    layout: Of the devices.
    parts: See `Layout.sharing`.
    reduce_dtype: 'float32': gradients are summed in their own type, float32 at
      least; 'bfloat16': in that, which moves half the bytes.

  Returns:
    compute(state, batch, group_clips, rng) of the whole batch.
  """
  axis, num_devices = norm.BATCH_AXIS, layout.mesh.size

  def add(gradient):
    exact = gradient.dtype
    if reduce_dtype == 'bfloat16':
      gradient = gradient.astype(jnp.bfloat16)
    return lax.psum(gradient, axis).astype(exact) / num_devices

  def compute_all(state, batch, group_clips, rng):
    grid = grid_of(batch)
    sharing = layout.sharing(grid, parts)

    def of_device(*args):
      grads, metrics, moments = compute(*args, sharing)
      return jax.tree.map(add, grads), lax.pmean(metrics, axis), moments

    clips, all_alike = PartitionSpec(axis), PartitionSpec()
    return jax.shard_map(
      of_device,
      mesh=layout.mesh,
      in_specs=(all_alike, clips, all_alike, all_alike, clips),
      out_specs=(all_alike, all_alike, clips),
      # Else JAX itself sums the gradients, where a kernel has been cast to the
      # network's type, and in that type.
      check_vma=False,
    )(state, batch, group_clips, rng, jnp.arange(grid.batch))

  return compute_all
