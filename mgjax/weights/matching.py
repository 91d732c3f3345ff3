"""Finds a place for every tensor of a file, and a tensor for every place."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from mgjax import models
from mgjax.errors import ConfigError
from mgjax.weights import inference, naming
from mgjax.weights.naming import Path
from mgjax.weights.tensors import Tensor

# What weights do not need, and why.
_NOT_NEEDED = (
  (r'.*\.num_batches_tracked', 'counts batches; not used with a momentum'),
  (r'.*_momentum|lr|model_iter', "the optimizer's"),
)
# What can start anew on request (--new_KIND), by the names of its modules.
NEW = {
  'head': models.HEAD,
  'temporal': r'temporal|\w_t',  # Aggregations, and S3D's temporal layers.
  'nonlocal': r'nonlocal\d+',
}


class Imported(NamedTuple):
  """What a file gave.

  Attributes:
    format: A key of naming.FORMATS.
    arrays: Arrays in our axis order, of the file's dtype, by path.
    report: (their name, our path, shapes, what was done or why not) of
      everything in the file and the network.
    problems: The part of the report that forbids to use the arrays.
    checked: What a run of the network has shown.
    notes: What else the user should know, in lines.
  """

  format: str
  arrays: dict[Path, np.ndarray]
  report: list[tuple[str, str, str, str]]
  problems: list[tuple[str, str, str, str]]
  checked: str = ''
  notes: tuple[str, ...] = ()


def to_ours(array: np.ndarray) -> np.ndarray:
  """Kernels [D, C, ...] become [..., C, D]; vectors stay."""
  n = array.ndim
  return array.transpose(*range(2, n), 1, 0) if n >= 2 else array


def to_theirs(array: np.ndarray) -> np.ndarray:
  """The inverse of `to_ours`."""
  n = array.ndim
  return array.transpose(n - 1, n - 2, *range(n - 2)) if n >= 2 else array


def match_state(
  state: Mapping[str, Tensor],
  variables: dict,
  model: str,
  *,
  inflate: str,
  new: tuple[str, ...],
  shift_place: str = 'blockres',
) -> Imported:
  """Finds a place for every tensor, and a tensor for every place.

  Args:
    state: Tensors by name.
    variables: 'params' and 'batch_stats' of the network, or their shapes.
    model: config.model.name.
    inflate: How a 2-D kernel becomes a 3-D one of kt frames: 'repeat' (each
      frame has 1 / kt of it) or 'center' (the middle frame has all).
    new: Keys of NEW: what is left out, on both sides.
    shift_place: config.model.shift_place, of TSM.

  Raises:
    ConfigError: The names are those of no known format.

  Source: Carreira and Zisserman 2017 (arXiv:1705.07750), section 2.4.1
    (inflation by repetition).
  """
  if model == 'tsm':
    shifted = inference.SHIFTED[shift_place]
    state = {re.sub(shifted, r'\1.', name): v for name, v in state.items()}
  form, table = _format_of(state, variables, model)
  shapes = {
    path: leaf.shape
    for path, leaf in traverse_util.flatten_dict(variables).items()
  }
  result = Imported(form, {}, [], [])

  def note(name, path, theirs, ours, words, *, problem):
    paths = '/'.join(map(str, path))
    row = name, paths, f'{theirs or "-"} -> {ours or "-"}', words
    result.report.append(row)
    if problem:
      result.problems.append(row)

  for name, path in table.items():
    # A row of a kernel is a tensor of its own.
    ours = shapes[path] if path in shapes else shapes[path[:-1]][1:]
    tensor = state.get(name)
    theirs = None if tensor is None else tensor.shape
    array, words = None, 'missing in the file'
    if (kind := kind_of(path)) in new:
      words = f'left out: --new_{kind}'
    elif tensor is not None:
      array, words = _converted(tensor, path, ours, inflate)
    if array is not None:
      result.arrays[path] = to_ours(array)
    problem = array is None and kind not in new
    note(name, path, theirs, ours, words, problem=problem)
  named = {p[:-1] if isinstance(p[-1], int) else p for p in table.values()}
  for path in sorted(shapes.keys() - named):
    is_new = (kind := kind_of(path)) in new
    words = (
      f'left out: --new_{kind}' if is_new else f'{form} has no name for it'
    )
    note('-', path, None, shapes[path], words, problem=not is_new)
  for name in sorted(state.keys() - table.keys()):
    reasons = [why for names, why in _NOT_NEEDED if re.fullmatch(names, name)]
    words = f'left out: {reasons[0]}' if reasons else 'the model has no place'
    note(name, (), state[name].shape, None, words, problem=not reasons)
  return result


def _format_of(
  state: Mapping[str, Tensor], variables: dict, model: str
) -> tuple[str, dict[str, Path]]:
  """The format whose names a file has the most of, with its names.

  Raises:
    ConfigError: The names are those of no known format.
  """
  tables = {
    form: naming.names(
      form, variables, model, may_lack=lambda path: kind_of(path) is not None
    )
    for form in naming.FORMATS
  }
  form = max(tables, key=lambda f: len(tables[f].keys() & state.keys()))
  if tables[form].keys() & state.keys():
    return form, tables[form]
  known = [f for f, table in tables.items() if table]
  text = (
    f'names like {list(state)[:3]} are of none of the formats known for '
    f'model {model!r}: {", ".join(known)}'
  )
  if any(name.startswith('backbone.') for name in state):
    text += (
      f'. The {model!r} of mmaction2, whose names these may be, is another '
      'network than this one'
    )
  raise ConfigError(text)


def _converted(
  tensor: Tensor, path: Path, ours: tuple[int, ...], inflate: str
) -> tuple[np.ndarray | None, str]:
  """A tensor for our variable of a shape (None: it cannot be), and the how."""
  wanted = to_theirs(np.broadcast_to(0, ours)).shape
  array, words = _fit(tensor, wanted, inflate)
  # XLA's ReLU may hide a NaN, so that logits would not show it.
  if array is not None and not np.isfinite(array.astype(np.float32)).all():
    return None, 'it holds NaN or infinite numbers'
  if array is not None and path[-1] == 'var' and (array < 0).any():
    return None, 'it holds variances, and some are negative'
  return array, words


def kind_of(path: Path) -> str | None:
  """The key of NEW that a variable belongs to, or None."""
  return next(
    (
      kind
      for kind, modules in NEW.items()
      if any(re.fullmatch(modules, str(key)) for key in path)
    ),
    None,
  )


def _fit(
  tensor: Tensor, shape: tuple[int, ...], inflate: str
) -> tuple[np.ndarray | None, str]:
  """A tensor in a wanted shape (None: it cannot be), and what was done."""
  if tensor.shape == shape:
    return tensor.numpy(), 'as it is'
  n = len(tensor.shape)
  if tensor.shape[: len(shape)] == shape and set(
    tensor.shape[len(shape) :]
  ) == {1}:
    return tensor.numpy().reshape(shape), 'axes of 1 dropped'
  if tensor.shape == shape[:n] and set(shape[n:]) == {1}:
    return tensor.numpy().reshape(shape), 'axes of 1 added'
  if len(shape) == 5 and tensor.shape == (*shape[:2], *shape[3:]):
    kernel, frames = tensor.numpy()[:, :, None], shape[2]
    if frames == 1:
      return kernel, 'as it is, for one frame'
    if inflate == 'repeat':
      return np.repeat(kernel / frames, frames, 2), f'repeated / {frames}'
    inflated = np.zeros(shape, kernel.dtype)
    inflated[:, :, [frames // 2]] = kernel
    return inflated, f'in the middle of {frames}'
  return None, f'its shape is not {shape}'


def nest(arrays: Mapping[Path, np.ndarray]) -> dict:
  """Nested dicts from paths; rows of a kernel are put together."""
  rows: dict[Path, list] = {}
  for path in sorted(p for p in arrays if isinstance(p[-1], int)):
    rows.setdefault(path[:-1], []).append(arrays[path])
  whole = {p: a for p, a in arrays.items() if not isinstance(p[-1], int)}
  whole |= {path: np.stack(values) for path, values in rows.items()}
  return traverse_util.unflatten_dict(whole)
