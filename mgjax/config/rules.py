"""What a config must be: its fields, their types and accepted values."""

from typing import Any

import ml_collections

from mgjax.config import fields
from mgjax.config.config_file import did_you_mean, fields_path
from mgjax.config.sections import NamedSection
from mgjax.config.setting import accepted, as_tuples, is_number
from mgjax.errors import ConfigError

__all__ = [
  'as_tuples',
  'check',
  'check_fields',
  'hint',
  'listing',
  'unknown_field',
  'validate',
]


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a config with other fields than there are, or wrong values.

  Raises:
    ConfigError: Names the first of them.
  """
  check_fields(config)
  validate(config)


def check_fields(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that has not the fields of `base`, or other types.

  ml_collections takes None and True for any number, and a config can be made
  without `base`, or be unlocked.

  Raises:
    ConfigError: Names the first field that is missing, unknown or of another
      type than its default.
  """
  defaults = fields.base()
  for section in ('model', 'data'):  # Their names decide what else they have.
    given = config.get(section)
    if isinstance(given, ml_collections.ConfigDict) and 'name' in given:
      defaults[section].name = given.name
  _compare(config, defaults, '', config)


def _compare(
  config: Any,
  defaults: ml_collections.ConfigDict,
  prefix: str,
  whole: ml_collections.ConfigDict,
) -> None:
  absent = [name for name in defaults if name not in config]
  if absent:
    raise ConfigError(
      f'the config has no field {prefix}{absent[0]}'
      + (f' ({len(absent) - 1} more are missing)' if absent[1:] else '')
      + '; start from mgjax.config.fields.base(), which has all of them.'
    )
  for name, value in config.items():
    if name not in defaults:
      raise ConfigError(
        f'there is no field {prefix}{name}.{hint(name, defaults)} '
        f'{listing(whole, prefix)}'
      )
    default = defaults[name]
    if isinstance(default, ml_collections.ConfigDict):
      if not isinstance(value, ml_collections.ConfigDict):
        raise ConfigError(
          f'{prefix}{name} is {value!r}; it is a section of fields.'
        )
      _compare(value, default, f'{prefix}{name}.', whole)
      continue
    wanted = defaults.get_type(name)
    if value is None and default is None or _has_type(value, wanted):
      continue
    raise ConfigError(
      f'{prefix}{name} is {value!r}, of type {type(value).__name__}; it must '
      f'be of type {wanted.__name__}.'
    )


def _has_type(value: Any, wanted: type) -> bool:
  if isinstance(value, bool) or wanted is bool:  # True is an int, too.
    return isinstance(value, bool) and wanted is bool
  kinds = {float: (float, int), tuple: (tuple, list)}
  return isinstance(value, kinds.get(wanted, wanted))


def hint(name: str, section: ml_collections.ConfigDict) -> str:
  """A hint at what a field that is not there may be meant for, or ''.

  Args:
    name: The field's name in the section.
    section: Lacks it.
  """
  if isinstance(section, NamedSection):
    return section.hint(name)
  return did_you_mean(name, section.keys())


def listing(config: ml_collections.ConfigDict, field: str) -> str:
  """A sentence that says where to find the fields that there are.

  Args:
    config: The whole config.
    field: Dotted name of one that is not there.
  """
  section, _, rest = field.partition('.')
  if rest.startswith('options.') and 'options' in config.get(section, ()):
    name, options = config[section].name, config[section].options
    return f'The options of {name} are {", ".join(options) or "none"}.'
  return f'{fields_path(field)} lists them all.'


def unknown_field(
  config: ml_collections.ConfigDict, field: str
) -> tuple[str, str] | None:
  """Looks for a field.

  Args:
    config: Has fields and sections.
    field: Its dotted name.

  Returns:
    None where it is there; else the part of the name that is not, and a hint
    at what is meant, or ''.
  """
  current: Any = config
  done: list[str] = []
  for name in field.split('.'):
    done.append(name)
    if not isinstance(current, ml_collections.ConfigDict):
      return '.'.join(done), ''
    if name not in current:
      return '.'.join(done), hint(name, current)
    current = current[name]
  return None


def validate(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config, each of whose fields has a value that can work.

  Raises:
    ConfigError: Names the first field that has not.
  """
  for prefix, values, declared in fields.sections(config):
    for field in declared:
      value, rule = values[field.name], accepted(field)
      if rule and not rule.has(value):
        raise ConfigError(
          f'{prefix}{field.name} is {value!r}; it must be {rule.text}.'
        )
      # Options of the user's own may be endless.
      if not prefix.endswith('.options.') and not _is_finite(value):
        raise ConfigError(
          f'{prefix}{field.name} is {value!r}; its numbers must be finite.'
        )
  return config


def _is_finite(value: Any) -> bool:
  """Whether no number of a value, or of a nested tuple, is inf or nan."""
  if isinstance(value, list | tuple):
    return all(map(_is_finite, value))
  return not isinstance(value, float) or is_number(value)
