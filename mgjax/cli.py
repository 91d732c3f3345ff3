"""What every command shares: flags, and errors that a person can act on."""

import argparse
import contextlib
import importlib
import os
import pathlib
import re
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import ml_collections
from absl import flags
from ml_collections import config_flags

from mgjax.config import config_file, rules
from mgjax.errors import ConfigError, RunError
from mgjax.stop_signal import EXIT_INTERRUPTED, EXIT_RESTART

__all__ = [
  'EXIT_RESTART',
  'ArgumentParser',
  'ConfigError',
  'RunError',
  'guard',
  'interpreter',
  'read_config',
  'report',
  'run',
]


class ArgumentParser(argparse.ArgumentParser):
  """For commands without a config: reports an error in one line, code 2.

  Descriptions and epilogs are printed as they are; flags have no short forms.
  """

  def __init__(self, **options: Any):
    super().__init__(
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
      **options,
    )

  def error(self, message: str) -> NoReturn:
    self.exit(2, f'error: {" ".join(message.split())}\n')


def run(
  main: Callable[..., None] | str,
  define_flags: Callable[[flags.FlagValues], None],
  argv: Sequence[str] | None = None,
  *,
  arguments: str = '',
  find_config: Callable[[flags.FlagValues, list[str]], Any] | None = None,
) -> int:
  """Parses the flags of a command, calls it and returns its exit code.

    if __name__ == '__main__':
      sys.exit(cli.run('mgjax.run.launch', define_flags))

  Every command takes --config=FILE.py[:arguments] and --config.field=value.
  It ends as `guard` says.

  Args:
    main: Gets the parsed flags, `config` among them a checked config, and the
      arguments that are no flags. Or the name of a module that has such a
      `main`: it is imported once the flags are right, so that JAX, which takes
      seconds, is not in the way of a misspelt one.
    define_flags: Adds the command's own flags to those it is given.
    argv: Program name and arguments; None: those of the process.
    arguments: What arguments that are no flags are, such as 'VIDEO'; '': the
      command has none.
    find_config: Finds the config where --config is not given: gets the
      command's own flags and other arguments, returns a config or the path of
      a config file.

  Differs: absl's app.run ends with code 1 and a page of help on bad flags,
    and with a traceback on bad configs. Flags are not global here, so that
    commands can import each other, and tests can call them.
  """
  argv = list(sys.argv if argv is None else argv)

  def command() -> None:
    if {'--help', '-h', '-help'} & set(argv[1:]):
      values = _flags(define_flags, argv)
      print(
        f'{sys.modules[define_flags.__module__].__doc__}\n{values.get_help()}'
      )
      return
    found = None
    if find_config and not any(re.match('--?config(=|$)', a) for a in argv):
      found = _find_config(define_flags, argv, find_config)
    values, rest = _parse(define_flags, argv, found)
    if rest and not arguments:
      raise ConfigError(
        f'unexpected argument {rest[0]!r}; flags look like --config=FILE.'
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
  argv = ['', f'--config={config}', *overrides]
  values, _ = _parse(lambda _: None, argv, None)
  return values.config


def report(error: BaseException) -> int:
  """Tells what ended a command on stderr, in one line.

  With MGJAX_TRACEBACK=1 in the environment the traceback comes first; that of a
  bug is otherwise in a file that the line names.

  Returns:
    The command's exit code.
  """
  code, text = _describe(error)
  show = os.environ.get('MGJAX_TRACEBACK', '') not in ('', '0')
  if show and not isinstance(error, ConfigError | RunError):
    traceback.print_exception(error)
  if text is None:
    text = f'{_bug(error)}; {_keep_traceback(error, show)}'
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


def _bug(error: BaseException) -> str:
  text = ' '.join(str(error).split())
  if len(text) > 300:
    text = f'{text[:297]}...'
  where = 'an unknown line'
  for frame, line in traceback.walk_tb(error.__traceback__):
    where = f'{frame.f_code.co_filename}:{line}'
  return (
    f'{type(error).__name__} at {where}: {text or "no message"} (this '
    'is a bug: mgjax should have refused its input or gone on)'
  )


def _keep_traceback(error: BaseException, shown: bool) -> str:
  """Writes the traceback into a file; says where it is."""
  if shown:
    return 'its traceback is above'
  try:
    with tempfile.NamedTemporaryFile(
      'w', prefix='mgjax-', suffix='.txt', delete=False, encoding='utf-8'
    ) as file:
      traceback.print_exception(error, file=file)
  except OSError:
    traceback.print_exception(error)
    return 'its traceback is above'
  return f'its traceback is in {file.name}, please report it'


class _ConfigParser(flags.ArgumentParser):
  """Reads config files with messages of one line; takes configs as they are."""

  def __init__(self, argv: Sequence[str]):
    self._argv = argv

  def parse(self, argument: Any) -> ml_collections.ConfigDict:
    config = argument
    if not isinstance(argument, ml_collections.ConfigDict):
      config = config_file.load(argument)
      _check_fields(config, argument)
    config.lock()
    overrides = [
      match
      for word in self._argv
      if (match := re.match(r'--?(?:no)?config\.([^=]+)(?:=(.*))?', word))
    ]
    for field, value in (match.groups() for match in overrides):
      if field == 'model.name' and value:  # It decides which fields there are.
        _replace_network(config, value)
      elif field == 'data.name' and value:
        config.data.name = value
    for match in overrides:
      _check_override(config, match[1])
    return config


def _replace_network(config: ml_collections.ConfigDict, name: str) -> None:
  """Chooses another network than the config file, and says what is lost."""
  before = config.model.name
  lost = config.model.replace(name) if name != before else {}
  if lost:
    listed = ', '.join(f'{field}={value}' for field, value in lost.items())
    print(
      f'--config.model.name={name}: the options of {before!r} that the config '
      f'sets and {name!r} lacks are left out: {listed}',
      file=sys.stderr,
    )


def _check_fields(config: ml_collections.ConfigDict, source: str) -> None:
  try:
    rules.check_fields(config)
  except ConfigError as error:
    raise ConfigError(f'{source}: {error}') from error


def _check_override(config: ml_collections.ConfigDict, field: str) -> None:
  missing = rules.unknown_field(config, field)
  if missing:
    name, hint = missing
    raise ConfigError(
      f'--config.{field}: there is no such field.{hint} '
      f'{config_file.fields_path(field)} lists them all.'
      if name == field
      else f'--config.{field}: there is no field {name!r}.{hint} '
      f'{config_file.fields_path(field)} lists them all.'
    )


def _flags(define_flags, argv: list[str]) -> flags.FlagValues:
  """Defines a command's flags."""
  values = flags.FlagValues()
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
  define_flags(values)
  return values


def _find_config(define_flags, argv: list[str], find_config) -> Any:
  """Asks the command for its config, by what else stands in the line."""
  values = flags.FlagValues()
  define_flags(values)
  try:
    rest = values(argv, known_only=True)
  except flags.Error as error:
    raise ConfigError(str(error)) from error
  return find_config(values, [a for a in rest[1:] if not a.startswith('-')])


def _parse(
  define_flags, argv: list[str], found: Any
) -> tuple[flags.FlagValues, list[str]]:
  """Parses all flags and checks the config.

  Args:
    define_flags: As that of `run`.
    argv: As that of `run`.
    found: What `find_config` returned, if it was asked.

  Returns:
    The flags, and the arguments that are none.

  Raises:
    ConfigError: A flag is unknown or has a wrong value, a config cannot be
      read or refuses its arguments, or something else stands between flags.
  """
  values = _flags(define_flags, argv)
  try:
    if found is not None:
      values.set_default('config', found)
    rest = values(list(argv))
  except flags.Error as error:
    refused = error.__context__  # Flags wrap what their parsers raise.
    if isinstance(refused, ConfigError):
      raise refused from refused.__cause__
    raise ConfigError(str(error)) from error
  config = values['config'].value
  if config is None:
    raise ConfigError(
      '--config is missing; give --config=FILE.py or the name of a recipe: '
      f'{", ".join(config_file.recipes())}.'
    )
  rules.check_fields(config)
  rules.validate(config)
  return values, rest[1:]


def interpreter() -> str:
  """What starts this Python in the user's shell.

  A virtual environment that is not activated, as in `make demo`, by its path.
  """
  path = pathlib.Path(sys.executable)
  if not os.environ.get('VIRTUAL_ENV') and path.is_relative_to(os.getcwd()):
    return str(path.relative_to(os.getcwd()))
  return 'python'
