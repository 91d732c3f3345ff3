"""What a process does that works for another one."""

import contextlib
import functools
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

from mgjax import stop_signal


def before_start() -> None:
  """To be called by the thread that starts processes, before it does.

  A command blocks Ctrl-C for them (mgjax/stop_signal.py), but Python lets it
  through again when it starts the process that watches over shared memory.
  """
  _end_with_this_process()
  if stop_signal.is_installed():
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@functools.cache  # Once is enough.
def _end_with_this_process() -> None:
  """Kills the children before this process ends at once.

  They would see it themselves (`start`), but maybe after they have tried to
  send to it what they have made: that fails, with a traceback of theirs.
  """

  def kill() -> None:
    # A pool starts another worker for each that it loses. One that is started
    # from now on finds its parent gone, and says so to nobody.
    _silence_new_children()
    # One that is just being started is not among the active ones yet, and would
    # complain that it has not heard all of what to do.
    for pid in _spawned():
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in multiprocessing.active_children():  # Where there is no /proc.
      child.kill()

  stop_signal.before_end(kill)


def _silence_new_children() -> None:
  """Gives standard error of this process, and so of new children, to nobody."""
  with contextlib.suppress(OSError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _spawned() -> Iterator[int]:
  """Children that Python has started to work for this process, on Linux."""
  pids: list[str] = []
  for children in pathlib.Path('/proc/self/task').glob('*/children'):
    with contextlib.suppress(OSError):  # The thread has just ended.
      pids += children.read_text().split()
  for pid in pids:
    with contextlib.suppress(OSError):  # So has the process.
      command = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
      # Not what watches over shared memory, which tidies up at the end. A fork
      # has the command of this process until it runs its own.
      if b'spawn_main' in command or command == _own_command():
        yield int(pid)


@functools.cache
def _own_command() -> bytes:
  return pathlib.Path('/proc/self/cmdline').read_bytes()


def start() -> None:
  """Leaves Ctrl-C to the parent, and ends when the parent has ended."""
  # Ctrl-C reaches all processes; the parent stops the others.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  # A parent that was killed cannot.
  parent = multiprocessing.parent_process()
  assert parent is not None

  def follow_parent() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=follow_parent, daemon=True).start()
