"""Objects of the user's own that a config names: 'package.module:name'."""

import dataclasses
import importlib
import inspect
import os
import traceback
from typing import Any, get_args, get_origin

from mgjax.config.setting import Accepted, setting
from mgjax.errors import FieldError

# Types of the values that a config can hold.
_KINDS = (bool, int, float, str, tuple)


def is_own(name: Any) -> bool:
  """Whether a name is of the form 'package.module:name'."""
  return isinstance(name, str) and ':' in name


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
    if getattr(error, 'name', '') in packages or not all(parts):
      raise FieldError(
        f'{told}, but there is no module {module!r} in the installed packages, '
        f'in {os.getcwd()} or on PYTHONPATH; write it as '
        "'package.module:name'."
      ) from error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raise FieldError(
      f'{told}, but the import of {module} fails at {frame.filename}:'
      f'{frame.lineno}: {type(error).__name__}: {error}'
    ) from error
  if not attribute.isidentifier() or not callable(
    getattr(found, attribute, None)
  ):
    raise FieldError(
      f'{told}, but {found.__file__ or module} has no class or function '
      f'{attribute!r}.'
    )
  return getattr(found, attribute)


def parameters(made: Any) -> dict[str, inspect.Parameter]:
  """The arguments by name that a class or function can be called with.

  Args:
    made: As from `load`.
  """
  return {
    name: parameter
    for name, parameter in inspect.signature(made).parameters.items()
    if parameter.kind
    in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
  }


def options(made: Any) -> dict[str, dataclasses.Field]:
  """The arguments that a config can set, as fields.

  An argument without a default must be set. One whose default no config can
  hold, such as a function, is not among them.

  Args:
    made: As from `load`.
  """
  found = {}
  for name, parameter in parameters(made).items():
    field = _option(name, parameter)
    if field:
      found[name] = field
  return found


def _option(
  name: str, parameter: inspect.Parameter
) -> dataclasses.Field | None:
  default, rule = parameter.default, None
  # Of `int | None` and `tuple[int, ...]`, int and tuple.
  annotation = parameter.annotation
  parts = () if get_origin(annotation) is tuple else get_args(annotation)
  kinds = [
    get_origin(kind) or kind
    for kind in parts or [annotation]
    if (get_origin(kind) or kind) in _KINDS
  ]
  if isinstance(default, _KINDS):
    kinds = [type(default)]
  elif default is inspect.Parameter.empty:
    default, rule = None, Accepted('set', lambda v: v is not None)
    kinds = kinds or [str]
  elif default is not None or not kinds:
    return None
  made = dataclasses.make_dataclass(
    'Options', [(name, kinds[0] | None, setting(default, rule))]
  )
  return dataclasses.fields(made)[0]
