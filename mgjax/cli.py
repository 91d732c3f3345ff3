"""What every command shares: flags, and errors that a person can act on."""

import contextlib
import functools
import importlib
import math
import operator
import os
import pathlib
import re
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from mgjax.config import config_file, rules
from mgjax.errors import ConfigError, RunError
from mgjax.stop_signal import EXIT_INTERRUPTED, EXIT_RESTART

__all__ = [
  'EXIT_RESTART',
  'ConfigError',
  'RunError',
  'define_flag',
  'guard',
  'interpreter',
  'read_config',
  'report',
  'run',
]


def define_flag(
  values: flags.FlagValues,
  name: str,
  kind: Any,
  default: Any,
  text: str,
  least: int | float | None = None,
  greatest: int | float | None = None,
) -> None:
  """Defines a flag of a command.

  Args:
    values: Gets the flag.
    name: Its name.
    kind: str, int, float or bool; or the words that are accepted.
    default: Its value where it is not given; may be None.
    text: What --help says of it.
    least: Least number that is accepted; None: any.
    greatest: Greatest number that is accepted; None: any.
  """
  if not isinstance(kind, type):
    flags.DEFINE_enum(name, default, kind, text, flag_values=values)
    return
  define = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
  }[kind]
  define(name, default, text, flag_values=values)
  if least is not None:
    high = math.inf if greatest is None else greatest
    accepted = f'{least} or more'
    if greatest is not None:
      accepted = f'from {least} to {greatest}'
    # absl's own bounds let a nan through.
    flags.register_validator(
      name,
      lambda value: value is None or least <= value <= high,
      f'it must be {accepted}',
      flag_values=values,
    )


def run(
  main: Callable[..., None] | str,
  define_flags: Callable[[flags.FlagValues], None],
  argv: Sequence[str] | None = None,
  *,
  arguments: str = '',
  find_config: Callable[[flags.FlagValues, list[str]], Any] | None = None,
  takes_config: bool = True,
) -> int:
  """Parses the flags of a command, calls it and returns its exit code.

    if __name__ == '__main__':
      sys.exit(cli.run('mgjax.run.launch', define_flags))

  It ends as `guard` says.

  Args:
    main: Gets the parsed flags, `config` among them a checked config, and the
      arguments that are no flags. Or the name of a module that has such a
      `main`: it is imported once the flags are right, so that a misspelt flag
      does not wait for JAX, which takes seconds to import.
    define_flags: Adds the command's own flags to those it is given. The text
      of its module comes first in --help.
    argv: Program name and arguments; None: those of the process.
    arguments: What arguments that are no flags are, such as 'VIDEO'; '': the
      command has none.
    find_config: Finds the config where --config is not given: gets the
      command's own flags and other arguments, returns a config or the path of
      a config file.
    takes_config: Whether the command takes --config=FILE.py[:arguments] and
      --config.field=value.

  Differs: absl's app.run ends with code 1 and a page of help on bad flags,
    and with a traceback on bad configs. Flags are not global here, so that
    commands can import each other, and tests can call them.
  """
  argv = list(sys.argv if argv is None else argv)

  def command() -> None:
    values = flags.FlagValues()
    define_flags(values)
    if {'--help', '-h', '-help'} & set(argv[1:]):
      if takes_config:
        _define_config(values, argv)
      text = sys.modules[define_flags.__module__].__doc__
      print(f'{text}\n{values.get_help()}')
      return
    if takes_config:
      rest = _parse_with_config(values, argv, find_config)
    else:
      rest = _parse(values, argv)
    if rest and not arguments:
      raise ConfigError(
        f'unexpected argument {rest[0]!r}; flags look like --name=value.'
      )
    body = importlib.import_module(main).main if isinstance(main, str) else main
    body(values, *rest)

  return guard(command)


def guard(command: Callable[[], int | None]) -> int:
  """Calls a command; whatever goes wrong in it ends in one line on stderr.

  Bad input, a ConfigError, has code 2; what something outside the program has
  done, such as a RunError or an error of the disk, has code 1. So has anything
  else, which is a bug: its line says so, and where the traceback is.

  Args:
    command: Returns an exit code; None: 0.

  Returns:
    The exit code.

  Raises:
    SystemExit: The command has raised it.
  """
  for stream in (sys.stdout, sys.stderr):
    # A terminal or pipe need not know all characters of a label.
    with contextlib.suppress(AttributeError, ValueError):
      stream.reconfigure(errors='backslashreplace')
  try:
    code = command() or 0
    if sys.stdout:
      sys.stdout.flush()
    return code
  except BrokenPipeError as error:
    if not _nobody_reads():
      return report(error)
    _drop_output()  # `| head` has seen enough.
    return 0
  except (Exception, KeyboardInterrupt) as error:
    return report(error)


