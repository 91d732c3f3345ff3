"""Processes of a benchmark, each with a side that does what it is told.

A side may live in an interpreter of its own, so this module imports nothing but
the standard library. A worker reads one request a line from stdin and writes
one answer a line to stdout, both JSON; what the libraries print goes to stderr.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping


@contextlib.contextmanager
def started(
  python: str, module: str, environment: Mapping[str, str]
) -> Iterator[Callable[[dict], dict]]:
  """Starts a worker; yields ask(request) -> answer.

  Args:
    python: Its interpreter.
    module: That calls `serve`.
    environment: What it has beside this process's environment, which is
      stronger.
  """
  process = subprocess.Popen(
    [python, '-m', module],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    cwd=pathlib.Path(__file__).parents[2],
    env={**environment, **os.environ},
    text=True,
  )

  def ask(request: dict) -> dict:
    print(json.dumps(request), file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
      raise RuntimeError(f'{module} ended; its error is above.')
    return json.loads(answer)

  with process:
    try:
      yield ask
    finally:
      process.terminate()


def serve(answer: Callable[[dict], dict]) -> None:
  """Answers requests until there are no more."""
  # Nothing but answers may reach the pipe.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
