"""What a process does that works for another one."""

import multiprocessing
import os
import signal
import threading


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