def _nobody_reads() -> bool:
  """Whether stdout is a pipe whose other end is closed."""
  poll = select.poll()
  try:
    poll.register(sys.stdout.fileno(), 0)  # Only errors are of interest.
  except (AttributeError, OSError):
    return False
  return bool(poll.poll(0))


def _drop_output() -> None:
  """Lets Python end without another try to write what is left."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_config(
  config: str, overrides: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Reads a config as the commands do.

  Args:
    config: Value of --config: 'FILE.py:ARGUMENTS' or 'RECIPE:ARGUMENTS'.
    overrides: Such as '--config.grid.epoch_factor=1.0'.

  Raises:
    ConfigError: The file cannot be read, there is no such field, or a value
      cannot work.
  """
  values = flags.FlagValues()
  _parse_with_config(values, ['', f'--config={config}', *overrides], None)
  return values.config


def report(error: BaseException) -> int:
  """Tells what ended a command on stderr, in one line.

  With MGJAX_TRACEBACK=1 in the environment the traceback comes first; that of a
  bug is otherwise in a file that the line names.

  Returns:
    The command's exit code.
  """
  code, text = _describe(error)
  shown = os.environ.get('MGJAX_TRACEBACK', '') not in ('', '0')
  # What a person can act on needs none, but the code of the user's own that it
  # comes from.
  if shown and (
    error.__cause__ or not isinstance(error, ConfigError | RunError)
  ):
    traceback.print_exception(error)
  if text is None:
    text = _describe_bug(error, shown)
  with contextlib.suppress(OSError):  # There may be no stderr.
    print(f'error: {" ".join(text.split())}', file=sys.stderr, flush=True)
  return code


def _describe(error: BaseException) -> tuple[int, str | None]:
  """Returns the exit code and what to say; None: it is a bug."""
  text = str(error)
  match error:
    case ConfigError():
      return 2, text
    case RunError():
      return 1, text
    case KeyboardInterrupt():
      return EXIT_INTERRUPTED, 'interrupted'
    case OSError(strerror=str(reason)) if error.errno:
      names = [n for n in (error.filename, error.filename2) if n is not None]
      where = ' -> '.join(map(_path, names)) or 'a file that was open'
      if not names and not _flush():
        where = 'the output'
        _drop_output()
      return 1, f'{where}: {reason}'
    case MemoryError():
      detail = f' ({text})' if text else ''
      return 1, f'the memory of this machine is used up{detail}'
    # JAX has no class of its own for this.
    case RuntimeError() if text.startswith('RESOURCE_EXHAUSTED'):
      return 1, (
        f'the memory of the device is used up: {text.splitlines()[0]}; '
        "train.micro_batches, train.remat='block' and a smaller batch take less"
      )
  return 1, None


def _flush() -> bool:
  """Whether what has been printed reaches its end."""
  try:
    if sys.stdout:
      sys.stdout.flush()
  except OSError:
    return False
  return True


def _path(name: Any) -> str:
  return os.fsdecode(name) if isinstance(name, str | bytes) else str(name)


def _describe_bug(error: BaseException, shown: bool) -> str:
  """Says where a bug is, and where its traceback, unless that was `shown`."""
  place = 'an unknown line'
  for frame, line in traceback.walk_tb(error.__traceback__):
    place = f'{frame.f_code.co_filename}:{line}'
  where = 'its traceback is above'
  if not shown:
    try:
      with tempfile.NamedTemporaryFile(
        'w', prefix='mgjax-', suffix='.txt', delete=False, encoding='utf-8'
      ) as file:
        traceback.print_exception(error, file=file)
      where = f'its traceback is in {file.name}, please report it'
    except OSError:
      traceback.print_exception(error)
  return (
    f'{type(error).__name__} at {place}: '
    f'{str(error)[:300] or "no message"} (this is a bug: mgjax should have '
    f'refused its input or gone on); {where}'
  )


