"""Reads what follows the colon of --config=FILE.py:ARGUMENTS."""

import types
from typing import Any

from mgjax.errors import ConfigError


def parse_args(arg: str, **defaults: Any) -> types.SimpleNamespace:
  """Reads the arguments after the colon of --config=FILE.py:ARGUMENTS.

  Args:
    arg: Such as 'grid=both,seed=1'; '' for none.
    **defaults: Every accepted key; a value gets its default's type.

  Raises:
    ConfigError: If a key is unknown or given twice, or a value has another
      type than the default.
  """
  args = dict(defaults)
  seen = set()
  for item in filter(None, arg.split(',')):
    key, equals, text = (part.strip() for part in item.partition('='))
    if not equals or key not in defaults:
      raise ConfigError(
        f'config argument {item!r} is unknown; accepted after the colon are '
        f'{", ".join(f"{k}=..." for k in defaults)}.'
      )
    if key in seen:
      raise ConfigError(f'config argument {key!r} is given twice.')
    seen.add(key)
    args[key] = _parse_value(key, text, type(defaults[key]))
  return types.SimpleNamespace(**args)


def _parse_value(key: str, text: str, kind: type) -> Any:
  if kind is bool:
    if text.lower() in ('true', 'false'):
      return text.lower() == 'true'
  else:
    try:
      return kind(text)
    except ValueError:
      pass
  raise ConfigError(
    f'config argument {key}={text!r} is not of type {kind.__name__}.'
  )
