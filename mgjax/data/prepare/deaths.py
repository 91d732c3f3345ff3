"""Videos that kill the process which reads them.

A decoder may crash, and take its process with it. Every worker therefore keeps
a note of the video that it is at. When it has died, the note tells which video
that was; a video at which several workers died is not read again.
"""

import json
import multiprocessing.process
import os
import pathlib
import signal
from collections.abc import Iterable, Sequence
from typing import Any

from mgjax.data.prepare.folder import AT, DEATHS, PARTS, append
from mgjax.data.prepare.plan import Item

# One death may have another cause, such as too little memory.
_MAX_DEATHS = 2


def note_of(parts: pathlib.Path, pid: int) -> pathlib.Path:
  """Returns the path of a worker's note."""
  return parts / f'{AT}{pid}'


def key_of(item: Item) -> dict[str, Any]:
  """Returns what tells a file from others, and from its own later versions."""
  return {'file': item.path, 'size': item.size, 'mtime_ns': item.mtime_ns}


def log(
  workers: Iterable[multiprocessing.process.BaseProcess], parts: pathlib.Path
) -> list[dict[str, Any]]:
  """Writes down at which videos workers died.

  Args:
    workers: All workers of a pool that is broken.
    parts: Folder of their notes.

  Returns:
    What was written: key and cause of every death.
  """
  deaths = []
  for worker in workers:
    note = note_of(parts, worker.pid)
    code = worker.exitcode
    # The pool terminates the workers that are still alive.
    if code in (0, -signal.SIGTERM) or not note.exists():
      continue
    cause = signal.strsignal(-code) if code < 0 else f'exit code {code}'
    deaths.append({**json.loads(note.read_text()), 'cause': cause})
  append(parts / DEATHS, deaths)
  return deaths


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns key and cause of all deaths so far, of earlier runs as well.

  Args:
    folder: Folder of the data set.
  """
  try:
    text = (folder / PARTS / DEATHS).read_text(encoding='utf-8')
  except FileNotFoundError:
    return []
  # A kill leaves half a line.
  return [json.loads(line) for line in text.splitlines() if line.endswith('}')]


def why_not(item: Item, deaths: Sequence[dict[str, Any]]) -> str | None:
  """Returns why a video must not be read; None: it may be.

  Args:
    item: The video.
    deaths: What `read` has returned.
  """
  key = key_of(item).items()
  causes = [death['cause'] for death in deaths if key <= death.items()]
  if len(causes) < _MAX_DEATHS:
    return None
  return f'kills the process that reads it: {causes[-1]}'


def write_note(item: Item, parts: pathlib.Path) -> None:
  """Notes in a worker that it is at a video.

  Args:
    item: The video.
    parts: Folder of the notes.
  """
  note_of(parts, os.getpid()).write_text(json.dumps(key_of(item)))


def remove_note(parts: pathlib.Path) -> None:
  """Notes in a worker that it is at none.

  Args:
    parts: Folder of the notes.
  """
  note_of(parts, os.getpid()).unlink(missing_ok=True)
