"""Multiply-adds of a model's forward pass, counted without running it."""

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from mgjax.errors import ConfigError
from mgjax.grids import Grid, Phase
from mgjax.models import conv, norm, resnet3d, temporal


def gmacs_per_clip(
  model: nn.Module, grids: Collection[Grid], phases: Sequence[Phase] = ()
) -> dict[Grid, float]:
  """Returns 1e9 multiply-adds of one clip's forward pass for each grid.

  Args:
    model: A model of `mgjax.models`.
    grids: Any.
    phases: Where the grids come from, for the message of an error.

  Raises:
    ConfigError: The model's options do not fit each other, or a grid is too
      small for it. The message names the first phase that has the grid.
  """
  found = {}
  for size in sorted({grid[:3] for grid in grids}):
    t, h, w = size
    try:
      found[size] = forward_macs(model, T=t, H=h, W=w) / 1e9
    # Options that do not fit each other, or a grid too small for the model.
    except (ValueError, ZeroDivisionError) as error:
      where = _find_phase(size, phases) or f'grid {t}x{h}x{w}'
      raise ConfigError(f'{where}: model: {error}') from error
  return {grid: found[grid[:3]] for grid in grids}


def _find_phase(size: tuple[int, ...], phases: Sequence[Phase]) -> str:
  """Names the first phase that has a grid of T x H x W; '' if none has."""
  for i, phase in enumerate(phases, start=1):
    for grid in phase.cycle:
      if grid[:3] == size:
        name = phase.name or f'phase {i} of {len(phases)}'
        return f'{name} (grid {grid})'
  return ''


class ForwardCost(NamedTuple):
  """Of one clip's forward pass."""

  macs: int  # Multiply-adds.
  # Numbers that convolutions and temporal aggregations write: what a training
  # step keeps for its backward pass is in proportion, whatever the type.
  conv_outputs: int


def forward_macs(model: nn.Module, *, T: int, H: int, W: int) -> int:
  """Returns the multiply-adds of `forward_cost`."""
  return forward_cost(model, T=T, H=H, W=W).macs


def forward_cost(model: nn.Module, *, T: int, H: int, W: int) -> ForwardCost:
  """Counts the multiply-adds and activations of one clip's forward pass.

  Convolutions, matrix products and temporal aggregations (as the temporal
  convolutions that they are) count; elementwise work (batch norm, activations,
  pooling, temporal shifts) does not, and neither does any bias. Positions that
  only see padding count like all others, as usual.

  Args:
    model: A model of `mgjax.models`.
    T: Frames of the clip.
    H: Its height in pixels.
    W: Its width in pixels.

  Returns:
    The cost; its multiply-adds are the "FLOPs" of most papers on video models.
  """
  jaxpr = forward_jaxpr(model, T=T, H=H, W=W)
  equations = list(_equations(jaxpr.jaxpr))
  return ForwardCost(
    macs=sum(_macs(item) for item in equations),
    conv_outputs=sum(
      times * math.prod(eqn.outvars[0].aval.shape)
      for times, eqn in equations
      if eqn.primitive.name == 'conv_general_dilated'
    ),
  )


@functools.lru_cache(maxsize=64)
def forward_jaxpr(
  model: nn.Module, *, T: int, H: int, W: int
) -> core.ClosedJaxpr:
  """Traces one clip's forward pass: what counts of it, in native operations.

  Its arguments are a key and the clip, float32 [1, T, H, W, 3].
  """
  clip = jax.ShapeDtypeStruct((1, T, H, W, 3), jnp.float32)
  key = jax.ShapeDtypeStruct((2,), jnp.uint32)
  with nn.intercept_methods(_shortcut):
    return jax.make_jaxpr(model.init)(key, clip)


def _shortcut(next_fun, args, kwargs, context):
  """Traces the layers that are most of a network by what they count.

  A convolution becomes one native operation, as it is on an accelerator: the
  formulations for CPUs skip some padding. So does a temporal aggregation,
  which may be elementwise but counts as a convolution. Batch norm and ReLU are
  left out, and no parameters are initialised. With this, tracing SlowFast-50
  takes a small part of the time, so that a plan of a dozen grids takes seconds.
  """
  module = context.module
  if context.method_name == '__call__':
    if isinstance(module, norm.BatchNorm):
      return args[0]
    if isinstance(module, (conv.Conv, resnet3d.Layer)):
      return _convolution(
        args[0],
        module.kernel_size,
        module.features,
        module.strides,
        depthwise=module.depthwise,
      )
    if isinstance(module, conv.DepthwiseConv):
      return _convolution(
        args[0],
        module.kernel_size,
        args[0].shape[-1],
        module.strides,
        depthwise=True,
      )
    if isinstance(module, temporal.TemporalAggregation):
      (x,) = args
      return _convolution(
        x,
        (module.num_frames, 1, 1),
        x.shape[-1],
        depthwise=module.depthwise,
      )
  return next_fun(*args, **kwargs)


def _convolution(x, kernel_size, features, strides=(1, 1, 1), *, depthwise):
  shape = (*kernel_size, 1 if depthwise else x.shape[-1], features)
  return conv.native(x, jnp.zeros(shape, x.dtype), strides)


def _equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, Any]]:
  """Yields (repetitions, equation) of a jaxpr and all that it calls."""
  for eqn in jaxpr.eqns:
    yield times, eqn
    inner = times * eqn.params.get('length', 1)  # A scan has a length.
    for sub in core.jaxprs_in_params(eqn.params):
      yield from _equations(sub, inner)


def _macs(item: tuple[int, Any]) -> int:
  times, eqn = item
  if eqn.primitive.name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    out_features = eqn.params['dimension_numbers'].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[out_features]
  elif eqn.primitive.name == 'dot_general':
    (contracted, _), _ = eqn.params['dimension_numbers']
    per_output = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
  else:
    return 0
  return times * math.prod(eqn.outvars[0].aval.shape) * per_output
