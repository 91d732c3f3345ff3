"""Reads config files: Python programs whose `get_config` returns a config.

A config file is the user's own program, so whatever goes wrong in it is told
with its file and line, in one line.
"""

import contextlib
import difflib
import importlib.util
import inspect
import linecache
import pathlib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections

from mgjax.errors import ConfigError, FieldError


def recipes() -> dict[str, pathlib.Path]:
  """The config files that come with mgjax, by name, such as 'kinetics400'.

  A wheel has the checkout's folder configs/ inside the package, so that it is
  in nobody's way.
  """
  return programs()


def programs(folder: str = '') -> dict[str, pathlib.Path]:
  """The Python programs of a folder of configs/, by name."""
  package = pathlib.Path(__file__).parent.parent
  configs = package / 'configs'
  if not configs.is_dir():
    configs = package.parent / 'configs'
  return {
    path.stem: path
    for path in sorted((configs / folder).glob('*.py'))
    if not path.stem.startswith('_')
  }


def fields_path(field: str = '') -> str:
  """The file that lists a section's fields, as it is called from this folder.

  Args:
    field: Dotted name of one that is not there.
  """
  of_networks = field.startswith('model.')
  name = 'network_options.py' if of_networks else 'fields.py'
  return _called_from_here(pathlib.Path(__file__).with_name(name))


def _example() -> str:
  return _called_from_here(recipes()['moving_digits'])


def _called_from_here(path: pathlib.Path) -> str:
  """A path below this folder, as in a checkout, relative to it."""
  here = pathlib.Path.cwd()
  return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _find(path: str) -> str:
  """The file that is meant by a path, or by the name of a recipe."""
  if not path.isidentifier() or pathlib.Path(path).is_file():
    return path
  known = recipes()
  if path in known:  # Also where a folder has its name.
    return str(known[path])
  if pathlib.Path(path).exists():
    return path
  raise ConfigError(
    f'--config={path}: there is neither a file nor a recipe of that name.'
    f'{did_you_mean(path, known)} The recipes are {", ".join(known)}.'
  )


def load(text: str) -> ml_collections.ConfigDict:
  """Reads the value of --config.

  Args:
    text: 'FILE.py' or 'FILE.py:ARGUMENTS', or the name of one of `recipes`
      instead of the file; what comes after the first colon is what
      `get_config` is called with.

  Raises:
    ConfigError: There is no such file, it is no config file, or it fails.
  """
  path, *arguments = text.split(':', 1)
  path = _find(path)
  try:
    program = load_program(path)
  except ConfigError:  # It is a ValueError, and says what is wrong.
    raise
  except (OSError, ValueError) as error:  # A zero byte is a ValueError.
    reason = getattr(error, 'strerror', None) or error
    raise ConfigError(
      f'--config={text}: cannot read the config file ({reason}); give an '
      f'existing one, or the name of a recipe: {", ".join(recipes())}.'
    ) from error
  get_config = getattr(program, 'get_config', None)
  if not callable(get_config):
    raise ConfigError(
      f'{path}: there is no function get_config(), which returns the config; '
      f'give a config file, such as {_example()}.'
    )
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError as error:
    raise ConfigError(
      f'--config={text}: get_config() takes no arguments after the colon.'
      if arguments
      else f'--config={text}: get_config() needs arguments after the colon '
      f'({error}).'
    ) from error
  with explained(path):
    config = get_config(*arguments)
  if config is None:
    raise ConfigError(
      f'{path}: get_config() returns nothing; is `return config` missing?'
    )
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigError(
      f'{path}: get_config() returns a {type(config).__name__}; it must return '
      'the config that mgjax.config.fields.base() makes.'
    )
  return config


def load_program(path: str) -> Any:
  """Runs a config file, or that of a table, as a module.

  Raises:
    ConfigError: It fails; the message has the line.
    OSError: It cannot be read.
    ValueError: The path is none.
  """
  if not path:
    raise ValueError('it has no name')
  source = pathlib.Path(path).read_bytes()
  # As ml_collections names it.
  spec = importlib.util.spec_from_loader('config_config', None, origin=path)
  module = importlib.util.module_from_spec(spec)
  module.__file__ = path
  sys.modules[spec.name] = module  # Dataclasses look themselves up there.
  linecache.checkcache(path)
  with explained(path):
    try:
      program = compile(source, path, 'exec', dont_inherit=True)
    except SyntaxError as error:
      raise ConfigError(
        f'{path}:{error.lineno or 1}: {_name(error)}: {error.msg}'
        f'{_quoted(error.text)}; a config file is a Python program, such as '
        f'{_example()}.'
      ) from error
    exec(program, vars(module))
  return module


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
  """Says of what goes wrong inside in which line of the config file it does."""
  try:
    yield
  except FieldError as error:
    raise ConfigError(_explain(error, path)) from error
  except ConfigError:
    raise  # Of its arguments, say: it says what is wrong.
  except (Exception, SystemExit) as error:
    raise ConfigError(_explain(error, path)) from error


def _explain(error: BaseException, path: str) -> str:
  """Says in which line of a config file something went wrong, and what."""
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == path
  ]
  where = f'{path}:{lines[-1]}' if lines else path
  line = _quoted(linecache.getline(path, lines[-1]) if lines else '')
  message = str(error)
  if isinstance(error, FieldError):
    return f'{where}{line}: {message}'
  if isinstance(error, AttributeError | KeyError):
    # Whose attribute was to be set, only the text of ml_collections tells.
    key = re.search(r'Key "(\w+)" does not exist', message)
    name = key[1] if key else None
    if isinstance(getattr(error, 'obj', None), ml_collections.ConfigDict):
      name = error.name
    if name:
      similar = re.search(r'Did you mean "(\w+)"', message)
      hint = f'; did you mean {similar[1]!r}?' if similar else '.'
      return (
        f'{where}: there is no field {name!r}{line}{hint} '
        f'{fields_path()} lists all fields.'
      )
  kind = re.fullmatch(
    r"Could not override field '(\w+)'.*?\. (.*) is of original type "
    r"<class '(.*)'> and cannot be casted to type <class '(.*)'>",
    message,
    re.DOTALL,
  )
  if kind:
    name, value, given, wanted = kind.groups()
    if name in ('model', 'data'):
      return (
        f'{where}: {name} is a section{line}; set its fields one by one, '
        f'{name}.name first.'
      )
    return (
      f'{where}: {name} is {value}, of type {_last(given)}{line}; it must be '
      f'of type {_last(wanted)}.'
    )
  first = message.strip().split('\n')[0]
  return f'{where}: {_name(error)}{line}: {first}'


def _name(error: BaseException) -> str:
  return type(error).__name__


def _last(dotted: str) -> str:
  return dotted.rpartition('.')[2]


def _quoted(line: str | None) -> str:
  """A line of a program in brackets, or nothing."""
  line = (line or '').strip()
  if len(line) > 80:
    line = f'{line[:77]}...'
  return f' ({line})' if line else ''


def did_you_mean(name: str, names: Iterable[str]) -> str:
  """A hint at the most similar name, or ''."""
  similar = difflib.get_close_matches(name, names, 1)
  return f' Did you mean {similar[0]!r}?' if similar else ''
