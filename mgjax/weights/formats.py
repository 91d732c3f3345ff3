"""What a format is: the names that one framework's files have.

A format is a table of rules from our module paths to its module names.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mgjax.weights.tensors import Tensor

TORCH_LEAVES = {
  'kernel': '.weight',
  'scale': '.weight',
  'bias': '.bias',
  'mean': '.running_mean',
  'var': '.running_var',
}


def _as_they_are(fields: dict, model: str, last: dict) -> dict:
  return fields


def _same_axes(name: str, tensor: Tensor) -> Tensor:
  return tensor


def _nothing(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  return {}


class Format(NamedTuple):
  """Names of one framework.

  Attributes:
    rules: (our module path, their module name), or (our layer, their names of
      its convolution and norm); the first that fits counts. The path of a
      variable has a name that is taken as it stands. Several names stand for
      equal parts of our last axis, each a tensor there; several paths for
      variables of ours that are one tensor there, joined in this order.
    leaves: Ending of their name by the name of our variable.
    fields: Turns the fields of a path into those of a name; called with the
      path's fields, the model's name and the last block of each stage.
    models: Models whose file this format can be; empty: all that rules fit.
    aliases: (pattern, replacement): other names that files have, and what they
      become; all are tried, in this order.
    leading: Axes of length 1 in front of a tensor's others, by its name.
    of_frames: Names of kernels that lack our axis of frames, one long.
    left_out: (pattern of a name, why): what weights of a classifier do not
      need.
    only: Options of config.model that every network of the framework has; a
      network with others is refused.
    constants: Options that the framework's program has as constants, or as
      defaults where no configuration lies beside a file. They are taken.
    as_torch: Gives a tensor, by its name, the axes that torch has.
    shown: Options of config.model that the shapes of a file show, by name, and
      that those of our variables do not.
    licence: Of published weights of the framework; '': none is known.
  """

  rules: tuple[
    tuple[str | tuple[str, ...], str | tuple[str, ...]],
    ...,
  ]
  leaves: Mapping[str, str] = TORCH_LEAVES
  fields: Callable[[dict, str, dict], dict] = _as_they_are
  models: tuple[str, ...] = ()
  aliases: tuple[tuple[str, str], ...] = ()
  leading: Mapping[str, int] = {}
  of_frames: tuple[str, ...] = ()
  left_out: tuple[tuple[str, str], ...] = ()
  only: Mapping[str, Any] = {}
  constants: Mapping[str, Any] = {}
  as_torch: Callable[[str, Tensor], Tensor] = _same_axes
  shown: Callable[[Mapping[str, tuple[int, ...]]], dict[str, Any]] = _nothing
  licence: str = ''

  def canonical(self, name: str) -> str:
    """The name that a file's name is another one of."""
    for pattern, replacement in self.aliases:
      name = re.sub(pattern, replacement, name)
    return name
