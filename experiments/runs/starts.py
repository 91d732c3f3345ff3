"""The starts of a training: when, by what code, on which CPUs, how long.

A run's folder keeps them, so that a run that is killed and started again, or
that has ended but has no record yet, is recorded with what it ran on, not with
what is there by then.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

from etils import epath

from mgjax import environment, files
from mgjax.cli import ConfigError

_FILE = 'starts.json'
_REFUSED = 2  # Exit code of a command whose settings cannot work.


class Call(NamedTuple):
  """What a command took.

  Attributes:
    code: Its exit code; below 0, the signal that ended it.
    wall_seconds: From its start to its end.
    cpu_seconds: User and system time, that of the processes that it started and
      waited for included.
  """

  code: int
  wall_seconds: float
  cpu_seconds: float


def call(
  command: Sequence[str],
  log: IO[str] | None = None,
  environ: Mapping[str, str] | None = None,
) -> Call:
  """Runs a command of Python's, such as ('-m', 'mgjax.train').

  Args:
    command: Arguments of this Python.
    log: Where it prints; None: here.
    environ: Environment variables beside those of this process.
  """
  begin = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, *command],
    stdout=log,
    stderr=log,
    env={**os.environ, **(environ or {})},
  )
  try:
    # Of this child alone: several may run at once.
    _, status, used = os.wait4(process.pid, 0)
  except BaseException:
    process.kill()
    process.wait()
    raise
  process.returncode = os.waitstatus_to_exitcode(status)
  return Call(
    process.returncode,
    time.perf_counter() - begin,
    used.ru_utime + used.ru_stime,
  )


def train(
  command: Sequence[str],
  workdir: epath.Path,
  version: Mapping[str, str],
  log: IO[str] | None = None,
  environ: Mapping[str, str] | None = None,
) -> None:
  """Starts a training, or goes on with it, and notes the start in its folder.

  Args:
    command: See `call`.
    workdir: The run's folder.
    version: Of the code that will run.
    log: See `call`.
    environ: See `call`.

  Raises:
    CalledProcessError: The training failed.
    ConfigError: Other code has begun the run.
  """
  check_code(workdir, version)
  earlier = read(workdir)
  start = {
    'date': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    **version,
    'load_average': os.getloadavg(),
    'affinity': environment.cpus(),  # Of this thread.
  }
  workdir.mkdir(parents=True, exist_ok=True)
  _write(workdir, [*earlier, start])
  took = call(command, log, environ)
  end = {
    'load_average_after': os.getloadavg(),
    'wall_seconds': took.wall_seconds,
    'cpu_seconds': took.cpu_seconds,
  }
  if took.code == _REFUSED:  # Nothing has run.
    _write(workdir, earlier)
  else:
    _write(workdir, [*earlier, {**start, **end}])
  if took.code:
    raise subprocess.CalledProcessError(took.code, command)


def check_code(workdir: epath.Path, version: Mapping[str, str]) -> None:
  """Refuses to go on with a run that other code has begun.

  Args:
    workdir: The run's folder.
    version: Of the code that will run.

  Raises:
    ConfigError: Other code has begun it.
  """
  earlier = read(workdir)
  if earlier and earlier[0]['package_tree'] != version['package_tree']:
    raise ConfigError(
      f'{workdir}: mgjax has changed since this run began (commit '
      f'{earlier[0]["commit"]}), and a record is about one code; go back to '
      'that, or give another --workdir'
    )


def read(workdir: epath.Path) -> list[dict]:
  """The starts that a run's folder keeps, from the first."""
  path = workdir / _FILE
  return files.read_json(path, list) if path.exists() else []


def _write(workdir: epath.Path, starts: Sequence[Mapping]) -> None:
  files.write_text(workdir / _FILE, json.dumps(starts, indent=1) + '\n')


def conditions(workdir: epath.Path) -> dict:
  """What a record says of the starts of a finished run.

  Args:
    workdir: The run's folder.

  Returns:
    Of the first start 'date', 'load_average', 'affinity' and the version of the
    code; of the last 'load_average_after'; of all 'resumed', whether a launch
    went on with, or began anew, what an earlier one had begun, and
    'wall_seconds' and 'cpu_seconds'. What is of an end is None where nobody
    could note it: the launch was killed, and the training with it or not.
  """
  starts = read(workdir)
  # Each launch that came to its first step has opened one.
  launches = len([*workdir.glob('events.out.tfevents.*')])
  noted = len(starts) >= launches and all('cpu_seconds' in s for s in starts)
  return {
    **{k: v for k, v in starts[0].items() if not k.endswith('_seconds')},
    'load_average_after': starts[-1].get('load_average_after'),
    'resumed': launches > 1,
    **{
      name: sum(s[name] for s in starts) if noted else None
      for name in ('wall_seconds', 'cpu_seconds')
    },
  }
