"""Groups of parameters: what is trained, what decays, how fast a layer learns.

A parameter's *path* is the names on the way to it, such as ('block3', 'mlp',
'fc1', 'kernel'). Trees of parameters are nested dicts; a part of a tree lacks
what is not in it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax

from mgjax.models.dropout import Dropout

Path = tuple[str, ...]
# A tree of booleans, or None for a tree that is True everywhere.
Marks = Any


def by_path(function: Callable[[Path, Any], Any], params: Mapping) -> dict:
  """Maps path and array of every parameter; returns a tree like `params`."""
  return flax.traverse_util.path_aware_map(function, params)


def trained(params: Mapping, which: str, head: Sequence[str]) -> Marks:
  """Marks the parameters that a training changes.

  Args:
    params: All of them.
    which: 'all'; 'head', those of the modules in `head`; or a regular
      expression that is found in the path of each, which is written as
      'block3/mlp/fc1/kernel'.
    head: Names of modules.

  Returns:
    A tree of booleans; None for 'all'.

  Raises:
    ValueError: There are none.
  """
  if which == 'all':
    return None
  if which == 'head':
    marks = by_path(lambda path, _: path[0] in head, params)
  else:
    pattern = re.compile(which)
    marks = by_path(
      lambda path, _: pattern.search('/'.join(path)) is not None, params
    )
  if not any(jax.tree.leaves(marks)):
    first = '/'.join(next(iter(flax.traverse_util.flatten_dict(params))))
    raise ValueError(
      f'train is {which!r}, which no parameter has in its path; a path is '
      f'such as {first}.'
    )
  return marks


def part(tree: Mapping, marks: Marks, *, marked: bool = True) -> Any:
  """The part of a tree that is marked, or that is not.

  Args:
    tree: Of parameters, or of a number for each.
    marks: Of the same tree; None: all are marked.
    marked: Which part.
  """
  if marks is None:
    return tree if marked else {}
  flat = flax.traverse_util.flatten_dict(tree)
  flat_marks = flax.traverse_util.flatten_dict(marks)
  return flax.traverse_util.unflatten_dict(
    {path: x for path, x in flat.items() if flat_marks[path] == marked}
  )


def joined(one: Mapping, other: Mapping) -> Any:
  """The tree of which two trees are the parts."""
  if not other:
    return one
  return flax.traverse_util.unflatten_dict(
    flax.traverse_util.flatten_dict(one)
    | flax.traverse_util.flatten_dict(other)
  )


def decayed(params: Mapping, which: str, additions: Sequence[str] = ()) -> dict:
  """Marks the parameters that weight decay acts on.

  Args:
    params: All parameters.
    which: 'all'; 'not_norms': all but scale and bias of a norm, which is
      recognized by its scale: no other layer has one; 'kernels': all with two
      axes or more but biases and `additions`.
    additions: Names of parameters that are added to features, such as a table
      of positions or the token of a class.

  Returns:
    The same tree of booleans.

  Source: 'kernels': MCG-NJU/VideoMAE 14ef8d8, optim_factory.py.
  """
  if which == 'all':
    return jax.tree.map(lambda _: True, params)
  if which == 'kernels':
    spared = {'bias', *additions}
    return by_path(
      lambda path, p: p.ndim > 1 and path[-1] not in spared, params
    )

  def mark(tree: Mapping) -> dict:
    is_norm = 'scale' in tree
    return {
      name: mark(leaf) if isinstance(leaf, Mapping) else not is_norm
      for name, leaf in tree.items()
    }

  return mark(params)


def layers(
  params: Mapping, layer_of: Callable[[Path], int | None]
) -> tuple[dict, int]:
  """Numbers the layers of all parameters, from the pixels to the classifier.

  Args:
    params: All parameters.
    layer_of: Number of the layer of a path; None: the last one, behind all
      that have a number.

  Returns:
    A tree of numbers, and the last of them.

  Raises:
    ValueError: No path has a number, or the network does not know.
  """
  found = {
    path: layer_of(path) for path in flax.traverse_util.flatten_dict(params)
  }
  numbers = [number for number in found.values() if number is not None]
  if not numbers:
    raise ValueError(
      'layer_decay does nothing for a network of one layer; leave it at 1.'
    )
  last = max(numbers) + 1
  ids = {k: last if v is None else v for k, v in found.items()}
  return flax.traverse_util.unflatten_dict(ids), last


def layer_scales(
  params: Mapping, layer_of: Callable[[Path], int | None], decay: float
) -> dict:
  """What layer-wise decay multiplies the learning rate of parameters by.

  Args:
    params: All parameters.
    layer_of: See `layers`.
    decay: Factor from a layer to the one before it, in (0, 1].

  Returns:
    A tree of decay ** (last layer - layer).

  Source: MCG-NJU/VideoMAE 14ef8d8, optim_factory.py; Bao et al. 2022
    (arXiv:2106.08254).
  """
  ids, last = layers(params, layer_of)
  return jax.tree.map(lambda number: decay ** (last - number), ids)


def silent_dropout(params: Mapping, marks: Marks) -> Any:
  """Turns dropout and drop path off in modules of which nothing is trained.

  A context, in which a network is called; the masks of the others stay those
  that they would be.

  Args:
    params: All parameters.
    marks: Of those that are trained.
  """
  flat = {
    path
    for path, mark in flax.traverse_util.flatten_dict(marks).items()
    if mark
  }
  known = set(flax.traverse_util.flatten_dict(params))

  def has_under(paths: set[Path], module: Path) -> bool:
    return any(path[: len(module)] == module for path in paths)

  def intercept(call, args, kwargs, context):
    owner = tuple(context.module.path)[:-1]
    if (
      isinstance(context.module, Dropout)
      and context.method_name == '__call__'
      and has_under(known, owner)
      and not has_under(flat, owner)
    ):
      kwargs = {**kwargs, 'deterministic': True}
    return call(*args, **kwargs)

  return nn.intercept_methods(intercept)
