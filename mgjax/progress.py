"""A progress bar on a terminal, a line now and then in a log."""

import sys
import time

import tqdm

# A log that gets a line more often is hard to read.
_LOG_EVERY_S = 20.0


class Progress:
  """Shows how much of something is done; on stderr."""

  def __init__(
    self, total: int, initial: int = 0, *, unit: str, quiet: bool = False
  ):
    """Shows nothing yet.

    Args:
      total: How much there is to do.
      initial: Done before.
      unit: What is counted, in the singular: 'step'.
      quiet: Whether nothing is shown.
    """
    self._total = total
    self._unit = unit
    self._quiet = quiet
    self._logged = time.monotonic() - _LOG_EVERY_S
    self._first: tuple[float, int] | None = None
    self._ended = False
    self._bar = None
    if sys.stderr.isatty() and not quiet:
      self._bar = tqdm.tqdm(
        total=total,
        initial=initial,
        # Of 80 columns most are for the text, which begins with the time left.
        bar_format='{n_fmt}/{total_fmt}|{bar:6}| {desc}',
        dynamic_ncols=True,
      )

  def time_left(self, done: int) -> str:
    """'left 3:07', at the pace since the first call, which says 'left ?'."""
    now = time.monotonic()
    # Not since the start: what comes before the first is often slow, such as
    # the start of processes.
    if self._first is None:
      self._first = now, done
    begin, first = self._first
    if done == self._total:
      return f'left {duration(0.0)}'
    if done == first:
      return 'left ?'
    pace = (now - begin) / (done - first)
    return f'left {duration(pace * (self._total - done))}'

  def update(self, done: int, text: str) -> None:
    """Shows that `done` of the total are done, and a few words."""
    if self._quiet:
      return
    if self._bar is not None:
      self._bar.set_description_str(text, refresh=False)
      self._bar.update(done - self._bar.n)
    elif (
      # At the end at once, but not again for what is said after it.
      (done == self._total and not self._ended)
      or time.monotonic() - self._logged >= _LOG_EVERY_S
    ):
      self._ended = done == self._total
      self._logged = time.monotonic()
      print(
        f'{self._unit} {done}/{self._total}  {text}',
        file=sys.stderr,
        flush=True,
      )

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    if self._quiet:
      return
    if self._bar is not None:
      self._bar.clear()
    print(text, file=sys.stderr, flush=True)

  def close(self) -> None:
    """Leaves the bar as it is."""
    if self._bar is not None:
      self._bar.close()


def duration(seconds: float) -> str:
  """Seconds as '3:07' or '1:02:03'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'
