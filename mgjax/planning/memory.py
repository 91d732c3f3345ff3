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
compared there. On a TPU the estimate was 3.4 times too low: it warns of a run
that may not fit, and refuses none.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from mgjax.files import size_text
from mgjax.grids import Grid, GridSchedule
from mgjax.planning import macs

# Batches on a device at once: that of the step, and two in flight.
_BATCHES = 3
# What XLA takes for activations, by what `_count` finds: fragmentation, and
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


def estimate(
  model: nn.Module,
  grid: Grid,
  *,
  num_devices: int,
  micro_batches: int,
  copies: int,
) -> Memory:
  """Estimates the memory of a training step.

  Args:
    model: The network, rematerialised or not.
    grid: The step's grid.
    num_devices: Devices that share the batch; each has a whole state.
    micro_batches: Equal parts of the batch that are computed one after the
      other.
    copies: Numbers of the state per parameter: see `state_copies`.
  """
  jaxpr = macs.forward_jaxpr(model, T=grid.T, H=grid.H, W=grid.W).jaxpr
  kept: set[core.Var] = set()
  num_params, largest_block = _count(jaxpr, kept)
  # What is traced makes the parameters of the head, and returns them.
  num_params += sum(v.aval.size for v in jaxpr.outvars)
  kept -= {*jaxpr.outvars}
  largest = max(_num_bytes({tensor}) for tensor in kept)
  in_backward = _num_bytes(kept) + largest_block + 2 * largest
  params = 4 * num_params  # In float32.
  clips = -(-grid.batch // num_devices)
  return Memory(
    state=copies * params,
    gradients=(2 if micro_batches > 1 else 1) * params,
    batches=_BATCHES * clips * grid.T * grid.H * grid.W * 3,
    activations=int(_OVERHEAD * in_backward * -(-clips // micro_batches)),
  )


def state_copies(tx: optax.GradientTransformation, *, averaged: bool) -> int:
  """Returns how many numbers the state has for each parameter.

  Args:
    tx: The optimizer, whose state is a copy or two of the parameters.
    averaged: Whether the state has an average of the parameters.
  """
  tensor = jax.ShapeDtypeStruct((100, 100), jnp.float32)
  of_optimizer = sum(
    leaf.size // tensor.size
    for leaf in jax.tree.leaves(jax.eval_shape(tx.init, {'kernel': tensor}))
  )
  return 1 + of_optimizer + averaged


def as_json(
  found: Mapping[Grid, Memory], *, num_devices: int, device_bytes: int
) -> dict[str, Any]:
  """Returns the estimates as a plan has them.

  Args:
    found: Bytes on each device, for each grid in the order of the schedule's.
    num_devices: Devices that share each batch.
    device_bytes: Memory of each; 0: unknown.
  """
  return {
    'num_devices': num_devices,
    'device_bytes': device_bytes,
    'grids': [{**m._asdict(), 'total': m.total} for m in found.values()],
  }


def warning(
  found: Mapping[Grid, Memory],
  schedule: GridSchedule,
  *,
  num_devices: int,
  device_bytes: int,
) -> str:
  """Returns a line on the first phase that may not fit its devices, or ''.

  The estimate can be wrong by a factor (see above), so a run is not refused.

  Args:
    found: Estimates of the schedule's grids.
    schedule: The run's schedule.
    num_devices: Devices that share each batch.
    device_bytes: Memory of each.
  """
  for i, phase in enumerate(schedule.phases, start=1):
    grid = max(set(phase.cycle) & set(found), key=lambda g: found[g].total)
    over = found[grid].total - device_bytes
    if over > 0:
      return (
        f'warning: by a rough estimate, phase {i} of {len(schedule.phases)} '
        f'(grid {grid}) needs {size_text(found[grid].total)} on each of '
        f'{num_devices} device(s), {size_text(over)} more than the '
        f'{size_text(device_bytes)} there are; if it does not fit, '
        "train.micro_batches, train.remat='block', a smaller data.batch_size "
        'and more devices take less'
      )
  return ''


def _count(jaxpr: Any, kept: set[core.Var]) -> tuple[int, int]:
  """Counts what a forward pass leaves for the backward pass.

  Every tensor that a convolution, a matrix product or a temporal aggregation
  reads or writes is kept, once: the gradients of kernels and of batch norm
  need those. What lies between (normalisation, ReLU, sums) is elementwise and
  computed again inside XLA's fusions. Of a rematerialised block, its inputs
  are kept.

  Args:
    jaxpr: The forward pass of a clip, or a part of it.
    kept: Gets the tensors that are kept.

  Returns:
    Parameters, and the most bytes that one rematerialised block makes again.
  """
  num_params = largest_block = 0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    tensors = {v for v in eqn.invars if isinstance(v, core.Var)}
    if name == 'conv_general_dilated':
      # The kernel, and batch norm's scale and bias, which are not traced.
      kernel = eqn.invars[1]
      num_params += kernel.aval.size + 2 * eqn.outvars[0].aval.shape[-1]
      kept |= (tensors - {kernel}) | {*eqn.outvars}
    elif name == 'dot_general':
      kept |= tensors | {*eqn.outvars}
    for sub in core.jaxprs_in_params(eqn.params):
      inside = set() if name in _REMAT else kept
      found, block = _count(sub, inside)
      if name in _REMAT:
        kept |= tensors
        # What is kept anyway has names of its own inside.
        block = _num_bytes(inside - {*sub.invars})
      num_params += found
      largest_block = max(largest_block, block)
  return num_params, largest_block


def _num_bytes(tensors: Collection[core.Var]) -> int:
  return sum(v.aval.size * v.aval.dtype.itemsize for v in tensors)


def device_bytes(known_gib: float) -> int:
  """Returns the memory of a device in bytes; 0 where it is unknown.

  Args:
    known_gib: What is known of it, in GiB; 0: what the devices say. GPUs and
      TPUs do, CPUs do not.
  """
  if known_gib:
    return int(known_gib * 2**30)
  # None on CPUs.
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  return min(found.get('bytes_limit', 0) for found in stats)
