"""Objects of the user's own that a config names: 'package.module:name'."""

import collections
import dataclasses
import importlib
import inspect
import os
import pathlib
import re
import sys
import sysconfig
import traceback
from typing import Any, get_args, get_origin

from mgjax.config.setting import Accepted, as_tuples, declare
from mgjax.errors import FieldError

# Types of the values that a config can hold.
_KINDS = (bool, int, float, str, tuple)
# Folders of code that is not the user's.
_LIBRARIES = tuple(
  os.path.join(folder, '')
  for folder in (
    pathlib.Path(__file__).parents[1],
    *map(sysconfig.get_path, ('stdlib', 'purelib', 'platlib')),
  )
)


def is_own(name: Any) -> bool:
  """Whether a name is of the form 'package.module:name'.

  'NAME:1.0.0' is a version of a data set.
  """
  return isinstance(name, str) and bool(re.search(r':(?!\d)', name))


def load(field: str, name: str) -> Any:
  """Imports an object.

  Args:
    field: The field that names it, such as 'model.name'.
    name: Such as 'my_package.nets:MyNet'. The package must be importable: it
      is installed, or in the folder that the command is started in, or on
      PYTHONPATH.

  Raises:
    FieldError: There is no such module or object, or its import fails.
  """
  module, _, attribute = name.partition(':')
  told = f'{field} is {name!r}'
  try:
    found = importlib.import_module(module)
  except (Exception, SystemExit) as error:
    parts = module.split('.')
    packages = ['.'.join(parts[:n]) for n in range(1, len(parts) + 1)]
    missing = isinstance(error, ModuleNotFoundError) and error.name in packages
    if missing or not all(parts):
      raise FieldError(
        f'{told}, but there is no module {module!r} in the installed packages, '
        f'in {os.getcwd()} or on PYTHONPATH; write it as '
        "'package.module:name'."
      ) from error
    raise FieldError(
      f'{told}, but the import of {module} fails: {describe(error)}'
    ) from error
  if not attribute.isidentifier() or not callable(
    getattr(found, attribute, None)
  ):
    raise FieldError(
      f'{told}, but {found.__file__ or module} has no class or function '
      f'{attribute!r}.'
    )
  return getattr(found, attribute)


def describe(error: BaseException) -> str:
  """Says what went wrong in the user's code, and where.

  Args:
    error: As it was caught.

  Returns:
    'TypeError at FILE:LINE: TEXT', the first line of the text. The line is the
    last of the user's code; where there is none, the last of any file.
  """
  name, text = type(error).__name__, str(error)
  frames = [
    (frame.filename, frame.lineno)
    for frame in traceback.extract_tb(error.__traceback__)
    if not frame.filename.startswith('<')  # Importlib's; generated code.
  ]
  users = [at for at in frames if not at[0].startswith(_LIBRARIES)]
  where = (users or frames)[-1:]
  if isinstance(error, SyntaxError) and error.filename:
    text = error.msg
    if not error.filename.startswith('<'):
      where = [(error.filename, error.lineno or 1)]
  first = text.strip().partition('\n')[0]
  return (
    name
    + ''.join(f' at {file}:{line}' for file, line in where)
    + (f': {first}' if first else '')
  )


def parameters(made: Any, num_given: int = 0) -> dict[str, inspect.Parameter]:
  """The arguments by name that a class or function can be called with.

  Args:
    made: As from `load`.
    num_given: How many of its first arguments are given by position: they are
      left out.
  """
  found = {}
  for i, parameter in enumerate(inspect.signature(made).parameters.values()):
    by_name = parameter.kind in (
      parameter.POSITIONAL_OR_KEYWORD,
      parameter.KEYWORD_ONLY,
    )
    if by_name and (i >= num_given or parameter.kind == parameter.KEYWORD_ONLY):
      annotation = _evaluated(made, parameter.annotation)
      found[parameter.name] = parameter.replace(annotation=annotation)
  return found


def _evaluated(made: Any, annotation: Any) -> Any:
  """An annotation, of which `from __future__ import annotations` keeps a text.

  One by one, and not by `inspect.signature(eval_str=True)`, which fails for
  all of them where one needs a name that only type checkers import.
  """
  if not isinstance(annotation, str):
    return annotation
  names = [
    vars(sys.modules[module])
    for base in getattr(made, '__mro__', [made])  # Fields are inherited.
    if (module := getattr(base, '__module__', None)) in sys.modules
  ]
  try:
    return eval(annotation, {}, collections.ChainMap(*names))
  except Exception:  # Of the user's code: of any kind.
    return annotation


def options(made: Any, num_given: int = 0) -> dict[str, dataclasses.Field]:
  """The arguments that a config can set, as fields.

  An argument without a default must be set. One whose default no config can
  hold, such as a function, is not among them.

  Args:
    made: As from `load`.
    num_given: As that of `parameters`.
  """
  found = {}
  for name, parameter in parameters(made, num_given).items():
    field = _option(name, parameter)
    if field:
      found[name] = field
  return found


def _option(
  name: str, parameter: inspect.Parameter
) -> dataclasses.Field | None:
  default, rule = as_tuples(parameter.default), None
  # Of `int | None` and `tuple[int, ...]`, int and tuple.
  annotation = parameter.annotation
  parts = (
    () if get_origin(annotation) in (tuple, list) else get_args(annotation)
  )
  kinds = [get_origin(kind) or kind for kind in parts or [annotation]]
  kinds = [tuple if kind is list else kind for kind in kinds]
  kinds = [kind for kind in kinds if kind in _KINDS]
  if isinstance(default, _KINDS):
    if type(default) is int and float in kinds and int not in kinds:
      default = float(default)  # Of `rate: float = 1`.
    kinds = [type(default)]
  elif default is inspect.Parameter.empty:
    default, rule = None, Accepted('set', lambda v: v is not None)
    kinds = kinds or [str]
  elif default is not None or not kinds:
    return None
  return declare(name, kinds[0] | None, default, rule)
