"""Bytes of a device that a training step takes, estimated without compiling.

The estimate against `memory_analysis()` of the compiled step (XLA:CPU, JAX
0.10.2, float32; networks of 16 channels and two stages of one block, i3d of
two; no micro-batches, no rematerialisation), activations per clip in MB:

  network     B x T x side   estimate  XLA   estimate / XLA
  slow        8 x 8 x 64     5.98      6.02  0.99
  slow        4 x 8 x 112    18.3      18.4  1.00
  tsm         8 x 8 x 64     6.81      6.21  1.10
  blvnet_tam  8 x 8 x 64     6.81      6.82  1.00
  i3d         8 x 8 x 64     7.17      7.26  0.99
  slowfast    8 x 16 x 64    7.78      8.62  0.90

A process on a CPU grows by more in its first step: by scratch of libraries and
by the program itself. Growth of the peak of resident memory (VmHWM, measured by
tests/memory_worker.py; networks as above, slowfast of beta_inv 8), in MB:

  network   B x T x side   estimate  growth  growth / estimate
  slow      64 x 2 x 64    96        120     1.25
  slow      64 x 4 x 64    192       233     1.22
  slow      16 x 8 x 64    96        121     1.26
  slow      32 x 8 x 64    192       229     1.19
  slow      16 x 8 x 112   293       342     1.17
  tsm       32 x 8 x 64    218       235     1.08
  slowfast  16 x 16 x 64   105       126     1.20
  slow      32 x 8 x 112   586       671     1.14
   4 micro-batches         147       197     1.34
   rematerialisation       482       554     1.15

XLA:CPU computes bfloat16 in float32, so that the estimates of that could not be
compared there. No accelerator has been measured.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.extend import core

from mgjax.grids.schedule import Grid
from mgjax.planning import macs
from mgjax.step import optim

GIB = 2**30

# Batches on a device at once: that of the step, and two in flight.
_BATCHES = 3
# What XLA takes for activations, by what `forward` counts: fragmentation, and
# elementwise results that it keeps. See the table above.
_OVERHEAD = 1.25
_REMAT = ('checkpoint', 'remat', 'remat2')


class Memory(NamedTuple):
  """Bytes on one device while a step of one grid runs."""

  state: int  # Parameters, their average, statistics, the optimizer's state.
  gradients: int  # With micro-batches: of one of them, and their sum.
  batches: int  # Pixels of the step and of those that wait.
  activations: int  # Kept for the backward pass, or at work in it.

  @property
  def total(self) -> int:
    return sum(self)


class Forward(NamedTuple):
  """What a forward pass leaves for the backward pass, in bytes."""

  kept: int  # Per clip, from the forward to the backward pass.
  rematted: int  # Per clip, most that one rematerialised block makes again.
  largest: int  # Per clip, the largest tensor.
  params: int  # Parameters, in float32.


def estimate(
  config: ml_collections.ConfigDict,
  model: nn.Module,
  grid: Grid,
  *,
  num_devices: int,
) -> Memory:
  """Estimates the memory of a training step.

  Args:
    config: The run's configuration; `optim` and `train.micro_batches` count.
    model: The network, rematerialised or not.
    grid: The step's grid.
    num_devices: Devices that share the batch; each has a whole state.
  """
  found = forward(model, T=grid.T, H=grid.H, W=grid.W)
  parts = config.train.micro_batches
  clips = -(-grid.batch // num_devices)
  # The state is a copy or two of the parameters, whatever their shapes.
  tensor = jax.ShapeDtypeStruct((100, 100), jnp.float32)
  tx = optim.make_optimizer(config.optim, config.norm.frozen)
  copies = sum(
    leaf.size // tensor.size
    for leaf in jax.tree.leaves(jax.eval_shape(tx.init, {'kernel': tensor}))
  )
  copies += 1 + (config.optim.ema_decay > 0)
  in_backward = found.kept + found.rematted + 2 * found.largest
  return Memory(
    state=copies * found.params,
    gradients=(2 if parts > 1 else 1) * found.params,
    batches=_BATCHES * clips * grid.T * grid.H * grid.W * 3,
    activations=int(_OVERHEAD * in_backward * -(-clips // parts)),
  )


def forward(model: nn.Module, *, T: int, H: int, W: int) -> Forward:
  """Counts what one clip's forward pass leaves for the backward pass.

  Every tensor that a convolution, a matrix product or a temporal aggregation
  reads or writes is kept, once: the gradients of kernels and of batch norm
  need those. What lies between (normalisation, ReLU, sums) is elementwise and
  computed again inside XLA's fusions. Of a rematerialised block, its inputs
  are kept.

  Args:
    model: A model of `mgjax.models`.
    T: Frames of the clip.
    H: Its height in pixels.
    W: Its width in pixels.
  """
  jaxpr = macs.forward_jaxpr(model, T=T, H=H, W=W).jaxpr
  sizes = {}  # Bytes by number of tensor.
  largest_block = 0
  num_params = sum(v.aval.size for v in jaxpr.outvars)

  def new(var) -> int:
    sizes[len(sizes)] = var.aval.size * var.aval.dtype.itemsize
    return len(sizes) - 1

  def visit(jaxpr, inputs: list[int | None], kept: set[int]):
    """Follows the tensors that depend on the clip; returns the outputs."""
    nonlocal largest_block, num_params
    numbers = dict(zip(jaxpr.invars, inputs, strict=True))
    number_of = lambda v: (
      None if isinstance(v, core.Literal) else numbers.get(v)
    )
    for eqn in jaxpr.eqns:
      read = [number_of(v) for v in eqn.invars]
      from_clip = {n for n in read if n is not None}
      if not from_clip:
        continue
      name = eqn.primitive.name
      subs = list(core.jaxprs_in_params(eqn.params))
      written = None
      if name in _REMAT:
        inside: set[int] = set()
        visit(subs[0], read, inside)
        kept |= from_clip
        again = sum(sizes[n] for n in inside - kept)
        largest_block = max(largest_block, again)
      elif subs and len(subs[0].invars) == len(read):
        written = visit(subs[0], read, kept)
      if written is None:
        written = [new(v) for v in eqn.outvars]
      if name in ('conv_general_dilated', 'dot_general'):
        kept |= from_clip | set(written)
      if name == 'conv_general_dilated':
        # The kernel, and batch norm's scale and bias, which are not traced.
        kernel = eqn.invars[1].aval
        num_params += kernel.size + 2 * eqn.outvars[0].aval.shape[-1]
      numbers.update(zip(eqn.outvars, written, strict=True))
    return [number_of(v) for v in jaxpr.outvars]

  kept: set[int] = set()
  visit(jaxpr, [None, new(jaxpr.invars[1])], kept)
  return Forward(
    kept=sum(sizes[n] for n in kept),
    rematted=largest_block,
    largest=max(sizes[n] for n in kept),
    params=4 * num_params,
  )


def size_text(size: int) -> str:
  """A number of bytes in words: '2.5 GiB', below one GiB '0.3 MiB'."""
  unit, name = (GIB, 'GiB') if size >= GIB else (2**20, 'MiB')
  return f'{size / unit:.1f} {name}'


def device_bytes(config: ml_collections.ConfigDict) -> int:
  """Memory of a device: as configured, else as it says; 0 where unknown."""
  if config.train.device_memory_gib:
    return int(config.train.device_memory_gib * GIB)
  # None on CPUs.
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  return min(
    found['bytes_limit'] if 'bytes_limit' in found else 0 for found in stats
  )
