"""Writes labels of streams as they come: text, JSON lines, CSV, subtitles."""

import csv
import html
import io
import json
from collections.abc import Sequence
from typing import NamedTuple

from mgjax.pictures import printable


class Label(NamedTuple):
  """What a window shows.

  Attributes:
    file: Name of the source.
    start_s: Of the window, in seconds from the start of the source.
    end_s: Likewise.
    predictions: See `output.add_predictions`.
  """

  file: str
  start_s: float
  end_s: float
  predictions: Sequence[dict]


class Writer:
  """Writes labels to a file, each whole and at once.

  Attributes:
    file: Where to.
  """

  def __init__(self, file: io.TextIOBase):
    self.file = file
    self._source: str | None = None  # Of the label before.

  def write(self, label: Label) -> None:
    """Writes a label, so that whoever reads it has it."""
    text = self._text(label)
    self._source = label.file
    self.file.write(text)
    self.file.flush()

  def _text(self, label: Label) -> str:
    raise NotImplementedError

  def end(self) -> None:
    """Writes what was held back, at the end."""


class Text(Writer):
  """A line for each window, below the name of its source."""

  def _text(self, label: Label) -> str:
    likely = '  '.join(
      f'{100 * p["probability"]:6.2f} %  {printable(p["label"])}'
      for p in label.predictions
    )
    title = '' if label.file == self._source else f'{printable(label.file)}\n'
    times = f'{_clock(label.start_s, ".")} - {_clock(label.end_s, ".")}'
    return f'{title}  {times}  {likely}\n'


class JsonLines(Writer):
  """An object for each window: 'file', 'start_s', 'end_s', 'predictions'."""

  def _text(self, label: Label) -> str:
    return json.dumps(label._asdict()) + '\n'


class Csv(Writer):
  """A row for each label of each window."""

  _COLUMNS = ('file', 'start_s', 'end_s', 'rank', 'label', 'probability')

  def _text(self, label: Label) -> str:
    rows = [] if self._source is not None else [self._COLUMNS]
    for rank, found in enumerate(label.predictions, start=1):
      times = (f'{label.start_s:.3f}', f'{label.end_s:.3f}')
      likely = (found['label'], f'{found["probability"]:.6f}')
      rows.append((label.file, *times, rank, *likely))
    lines: list[str] = []
    csv.writer(_Lines(lines), lineterminator='\n').writerows(rows)
    return ''.join(lines)


class _Lines:
  """A file for `csv`, which writes to nothing else."""

  def __init__(self, lines: list[str]):
    self.write = lines.append


class SubRip(Writer):
  """Subtitles, as players show them.

  A label is shown while the middle of its window is the nearest one; the first
  from the start on, and the last one until the end.
  """

  _POINT = ','
  _HEAD = ''

  def __init__(self, file: io.TextIOBase):
    super().__init__(file)
    self._held: Label | None = None
    self._number = 0
    self._from_s = 0.0

  def _text(self, label: Label) -> str:
    # Held back until the next one says how long it is shown.
    held, self._held = self._held, label
    if held is None:
      return self._HEAD
    middles = (held.start_s + held.end_s + label.start_s + label.end_s) / 4
    return self._cue(held, middles)

  def end(self) -> None:
    if self._held:
      self.file.write(self._cue(self._held, self._held.end_s))
      self.file.flush()

  def _cue(self, label: Label, until_s: float) -> str:
    self._number += 1
    # Where time stamps go back, subtitles cannot.
    from_s, self._from_s = self._from_s, max(self._from_s, until_s)
    times = f'{_clock(from_s, self._POINT)} --> '
    times += _clock(self._from_s, self._POINT)
    lines = [
      f'{self._escape(printable(p["label"]))} {100 * p["probability"]:.0f} %'
      for p in label.predictions
    ]
    return '\n'.join([str(self._number), times, *lines, '', ''])

  def _escape(self, name: str) -> str:
    return name


class WebVtt(SubRip):
  """Subtitles, as browsers show them.

  Source: https://www.w3.org/TR/webvtt1/
  """

  _POINT = '.'
  _HEAD = 'WEBVTT\n\n'

  def _escape(self, name: str) -> str:
    return html.escape(name, quote=False)


WRITERS: dict[str, type[Writer]] = {
  'text': Text,
  'jsonl': JsonLines,
  'csv': Csv,
  'srt': SubRip,
  'vtt': WebVtt,
}


def _clock(seconds: float, point: str) -> str:
  """Seconds as '01:02:03.004', with a point or a comma."""
  whole, milliseconds = divmod(round(1000 * seconds), 1000)
  minutes, whole = divmod(whole, 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours:02}:{minutes:02}:{whole:02}{point}{milliseconds:03}'
