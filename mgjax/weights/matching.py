"""Finds a place for every tensor of a file, and a tensor for every place."""

import collections
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from mgjax import models
from mgjax.errors import ConfigError
from mgjax.weights import inference, naming, transformer_inference
from mgjax.weights.naming import Part, Path
from mgjax.weights.tensors import Tensor

# What weights do not need, and why.
_NOT_NEEDED = (
  (r'.*\.num_batches_tracked', 'counts batches; not used with a momentum'),
  (r'.*_momentum|lr|model_iter', "the optimizer's"),
)
# What can start anew on request (--new_KIND), by the names of its modules. What
# is between encoder and classifier (transformer_inference.BEHIND) starts anew
# with the head, where a file has nothing of it.
NEW = {
  'head': models.HEAD,
  'temporal': r'temporal|\w_t',  # Aggregations, and S3D's temporal layers.
  'nonlocal': r'nonlocal\d+',
}


# What is said of weights whose names do not tell whose they are.
NO_LICENCE = 'not known; see where the file is from'


class Imported(NamedTuple):
  """What a file gave.

  Attributes:
    format: A key of naming.FORMATS.
    arrays: Arrays in our axis order, of the file's dtype.
    new: Paths of what starts anew.
    report: (their name, our path, shapes, what was done or why not) of
      everything in the file and the network.
    problems: The part of the report that forbids to use the arrays.
    kinds: Of each problem, the key of NEW by which it would be none, or None.
    checked: What a run of the network has shown.
    notes: What else the user should know, in lines.
    licence: Of the weights; '': it is not known.
  """

  format: str
  arrays: dict[Part, np.ndarray]
  new: list[Path]
  report: list[tuple[str, str, str, str]]
  problems: list[tuple[str, str, str, str]]
  kinds: list[str | None]
  checked: str = ''
  notes: tuple[str, ...] = ()
  licence: str = ''


def to_ours(array: np.ndarray) -> np.ndarray:
  """Kernels [D, C, ...] become [..., C, D]; vectors stay."""
  n = array.ndim
  return array.transpose(*range(2, n), 1, 0) if n >= 2 else array


def to_theirs(array: np.ndarray) -> np.ndarray:
  """The inverse of `to_ours`."""
  n = array.ndim
  return array.transpose(n - 1, n - 2, *range(n - 2)) if n >= 2 else array


def _theirs(part: Part, variable: np.ndarray) -> np.ndarray:
  """A part of a variable in their axis order: tables have the same in both."""
  array = variable[part.selection]
  return to_theirs(array) if part.path[-1] == 'kernel' else array


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
  form, table, state = _format_of(state, variables, model)
  shapes = {
    path: leaf.shape
    for path, leaf in traverse_util.flatten_dict(variables).items()
  }
  in_file = {
    part.path[1] for name in table.keys() & state.keys() for part in table[name]
  }
  kind = lambda path: (
    kind_of(path)
    or ('head' if path[1] in transformer_inference.BEHIND - in_file else None)
  )
  result = Imported(form, {}, [], [], [], [])

  for name, parts in table.items():
    their_name, tensor = state.get(name, (name, None))
    array, words = None, 'missing in the file'
    wanted = their_shape(parts, shapes, naming.FORMATS[form].leading.get(name))
    if (what := kind(parts[0].path)) in new:
      words = f'left out: --new_{what}'
      result.new.extend(part.path for part in parts)
    elif tensor is not None:
      array, words = _converted(tensor, parts[0].path, wanted, inflate)
    if array is not None:
      pieces = _split(array, parts, shapes)
      result.arrays.update(zip(parts, pieces, strict=True))
    ours = [
      np.broadcast_to(0, shapes[p.path])[p.selection].shape for p in parts
    ]
    theirs = None if tensor is None else tensor.shape
    _note(
      result,
      (their_name, ' + '.join(map(_text, parts)), words),
      (theirs, ' + '.join(map(str, ours))),
      problem=array is None and what not in new,
      kind=what,
    )
  _note_rest(result, state, table, shapes, kind, model, new)
  return result


def _note_rest(
  result: Imported,
  state: Mapping[str, tuple[str, Tensor]],
  table: Mapping[str, tuple[Part, ...]],
  shapes: Mapping[Path, tuple[int, ...]],
  kind: Callable[[Path], str | None],
  model: str,
  new: tuple[str, ...],
) -> None:
  """Adds to a report what has no name, and the tensors that have no place."""
  form = result.format
  named = {part.path for parts in table.values() for part in parts}
  for path in sorted(shapes.keys() - named):
    what, words = kind(path), f'{form} has no name for it'
    if what in new:
      words = f'left out: --new_{what}'
      result.new.append(path)
    _note(
      result,
      ('-', '/'.join(path), words),
      (None, shapes[path]),
      problem=what not in new,
      kind=what,
    )
  for name in sorted(state.keys() - table.keys()):
    their_name, tensor = state[name]
    why = _why_left_out(name, form, model, new)
    words = f'left out: {why}' if why else 'the model has no place'
    row = their_name, '', words
    what = transformer_inference.is_behind(name, form, model)
    _note(
      result,
      row,
      (tensor.shape, None),
      problem=not why,
      kind='head' if what else None,
    )


