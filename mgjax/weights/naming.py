"""What other frameworks call the variables of our networks.

`names(format, variables, model)` gives every name that a framework's file of
this very network has (formats.py says what a format is). Being made from our
tree, the names serve both directions, and a name that is not among them is one
that the network has no use for.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from mgjax.weights import convolutional_formats, transformer_formats
from mgjax.weights.formats import Format

Path = tuple[str, ...]

FORMATS: dict[str, Format] = {
  **convolutional_formats.FORMATS,
  **transformer_formats.FORMATS,
}

_FIELDS = {
  'p': 'slow_|fast_|',
  's': r'\d',
  'i': r'\d+',
  'c': '[abc]',
  'n': 'theta|phi|g|out',
  'k': r'\d',
  'r': 'big|little',
  'q': '[qkv]',
  'x': 'spatial|temporal',
}


class Part(NamedTuple):
  """What a tensor of theirs has of a variable of ours: all of it, or a part.

  Attributes:
    path: Of the variable, the collection first.
    row: Index into the first axis, which the part lacks; None: all of it.
    columns: First and last + 1 index into the last axis; None: all of it.
  """

  path: Path
  row: int | None = None
  columns: tuple[int, int] | None = None

  @property
  def selection(self) -> tuple:
    """The part, as NumPy indexes the variable."""
    rows = () if self.row is None else (self.row,)
    return rows if self.columns is None else (*rows, ..., slice(*self.columns))


class _Rule(NamedTuple):
  """A rule of a format for one path.

  Attributes:
    pattern: Of our path.
    names: Of equal parts of our last axis; one: of all of it.
    place: Among the variables that the tensor is joined of.
    count: How many it is joined of.
  """

  pattern: re.Pattern
  names: tuple[str, ...]
  place: int
  count: int


def names(
  format_name: str,
  variables: dict,
  model: str,
  *,
  may_lack: Callable[[Path], bool] = lambda path: False,
) -> dict[str, tuple[Part, ...]]:
  """All names of a network's parameters and statistics in a format.

  Args:
    format_name: One of FORMATS.
    variables: The network's 'params' and 'batch_stats', or their shapes.
    model: config.model.name.
    may_lack: Whether a variable may be one that the format has no name for;
      then it is not in the result.

  Returns:
    By their name, in our tree's order, what the tensor has of ours: parts that
    are joined along its first axis, our last one. Empty where the framework
    has no such network.

  Raises:
    ValueError: Two variables have one name: a mistake in the rules.
  """
  form = FORMATS[format_name]
  if form.models and model not in form.models:
    return {}
  leaves = {
    tuple(key.key for key in keys): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }
  last: dict[str, int] = {}
  for path in leaves:
    for stage, block in zip(path, path[1:], strict=False):
      if match := re.fullmatch(r'block(\d+)', block):
        last[stage] = max(last.get(stage, 0), int(match[1]))
  rules = list(_each(form.rules))
  found: dict[str, list[Part | None]] = {}
  for path, leaf in leaves.items():
    rule, fields, ending = _rule_of(rules, path, form)
    if rule is None and may_lack(path):
      continue
    if rule is None:
      return {}
    for part, row_fields, theirs in _parts(path, leaf.shape, rule):
      values = form.fields(fields | row_fields, model, last)
      name = theirs.format(**values) + ending
      parts = found.setdefault(name, [None] * rule.count)
      if parts[rule.place] is not None:
        raise ValueError(f'{path} and {parts} are both called {name}.')
      parts[rule.place] = part
  if any(None in parts for parts in found.values()):
    return {}  # A tensor of which the network has some variables only.
  return {name: tuple(parts) for name, parts in found.items()}


def _rule_of(
  rules: list[_Rule], path: Path, form: Format
) -> tuple[_Rule | None, dict, str]:
  """The rule for a variable, the fields of its path, and the name's ending."""
  module, whole = '/'.join(path[1:-1]), '/'.join(path[1:])
  for rule in rules:
    if match := rule.pattern.fullmatch(module):
      return rule, match.groupdict(), form.leaves[path[-1]]
    if match := rule.pattern.fullmatch(whole):
      return rule, match.groupdict(), ''
  return None, {}, ''


def _parts(
  path: Path, shape: tuple[int, ...], rule: _Rule
) -> Iterator[tuple[Part, dict, str]]:
  """Yields parts of a variable with fields of their names, and the names."""
  if path[-2:] == ('temporal', 'kernel'):
    for row in range(shape[0]):
      yield Part(path, row), {'t': (row, shape[0])}, rule.names[0]
  elif len(rule.names) == 1:
    yield Part(path), {}, rule.names[0]
  else:
    width = shape[-1] // len(rule.names)
    for i, name in enumerate(rule.names):
      yield Part(path, columns=(i * width, (i + 1) * width)), {}, name


def _each(rules) -> Iterator[_Rule]:
  """Yields rules; one of a layer becomes those of its two parts."""
  for ours, theirs in rules:
    paths = (ours,) if isinstance(ours, str) else ours
    names = (theirs,) if isinstance(theirs, str) else theirs
    if '[' not in names[0]:
      for place, path in enumerate(paths):
        yield _Rule(_pattern(path), names, place, len(paths))
      continue
    for choice, part in enumerate(('conv', 'norm'), 1):
      name = re.sub(r'\[(.*?)\|(.*?)\]', rf'\{choice}', names[0])
      yield _Rule(_pattern(f'{ours}/{part}'), (name,), 0, 1)


def _pattern(ours: str) -> re.Pattern:
  """The left side of a rule as a regular expression."""
  return re.compile(
    re.sub(r'\{(\w)\}', lambda f: f'(?P<{f[1]}>{_FIELDS[f[1]]})', ours)
  )
