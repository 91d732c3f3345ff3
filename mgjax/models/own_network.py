"""A network of the user's own as the trainer calls it.

What such a class must be is written down in docs/own_code.md.
"""

import inspect
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mgjax.config import own
from mgjax.config.network_options import GIVEN
from mgjax.models.head import ClipIndex, VideoNetwork

# What the trainer calls a network with besides the video.
_ARGUMENTS = ('same_group', 'deterministic', 'clip_index')


class OwnNetwork(VideoNetwork):
  """Calls a module with those of the trainer's arguments that it takes.

  It adds nothing to the module's variables.

  Attributes:
    net: The user's module.
    dtype: Compute type, in which the video arrives.
  """

  net: nn.Module
  dtype: Any = jnp.float32

  def setup(self):
    nn.share_scope(self, self.net)

  def __call__(
    self,
    video: Float[Array, 'B T H W 3'],
    same_group: Float[Array, 'B B'] | None = None,
    *,
    deterministic: bool | None = None,
    clip_index: ClipIndex = None,
  ) -> Array:
    """Returns the module's logits: [B, K], if it is right.

    Args:
      video: Normalised clips.
      same_group: Batch-norm groups in training; None in evaluation.
      deterministic: Whether dropout is off; by default in evaluation.
      clip_index: Their numbers in the batch; None: 0, 1, 2, ...
    """
    if deterministic is None:
      deterministic = same_group is None
    given = (same_group, deterministic, clip_index)
    arguments = dict(zip(_ARGUMENTS, given, strict=True))
    return self.net(
      video.astype(self.dtype),
      **{k: v for k, v in arguments.items() if k in self._takes},
    )

  @property
  def _takes(self) -> Collection[str]:
    """Names of the arguments that the module is called with."""
    takes = inspect.signature(type(self.net).__call__).parameters
    if any(p.kind == p.VAR_KEYWORD for p in takes.values()):
      return _ARGUMENTS
    return takes

  def changed(self, **options: Any) -> 'OwnNetwork':
    inner = {k: v for k, v in options.items() if hasattr(self.net, k)}
    return self.clone(net=self.net.clone(**inner), **options)

  def layer_of(self, path: tuple[str, ...]) -> int | None:
    """The module's `layer_of(path)`, where it has one."""
    tells = getattr(self.net, 'layer_of', super().layer_of)
    return tells(path)

  @property
  def draws_by_clip(self) -> bool:
    return 'clip_index' in self._takes

  @property
  def computes_by_clip(self) -> bool:
    return False  # Nobody knows: it may have a batch norm of its own.

  @property
  def takes_groups(self) -> bool:
    """Whether the module is told which clips are normalised together."""
    return 'same_group' in self._takes


_OF_MOMENTS = (
  'Statistics of single batches are what mgjax.BatchNorm gives; without it, '
  'set norm.precise_batches=0 and train.micro_batches=1.'
)


def build(name: str, options: dict[str, Any]) -> OwnNetwork:
  """Makes a network of the user's own.

  Args:
    name: 'package.module:Name'.
    options: Of config.model, and what the trainer gives every network.

  Raises:
    ValueError: It is no Linen module, or refuses its arguments.
  """
  made = own.load('model.name', name)
  takes = own.parameters(made)
  _check_given(options, takes)
  try:
    net = made(**{k: v for k, v in options.items() if k in takes})
  except Exception as error:  # Of the user's code: of any kind.
    raise ValueError(
      f'{name} refuses its options: {own.describe(error)}'
    ) from error
  if not isinstance(net, nn.Module):
    raise ValueError(
      f'{name} makes a {type(net).__name__}; it must be a flax.linen.Module.'
    )
  common = (*GIVEN, 'dtype')
  return OwnNetwork(
    net=net, **{k: v for k, v in options.items() if k in common}
  )


def _check_given(options: dict[str, Any], takes: Collection[str]) -> None:
  """Refuses settings that would do nothing, as the class takes them not."""
  if 'num_classes' not in takes:
    raise ValueError('it has no argument `num_classes`.')
  if options.get('norm_frozen'):
    raise ValueError(
      "norm.frozen knows the batch norms of mgjax's networks only; leave it "
      "at ''."
    )
  for name, field in (
    ('remat', 'train.remat'),
    ('norm_momentum', 'norm.momentum'),
    ('norm_eps', 'norm.eps'),
  ):
    default = GIVEN[name].default
    if options.get(name, default) != default and name not in takes:
      raise ValueError(
        f'it has no argument `{name}`, so that {field} does nothing; add the '
        'argument, or leave the field at its default.'
      )


