"""SIGTERM and Ctrl-C, from the first moment of a command to its last.

Python runs its own signal handlers in the main thread, between two of its
instructions: during a compilation, or in a callback of the garbage collector
(JAX has one, which swallows the exception), nobody hears. So a thread that does
nothing else is woken by every signal. As long as nothing can be lost it ends
the process at once; once a run has something to keep it only notes the first
signal, and the run ends after the batch that it computes. The second one ends
it at once in any case.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

EXIT_INTERRUPTED = 130
# The process may be started again, and then goes on: EX_TEMPFAIL of sysexits.h.
EXIT_RESTART = 75

_NAMES = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}
# So long callbacks have in a process that ends at once. They take milliseconds,
# but on a machine that does ten times what it can more than a second.
_LAST_WORDS_S = 5.0


class Stopped(Exception):
  """A signal asks the program to end. Its argument is the signal's number."""


class Listener:
  """Hears the signals of a process.

  Attributes:
    received: Number of the first signal since `defer`; None: there was none.
  """

  def __init__(self):
    self.received: int | None = None
    self._waits_for: Callable[[], str] | None = None
    self._callbacks: list[Callable[[int], None]] = []

  def start(self) -> None:
    """Starts to listen.

    Raises:
      ValueError: This is not the main thread, which alone can.
    """
    self._handlers = {n: signal.getsignal(n) for n in _NAMES}
    for number in _NAMES:
      # With any handler, Python's own one in C writes to the pipe at once.
      signal.signal(number, lambda number, frame: None)
    reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._wakeup_fd = signal.set_wakeup_fd(
      self._writer, warn_on_full_buffer=False
    )
    threading.Thread(
      target=self._listen, args=(reader,), name='signals', daemon=True
    ).start()
    # A terminal sends Ctrl-C to all processes of a command. Those that are
    # started from now on leave it to this one, which ends them with itself.
    self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

  def stop(self) -> None:
    """Stops to listen: signals do what they did before."""
    signal.set_wakeup_fd(self._wakeup_fd)
    os.close(self._writer)  # Ends the thread.
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

  def defer(self, waits_for: Callable[[], str]) -> None:
    """Only notes the first signal from now on: there is something to lose.

    Args:
      waits_for: Says what the process still does before it ends, and how long
        that may take; called in another thread.
    """
    self._waits_for = waits_for

  def check(self, peers) -> None:
    """Ends what all processes of a run do where one of them has a signal.

    Args:
      peers: The processes, all of which call this equally often.

    Raises:
      Stopped: One of them has.
    """
    signals = [s for s in peers.exchange(self.received) if s]
    if signals:
      raise Stopped(signals[0])

  @contextlib.contextmanager
  def at_end(self, callback: Callable[[int], None]) -> Iterator[None]:
    """Calls back where a signal ends the process at once, before `last_words`.

    Args:
      callback: Gets the signal's number. It is called in another thread, has
        seconds, and must not wait for the main thread.
    """
    self._callbacks.append(callback)
    try:
      yield
    finally:
      self._callbacks.remove(callback)

  def _listen(self, reader: int) -> None:
    # The parent of this process may be one of ours, and have blocked it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with os.fdopen(reader, 'rb', buffering=0) as numbers:
      while number := numbers.read(1):
        if number[0] in _NAMES:
          self._hear(signal.Signals(number[0]))

  def _hear(self, number: signal.Signals) -> None:
    name = _NAMES[number]
    if self._waits_for is None:
      self._end(number, f'stopped by {name}')
    elif self.received is None:
      self.received = number
      _say(
        f'{name}: the process will end after {self._waits_for()}; a second one '
        'ends it at once'
      )
    else:
      self._end(number, f'stopped by a second signal, {name}')

  def _end(self, number: int, text: str) -> None:
    def say_last_words() -> None:
      for callback in self._callbacks:
        with contextlib.suppress(Exception):
          callback(number)
      last_words()

    _say(text)
    thread = threading.Thread(target=say_last_words, daemon=True)
    with contextlib.suppress(RuntimeError):  # Python itself is ending.
      thread.start()
      thread.join(_LAST_WORDS_S)
    os._exit(exit_code(number))


_before_end: list[Callable[[], None]] = []


def before_end(callback: Callable[[], None]) -> None:
  """Has a function called where the process ends without Python's own way out.

  Args:
    callback: May be called in any thread, and must not wait for others.
  """
  _before_end.append(callback)


def last_words() -> None:
  """What is to be done before `os._exit`."""
  for callback in _before_end:
    with contextlib.suppress(Exception):
      callback()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()


# The one that has started in this process.
_listener: Listener | None = None


def install() -> None:
  """Listens for the rest of the process; the first statement of a command."""
  global _listener
  if _listener:
    return
  _listener = Listener()
  _listener.start()
  # A process that ends at once leaves shared memory behind. Python has another
  # one that removes it; that need not complain, in several lines.
  sys.warnoptions.append('ignore::UserWarning:multiprocessing.resource_tracker')
  atexit.register(_leave)  # The first to be registered is the last to run.


def is_installed() -> bool:
  """Whether a thread listens to the signals of this process."""
  return _listener is not None


def _leave() -> None:
  """Has nothing to do with signals while Python takes itself apart."""
  global _listener
  if _listener:
    _listener.stop()
    _listener = None
  for number in _NAMES:
    signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def listening() -> Iterator[Listener]:
  """The listener of the process, or one for a program that has none.

  At the end nothing is deferred any more. Outside the main thread, which alone
  can have one, it hears nothing.
  """
  global _listener
  if _listener:
    installed = _listener
    try:
      yield installed
    finally:
      if installed.received is None:
        installed._waits_for = None
    return
  listener = Listener()
  try:
    listener.start()
  except ValueError:
    yield listener
    return
  _listener = listener
  try:
    yield listener
  finally:
    _listener = None
    listener.stop()


def exit_code(number: int) -> int:
  """Exit code of a run that a signal has stopped."""
  return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_RESTART


def _say(text: str) -> None:
  """Writes a line, whatever the main thread is just writing."""
  line = f'\n{text}\n' if os.isatty(2) else f'{text}\n'
  with contextlib.suppress(OSError):
    os.write(2, line.encode())


def _before_fork() -> None:
  global _mask_before_fork
  if _listener is not None:
    _mask_before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, _NAMES)


def _after_fork_in_parent() -> None:
  if _listener is not None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask_before_fork)


def _after_fork_in_child() -> None:
  """Signals of the child are its own: the pipe is the parent's."""
  global _listener
  if _listener is not None:
    _listener = None
    signal.set_wakeup_fd(-1)
    for number in _NAMES:
      signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask_before_fork)


_mask_before_fork: set = set()
os.register_at_fork(
  before=_before_fork,
  after_in_parent=_after_fork_in_parent,
  after_in_child=_after_fork_in_child,
)
