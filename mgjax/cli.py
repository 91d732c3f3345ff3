"""What every command shares: flags, and errors that a person can act on."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from ml_collections import config_flags


class ConfigError(ValueError):
  """A setting that cannot work; its message says which, why and what would."""


class RunError(Exception):
  """Something outside the program that ends a run that was well set up."""


def run(
  main: Callable[[flags.FlagValues], None],
  define_flags: Callable[[flags.FlagValues], None],
  argv: Sequence[str] | None = None,
) -> int:
  """Parses the flags of a command, calls it and returns its exit code.

    if __name__ == '__main__':
      sys.exit(cli.run(main, define_flags))

  Every command takes --config=FILE.py[:arguments] and --config.field=value.
  Bad input, be it flags or a ConfigError, ends with one line on stderr and
  exit code 2; a RunError with one line and code 1. Anything else that goes
  wrong is a bug and keeps its traceback.

  Args:
    main: Gets the parsed flags; `config` among them is a checked config.
    define_flags: Adds the command's own flags to those it is given.
    argv: Program name and arguments; None: those of the process.

  Differs: absl's app.run ends with code 1 and a page of help on bad flags,
    and with a traceback on bad configs. Flags are not global here, so that
    commands can import each other, and tests can call them.
  """
  argv = list(sys.argv if argv is None else argv)
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file, with arguments after a colon: '
    'configs/kinetics400.py:grid=both,seed=1. Any of its fields can be '
    'overridden by --config.field=value.',
    lock_config=True,
    flag_values=values,
    sys_argv=argv,
  )
  define_flags(values)
  if {'--help', '-h', '-help'} & set(argv[1:]):
    print(f'{sys.modules[main.__module__].__doc__}\n{values.get_help()}')
    return 0
  try:
    _parse(values, argv)
    main(values)
  except ConfigError as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  except RunError as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 1
  return 0


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
  """Parses all flags and checks the config.

  Raises:
    ConfigError: A flag is unknown or has a wrong value, a config cannot be
      read or refuses its arguments, or something else stands between flags.
  """
  # Configs import this module for its error.
  from configs import default

  try:
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
  if len(rest) > 1:
    raise ConfigError(
      f'unexpected argument {rest[1]!r}; flags look like --config=FILE.'
    )
  default.validate(config)


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