def check(
  model: OwnNetwork,
  grids: list[tuple[int, int, int]],
  *,
  num_classes: int,
  trains: bool = True,
  estimates: bool = False,
  averages: bool = False,
  in_parts: bool = False,
  takes_groups: bool = False,
) -> None:
  """Traces what the trainer will ask of a network; nothing is computed.

  Args:
    model: The network.
    grids: Frames, height and width of clips that it is to take; one tree of
      parameters must serve all of them.
    num_classes: K.
    trains: Whether it is trained at these grids; else it is evaluated only.
    estimates: Whether statistics are estimated before an evaluation.
    averages: Whether an average of the parameters is evaluated.
    in_parts: Whether batches are computed in micro-batches.
    takes_groups: Whether batch norm is to be over groups of clips.

  Raises:
    ValueError: Says which step does not get what it needs.
  """
  key = jax.random.key(0)
  trees = {}
  for grid in grids:
    video = jax.ShapeDtypeStruct((2, *grid, 3), jnp.float32)
    variables = _trace(
      'initialisation', grid, model.init, {'params': key, 'dropout': key}, video
    )
    _check_collections(variables)
    trees[grid] = jax.tree.map(lambda x: (x.shape, x.dtype), variables)
    kept = variables.get('batch_stats', {})
    if trains:
      _check_norms(model, kept, estimates, averages, takes_groups)
      _check_step(model, grid, variables, num_classes, 'batch_stats')
    if trains and kept and (estimates or in_parts):
      _check_step(model, grid, variables, num_classes, 'batch_moments')
    logits = _trace('an evaluation', grid, model.apply, variables, video)
    _check_logits('an evaluation', grid, logits, num_classes)
  first, *others = trees
  for grid in others:
    if trees[grid] != trees[first]:
      raise ValueError(
        f'its parameters at {grid} (frames, height, width) are not those at '
        f'{first}; one tree must serve every grid.'
      )


def _check_norms(
  model: OwnNetwork,
  kept: dict,
  estimates: bool,
  averages: bool,
  takes_groups: bool,
) -> None:
  """Refuses settings of batch norm that would do nothing."""
  if estimates and not kept:
    raise ValueError(
      'it has no batch norm, so no statistics can be estimated: set '
      'norm.precise_batches=0.'
    )
  if averages and kept and not estimates:
    raise ValueError(
      'it has batch norms, whose statistics belong to the current weights and '
      'not to their average (optim.ema_decay): set norm.precise_batches, such '
      'as 200.'
    )
  if takes_groups and kept and not model.takes_groups:
    raise ValueError(
      'it has batch norms, but `__call__` takes no `same_group`, so that they '
      'are over the whole batch; set norm.group_clips=0, or use '
      'mgjax.BatchNorm.'
    )


def _check_step(
  model: OwnNetwork,
  grid: tuple[int, int, int],
  variables: dict,
  num_classes: int,
  collection: str,
) -> None:
  """Traces a step in training that gives statistics.

  Args:
    model: The network.
    grid: Frames, height and width of clips.
    variables: Shapes of all variables.
    num_classes: K.
    collection: 'batch_stats': of a training step; 'batch_moments': of one that
      estimates statistics.
  """
  is_training = collection == 'batch_stats'
  step = 'a training step' if is_training else 'a statistics step'
  try:
    logits, new = _trace(
      step,
      grid,
      lambda variables, video, group, index: model.apply(
        variables,
        video,
        group,
        clip_index=index,
        rngs={'dropout': jax.random.key(0)},
        mutable=[collection],
      ),
      variables,
      jax.ShapeDtypeStruct((2, *grid, 3), jnp.float32),
      jax.ShapeDtypeStruct((2, 2), jnp.float32),
      jax.ShapeDtypeStruct((2,), jnp.int32),
    )
  except ValueError as error:
    if is_training:
      raise
    raise ValueError(f'{error}. {_OF_MOMENTS}') from error
  _check_logits(step, grid, logits, num_classes)
  kept = variables.get('batch_stats', {})
  _check_statistics(step, kept, new.get(collection, {}))


def _trace(step: str, grid: tuple[int, int, int], function, *arguments) -> Any:
  try:
    return jax.eval_shape(function, *arguments)
  except Exception as error:  # Of the user's code: of any kind.
    raise ValueError(
      f'{step} on clips of {grid} (frames, height, width) fails: '
      f'{own.describe(error)}'
    ) from error


def _check_collections(variables: dict) -> None:
  if 'params' not in variables:
    raise ValueError('it has no parameters.')
  others = set(variables) - {'params', 'batch_stats'}
  if others:
    raise ValueError(
      f'it has variables in {", ".join(sorted(others))}; a run keeps params '
      'and batch_stats only.'
    )


def _check_logits(
  step: str, grid: tuple[int, int, int], logits: Any, num_classes: int
) -> None:
  shape = getattr(logits, 'shape', None)
  if shape != (2, num_classes) or not jnp.issubdtype(
    logits.dtype, jnp.floating
  ):
    raise ValueError(
      f'{step} on 2 clips of {grid} (frames, height, width) gives '
      f'{shape or type(logits).__name__}; it must give logits of shape '
      f'(2, {num_classes}).'
    )


def _check_statistics(step: str, kept: dict, new: dict) -> None:
  """Refuses a step that does not give what running statistics need."""
  paths = lambda tree: {
    jax.tree_util.keystr(path[:-1], simple=True, separator='/')
    for path, _ in jax.tree.leaves_with_path(tree)
  }
  missing = sorted(paths(kept) - paths(new))
  if missing:
    raise ValueError(
      f'{step} gives no statistics of {missing[0]}. {_OF_MOMENTS}'
    )
