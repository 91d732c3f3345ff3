"""Reads a source and cuts its windows while the network computes."""

import queue
import threading

from mgjax.data.frame_reader import FrameReader
from mgjax.predicting import windows

# How often a thread that waits looks whether it is to end.
_LOOK_S = 0.2


class WindowThread:
  """A thread that has the next window ready.

  A file waits for the network. A live source does not: of its windows the
  newest one is kept, and those that it replaces are left out.

  Attributes:
    num_left_out: Windows that were.
  """

  def __init__(
    self, reader: FrameReader, settings: windows.Settings, live: bool | None
  ):
    """Starts it.

    Args:
      reader: Of the source, not opened yet.
      settings: Which windows there are.
      live: Whether windows may be left out; None: where the source is live.
    """
    self.num_left_out = 0
    self._reader, self._settings, self._live = reader, settings, live
    self._ready: queue.Queue = queue.Queue(1)
    self._closing = threading.Event()
    # Nobody waits for it: a camera that sends nothing cannot be interrupted.
    self._thread = threading.Thread(
      target=self._run, daemon=True, name='windows'
    )
    self._thread.start()

  def next(self) -> windows.Window | None:
    """The next window; None: there is none yet, so that signals can be heard.

    Raises:
      EOFError: There are no more.
      ConfigError: As `windows.windows`.
      DecodeError: As `FrameReader.open`, `FrameReader.shown`.
      RunError: As `FrameReader.shown`.
    """
    try:
      found = self._ready.get(timeout=_LOOK_S)
    except queue.Empty:
      return None
    if isinstance(found, BaseException):
      raise found
    return found

  def close(self) -> None:
    """Has the thread end."""
    self._closing.set()

  def _run(self) -> None:
    end: BaseException = EOFError()
    try:
      self._reader.open()
      live = self._reader.is_live if self._live is None else self._live
      for window in windows.windows(self._reader, self._settings):
        if live:
          self._leave_out()
        if not self._put(window):
          break
    except BaseException as error:  # Raised where it can be told.
      end = error
    finally:
      self._reader.close()
    self._put(end)

  def _leave_out(self) -> None:
    """Removes a window that nobody has taken."""
    try:
      self._ready.get_nowait()
      self.num_left_out += 1
    except queue.Empty:
      pass

  def _put(self, item: windows.Window | BaseException) -> bool:
    """Hands something over, once there is room; False: nobody wants it."""
    while not self._closing.is_set():
      try:
        self._ready.put(item, timeout=_LOOK_S)
        return True
      except queue.Full:
        continue
    return False
