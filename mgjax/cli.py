"""What every command shares: flags, and errors that a person can act on."""

import argparse
import importlib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import ml_collections
from absl import flags
from ml_collections import config_flags

# The process may be started again, and then goes on: EX_TEMPFAIL of sysexits.h.
EXIT_RESTART = 75


class ConfigError(ValueError):
  """A setting that cannot work; its message says which, why and what would."""


class RunError(Exception):
  """Something outside the program that ends a run that was well set up."""


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
      sys.exit(cli.run('mgjax.training', define_flags))

  Every command takes --config=FILE.py[:arguments] and --config.field=value.
  Bad input, be it flags or a ConfigError, ends with one line on stderr and
  exit code 2; a RunError with one line and code 1. Anything else that goes
  wrong is a bug and keeps its traceback.

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
  try:
    if {'--help', '-h', '-help'} & set(argv[1:]):
      values = _flags(define_flags, argv, None)
      print(
        f'{sys.modules[define_flags.__module__].__doc__}\n{values.get_help()}'
      )
      return 0
    found = None
    if find_config and not any(re.match('--?config(=|$)', a) for a in argv):
      found = _find_config(define_flags, argv, find_config)
    values, rest = _parse(define_flags, argv, found)
    if rest and not arguments:
      raise ConfigError(
        f'unexpected argument {rest[0]!r}; flags look like --config=FILE.'
      )
    if isinstance(main, str):
      main = importlib.import_module(main).main
    main(values, *rest)
    sys.stdout.flush()
  except (ConfigError, RunError) as error:
    return report(error)
  except BrokenPipeError:
    # `| head` has seen enough. Python would complain once more as it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return 0


def read_config(
  config: str, overrides: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Reads a config as the commands do.

  Args:
    config: Value of --config: 'configs/FILE.py:ARGUMENTS'.
    overrides: Such as '--config.grid.epoch_factor=1.0'.

  Raises:
    ConfigError: The file cannot be read, there is no such field, or a value
      cannot work.
  """
  argv = ['', f'--config={config}', *overrides]
  values, _ = _parse(lambda _: None, argv, None)
  return values.config


def report(error: Exception) -> int:
  """Tells what ended a command on stderr; returns its exit code."""
  if not isinstance(error, ConfigError | RunError):
    traceback.print_exception(error)
    return 1
  print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
  return 2 if isinstance(error, ConfigError) else 1


def _flags(define_flags, argv: list[str], config: Any) -> flags.FlagValues:
  """Defines a command's flags; `config` is the default of --config."""
  values = flags.FlagValues()
  options = {'lock_config': True, 'flag_values': values, 'sys_argv': argv}
  if isinstance(config, ml_collections.ConfigDict):
    config_flags.DEFINE_config_dict('config', config, **options)
  else:
    config_flags.DEFINE_config_file(
      'config',
      config,
      'Config file, with arguments after a colon: '
      'configs/kinetics400.py:grid=both,seed=1. Any of its fields can be '
      'overridden by --config.field=value.',
      **options,
    )
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
  # Configs import this module for its error.
  from configs import default

  try:
    # An error in a config that was found comes up here, others in parsing.
    values = _flags(define_flags, argv, found)
    rest = values(list(argv))
    config = values['config'].value
    if config is None:
      raise ConfigError('--config is missing; give --config=configs/FILE.py.')
    # A config file that could not be read complains when it is used.
    getattr(config, 'keys')  # noqa: B009
  except OSError as error:
    path = next((a for a in argv if re.match('--?config=', a)), '--config')
    reason = str(error).strip().splitlines()[-1].strip()
    raise ConfigError(
      f'{path}: cannot read the config file ({reason}); give an existing one, '
      'such as configs/moving_digits.py.'
    ) from error
  except flags.Error as error:
    raise ConfigError(_innermost(error)) from error
  except (AttributeError, KeyError) as error:
    # ml_collections' own are about the field names on the command line; any
    # other is a bug in a config file.
    if not _raised_in(error).startswith('ml_collections'):
      raise
    raise ConfigError(_unknown_field(error, argv)) from error
  default.validate(config)
  return values, rest[1:]


def _innermost(error: flags.Error) -> str:
  """Returns what a flag error is about, without the tracebacks in it."""
  # ml_collections pastes the traceback of a failing config file in between:
  # the first error of a chain is as it was raised, and the last line of the
  # text says what happened.
  config_errors = [e for e in _chain(error) if isinstance(e, ConfigError)]
  if config_errors:
    return str(config_errors[-1])
  lines = str(error).strip().splitlines()
  return f'{lines[0]} {lines[-1]}' if len(lines) > 2 else ' '.join(lines)


def _unknown_field(error: Exception, argv: Sequence[str]) -> str:
  """Says which override names a field that the config does not have."""
  keys = [e.args[0] for e in _chain(error) if isinstance(e, KeyError)]
  overrides = [re.match(r'--?(config\.[^=]*)', arg) for arg in argv]
  fields = [match[1] for match in overrides if match]
  # The error knows only the last part of a dotted name.
  culprits = [f for f in fields if keys and keys[-1] in f.split('.')] or fields
  similar = re.search(r'Did you mean "(\w+)"', str(error))
  hint = f' Did you mean {similar[1]!r}?' if similar else ''
  return (
    f'--{culprits[0] if culprits else "config"}: there is no such field.{hint} '
    'configs/default.py lists them all.'
  )


def _chain(error: BaseException) -> Iterator[BaseException]:
  """Yields an error and those during whose handling it was raised."""
  current: BaseException | None = error
  while current is not None:
    yield current
    current = current.__context__


def _raised_in(error: Exception) -> str:
  """Returns the name of the module whose code raised the error."""
  trace = error.__traceback__
  assert trace is not None
  while trace.tb_next is not None:
    trace = trace.tb_next
  return trace.tb_frame.f_globals.get('__name__', '')


def interpreter() -> str:
  """What starts this Python in the user's shell.

  A virtual environment that is not activated, as in `make demo`, by its path.
  """
  path = pathlib.Path(sys.executable)
  if not os.environ.get('VIRTUAL_ENV') and path.is_relative_to(os.getcwd()):
    return str(path.relative_to(os.getcwd()))
  return 'python'
