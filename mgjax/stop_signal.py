"""SIGTERM and Ctrl-C: a run ends after the batch that it computes."""

import signal

from mgjax.cli import EXIT_RESTART

EXIT_INTERRUPTED = 130


class Stopped(Exception):
  """A signal asks the program to end. Its argument is the signal's number."""


class StopSignal:
  """Notes SIGTERM and SIGINT; a run ends after the batch that it computes.

  A second signal acts at once, as if this were not here.
  """

  def __init__(self):
    self.received = None
    for number in (signal.SIGTERM, signal.SIGINT):
      try:
        signal.signal(number, self._note)
      except ValueError:  # Not the main thread, as in some tests.
        return

  def _note(self, number, frame) -> None:
    del frame
    self.received = number
    signal.signal(number, signal.SIG_DFL)


def exit_code(number: int) -> int:
  """Exit code of a run that a signal has stopped."""
  return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_RESTART