def _note(
  result: Imported,
  row: tuple[str, str, str],
  shapes: tuple,
  *,
  problem: bool,
  kind: str | None = None,
) -> None:
  """Adds to a report: (their name, our path, words), and both shapes."""
  theirs, ours = shapes
  name, path, words = row
  line = name, path, f'{theirs or "-"} -> {ours or "-"}', words
  result.report.append(line)
  if problem:
    result.problems.append(line)
    result.kinds.append(kind)


def their_shape(
  parts: tuple[Part, ...],
  shapes: Mapping[Path, tuple[int, ...]],
  leading: int | None = None,
) -> tuple[int, ...]:
  """The shape of a tensor that is joined of parts of our variables.

  Args:
    parts: Of the tensor, in its order.
    shapes: Of our variables.
    leading: Axes of length 1 in front.
  """
  found = [
    _theirs(part, np.broadcast_to(0, shapes[part.path])).shape for part in parts
  ]
  shape = found[0]
  if len(found) > 1:
    shape = (sum(part[0] for part in found), *shape[1:])
  return (1,) * (leading or 0) + shape


def joined(
  parts: tuple[Part, ...],
  variables: Mapping[Path, np.ndarray],
  leading: int | None = None,
) -> np.ndarray:
  """The tensor of parts of our variables; see `their_shape`."""
  found = [_theirs(part, variables[part.path]) for part in parts]
  array = found[0] if len(found) == 1 else np.concatenate(found)
  return array.reshape((1,) * (leading or 0) + array.shape)


def _split(
  array: np.ndarray,
  parts: tuple[Part, ...],
  shapes: Mapping[Path, tuple[int, ...]],
) -> list[np.ndarray]:
  """The parts of our variables that a tensor of `their_shape` is joined of."""
  found = [their_shape((part,), shapes) for part in parts]
  # Axes of length 1 in front are dropped.
  array = array.reshape(-1, *found[0][1:])
  ends = np.cumsum([shape[0] for shape in found])
  return [
    to_ours(piece) if part.path[-1] == 'kernel' else piece
    for part, piece in zip(parts, np.split(array, ends[:-1]), strict=True)
  ]


def _text(part: Part) -> str:
  """How the report calls a part."""
  name = '/'.join(part.path)
  if part.row is not None:
    return f'{name}/{part.row}'
  if part.columns:
    return f'{name}[{part.columns[0]}:{part.columns[1]}]'
  return name


def _why_left_out(
  name: str, form: str, model: str, new: tuple[str, ...]
) -> str:
  """Why a network does not need a tensor; '': it is not known."""
  for pattern, why in (*_NOT_NEEDED, *naming.FORMATS[form].left_out):
    if re.fullmatch(pattern, name):
      return why
  if 'head' in new and transformer_inference.is_behind(name, form, model):
    return '--new_head'
  return ''


def _format_of(
  state: Mapping[str, Tensor], variables: dict, model: str
) -> tuple[str, dict[str, tuple[Part, ...]], dict[str, tuple[str, Tensor]]]:
  """The format whose names a file has the most of.

  Returns:
    The format; its names; the file's own names with the tensors, by these.

  Raises:
    ConfigError: The names are those of no known format, or two are one.
  """
  tables = {
    form: naming.names(form, variables, model, may_lack=_may_lack)
    for form in naming.FORMATS
  }
  states = {form: _by_name(state, form) for form in naming.FORMATS}
  form = max(tables, key=lambda f: len(tables[f].keys() & states[f].keys()))
  if tables[form].keys() & states[form].keys():
    for name, found in states[form].items():
      if len(found) > 1:
        raise ConfigError(
          f'{" and ".join(n for n, _ in found)} are both {name} of {form}'
        )
    state = {name: found[0] for name, found in states[form].items()}
    return form, tables[form], state
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


def _may_lack(path: Path) -> bool:
  return kind_of(path) is not None or path[1] in transformer_inference.BEHIND


def _by_name(
  state: Mapping[str, Tensor], form: str
) -> dict[str, list[tuple[str, Tensor]]]:
  """A file's names and tensors by what a format calls them."""
  found = collections.defaultdict(list)
  rules = naming.FORMATS[form]
  for name, tensor in state.items():
    canonical = rules.canonical(name)
    found[canonical].append((name, rules.as_torch(canonical, tensor)))
  return found


def _converted(
  tensor: Tensor, path: Path, wanted: tuple[int, ...], inflate: str
) -> tuple[np.ndarray | None, str]:
  """A tensor in a wanted shape (None: it cannot be), and the how."""
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
      if any(re.fullmatch(modules, key) for key in path)
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


def nest(arrays: Mapping[Part, np.ndarray]) -> dict:
  """Nested dicts of whole variables, from their parts."""
  parts: dict[Path, list[Part]] = collections.defaultdict(list)
  for part in arrays:
    parts[part.path].append(part)
  return traverse_util.unflatten_dict(
    {path: _whole(found, arrays) for path, found in parts.items()}
  )


def _whole(parts: list[Part], arrays: Mapping[Part, np.ndarray]) -> np.ndarray:
  if parts[0].row is not None:
    return np.stack([arrays[p] for p in sorted(parts, key=lambda p: p.row)])
  if parts[0].columns:
    order = sorted(parts, key=lambda p: p.columns)
    return np.concatenate([arrays[p] for p in order], -1)
  return arrays[parts[0]]