class _ConfigParser(flags.ArgumentParser):
  """Reads config files with messages of one line; takes configs as they are."""

  def __init__(self, argv: Sequence[str]):
    self._argv = argv

  def parse(self, argument: Any) -> ml_collections.ConfigDict:
    config = argument
    if not isinstance(argument, ml_collections.ConfigDict):
      config = config_file.load(argument)
      try:
        rules.check_fields(config)
      except ConfigError as error:
        raise ConfigError(f'{argument}: {error}') from error
    config.lock()
    overrides = []
    for word, following in zip(
      self._argv, [*self._argv[1:], None], strict=True
    ):
      match = re.match(r'--?(?:no)?config\.([^=]+)(?:=(.*))?', word)
      if match:
        field, value = match.groups()
        overrides.append((field, following if value is None else value))
    for field, value in overrides:
      section, _, rest = field.partition('.')
      # It decides which fields there are.
      if section in ('model', 'data') and rest == 'name' and value:
        _choose(config, section, value)
    for field, _ in overrides:
      _check_override(config, field)
    return config


def _choose(config: ml_collections.ConfigDict, section: str, name: str) -> None:
  """Sets another name than the config file, and says what is lost.

  Args:
    config: Is changed.
    section: 'model' or 'data'.
    name: Of a network or a data set.
  """
  before = config[section].name
  lost = config[section].choose(name) if name != before else {}
  if lost:
    listed = ', '.join(f'{field}={value}' for field, value in lost.items())
    print(
      f'--config.{section}.name={name}: the options of {before!r} that the '
      f'config sets and {name!r} lacks are left out: {listed}',
      file=sys.stderr,
    )


def _check_override(config: ml_collections.ConfigDict, field: str) -> None:
  """Refuses a field that is not there, and a section, which has no value."""
  missing = rules.unknown_field(config, field)
  if missing:
    name, hint = missing
    what = 'such field' if name == field else f'field {name!r}'
    raise ConfigError(
      f'--config.{field}: there is no {what}.{hint} '
      f'{rules.listing(config, field)}'
    )
  value = functools.reduce(operator.getitem, field.split('.'), config)
  if isinstance(value, ml_collections.ConfigDict):
    raise ConfigError(
      f'--config.{field} is a section; set its fields one by one, such as '
      f'--config.{field}.{next(iter(value), "NAME")}=...'
    )


def _define_config(values: flags.FlagValues, argv: list[str]) -> None:
  config_flags.DEFINE_config_file(
    'config',
    None,
    'A config file, or the name of a recipe, with arguments after a colon: '
    'kinetics400:grid=both,seed=1. Any of its fields can be overridden by '
    '--config.field=value. The recipes are '
    f'{", ".join(config_file.recipes())}.',
    flag_values=values,
    sys_argv=argv,
  )
  values['config'].parser = _ConfigParser(argv)


def _parse(
  values: flags.FlagValues,
  argv: list[str],
  *,
  known_only: bool = False,
  default_config: Any = None,
) -> list[str]:
  """Parses flags; returns the arguments that are none.

  Raises:
    ConfigError: A flag is unknown (unless `known_only`) or has a wrong value.
  """
  try:
    if default_config is not None:
      values.set_default('config', default_config)
    return values(list(argv), known_only=known_only)[1:]
  except flags.Error as error:
    refused = error.__context__  # Flags wrap what their parsers raise.
    if isinstance(refused, ConfigError):
      raise refused from refused.__cause__
    raise ConfigError(str(error)) from error


def _parse_with_config(
  values: flags.FlagValues, argv: list[str], find_config
) -> list[str]:
  """Parses the flags of a command and its config, and checks the config.

  Args:
    values: Has the command's own flags.
    argv: As that of `run`.
    find_config: As that of `run`.

  Returns:
    The arguments that are no flags.

  Raises:
    ConfigError: A flag is unknown or has a wrong value, or a config cannot be
      read, refuses its arguments or cannot work.
  """
  found = None
  if find_config and not any(re.match('--?config(=|$)', a) for a in argv):
    rest = _parse(values, argv, known_only=True)
    found = find_config(values, [a for a in rest if not a.startswith('-')])
  _define_config(values, argv)
  rest = _parse(values, argv, default_config=found)
  config = values['config'].value
  if config is None:
    raise ConfigError(
      '--config is missing; give --config=FILE.py or the name of a recipe: '
      f'{", ".join(config_file.recipes())}.'
    )
  rules.check(config)
  return rest


def interpreter() -> str:
  """What starts this Python in the user's shell.

  A virtual environment that is not activated, as in `make demo`, by its path.
  """
  path = pathlib.Path(sys.executable)
  if not os.environ.get('VIRTUAL_ENV') and path.is_relative_to(os.getcwd()):
    return str(path.relative_to(os.getcwd()))
  return 'python'
