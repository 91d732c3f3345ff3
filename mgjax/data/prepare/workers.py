"""Writes all shards with the cores of this machine.

The videos are read by processes of their own, since a damaged file may crash
its decoder. Every worker keeps a note of the video that it is at. The parent
counts, shows the progress, stops the others, and finds out by the notes at
which video one has died.
"""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import process
from typing import Any

from mgjax import environment
from mgjax.data import child_process
from mgjax.data.prepare import layout, resume
from mgjax.data.prepare.plan import Item, Plan, Shard
from mgjax.data.prepare.settings import Settings
from mgjax.data.prepare.shards import key_of, write_shard
from mgjax.errors import RunError
from mgjax.progress import Progress


def write(
  plan: Plan, todo: Sequence[Shard], settings: Settings, *, progress: bool
) -> bool:
  """Writes shards, and shows the progress.

  Args:
    plan: The plan of the data set.
    todo: The shards that are to be written.
    settings: Have the number of processes and the tolerated damage.
    progress: Whether to show a progress bar.

  Returns:
    Whether all shards are written. False: a worker has died, and a note says at
    which video, so that calling this again may help.

  Raises:
    RunError: Too many videos are damaged, a file or the memory is out of reach,
      or a worker has died for an unknown reason.
  """
  num_todo = sum(len(shard.items) for shard in todo)
  num_bad = len(plan.misnamed)
  for shard in set(plan.shards) - set(todo):
    _, records = resume.read_part(shard)
    num_bad += sum(record['status'] == 'quarantined' for record in records)
  # The work of earlier runs does not count for the time left.
  num_done = plan.num_items - num_todo
  bar = Progress(plan.num_items, num_done, unit='video', quiet=not progress)

  def update(num_new: int, num_bad: int) -> None:
    nonlocal num_done
    num_done += num_new
    bar.update(num_done, f'{num_bad} damaged  {bar.time_left(num_done)}')
    resume.check_bad(num_bad, plan, settings)

  with contextlib.closing(bar):
    # With --num_workers=1 this process reads the videos: a crash ends it.
    if todo and settings.num_workers != 1:
      num_workers = settings.num_workers or environment.num_cpus()
      return _write_in_processes(todo, num_workers, num_bad, update)

    def count(is_bad: bool) -> None:
      nonlocal num_bad
      num_bad += is_bad
      update(1, num_bad)

    for shard in todo:
      write_shard(shard, count)
  return True


def _write_in_processes(
  todo: Sequence[Shard],
  num_workers: int,
  num_bad: int,
  update: Callable[[int, int], None],
) -> bool:
  """Writes shards in processes.

  Args:
    todo: The shards, at least one.
    num_workers: Number of processes, if there are so many shards.
    num_bad: Damaged videos before.
    update: Gets the number of videos since the last call, and the number of
      all damaged ones; raises to stop.

  Returns:
    As `write`.
  """
  parts = todo[0].part.parent
  # Not fork: the parent may have threads (TFDS), which a fork breaks.
  context = multiprocessing.get_context('spawn')
  counts = context.Array('q', 3)  # Videos done, damaged; whether to stop.
  child_process.before_start()
  pool = concurrent.futures.ProcessPoolExecutor(
    min(num_workers, len(todo)),
    mp_context=context,
    initializer=_start_worker,
    initargs=(counts, parts),
  )
  num_shown = 0
  with pool:
    pending = {pool.submit(write_and_count, shard) for shard in todo}
    workers = multiprocessing.active_children()
    try:
      while pending:
        finished, pending = concurrent.futures.wait(
          pending, 0.2, concurrent.futures.FIRST_COMPLETED
        )
        for future in finished:
          future.result()
        num_done, num_new_bad, _ = counts[:]
        update(num_done - num_shown, num_bad + num_new_bad)
        num_shown = num_done
    except process.BrokenProcessPool as error:
      pool.shutdown(wait=True)
      _log_deaths(workers, parts, error)
      return False
    except BaseException:
      # Workers stop after the video that they are at.
      counts[2] = 1
      pool.shutdown(wait=True, cancel_futures=True)
      raise
  return True


def _log_deaths(
  workers: Sequence[multiprocessing.process.BaseProcess],
  parts: pathlib.Path,
  error: process.BrokenProcessPool,
) -> None:
  """Writes down at which videos workers died, and decides whether to go on.

  Args:
    workers: All workers of the broken pool.
    parts: Folder of their notes.
    error: What the pool has raised.

  Raises:
    RunError: A person should look: no video was read, or a worker was killed.
  """
  deaths = []
  for worker in workers:
    note, code = _note(parts, worker.pid), worker.exitcode
    # The pool terminates the workers that are still alive.
    if code not in (0, -signal.SIGTERM) and note.exists():
      cause = signal.strsignal(-code) if code < 0 else f'exit code {code}'
      deaths.append({**json.loads(note.read_text()), 'cause': cause})
  layout.append(parts / layout.DEATHS, deaths)
  # SIGKILL is how the system ends a process when the memory is used up, and how
  # a person does. What a file does to its decoder has another cause.
  killed = signal.strsignal(signal.SIGKILL)
  if not deaths or any(d['cause'] == killed for d in deaths):
    places = ''.join(f' at {d["file"]} ({d["cause"]})' for d in deaths)
    raise RunError(
      f'a worker died{places}, perhaps out of memory; finished shards are '
      'kept: start again to continue, perhaps with fewer --num_workers; a '
      'file at which a worker dies a second time is left out.'
    ) from error


def _note(parts: pathlib.Path, pid: int | None) -> pathlib.Path:
  """Path of the note of a worker: which video it is at."""
  return parts / f'at-{pid}'


class _StoppedError(Exception):
  """The parent told this worker to stop."""


# Of a worker: what `_write_in_processes` counts, and the folder of its note.
_counts: Any = None
_parts: pathlib.Path


def _start_worker(counts: Any, parts: pathlib.Path) -> None:
  global _counts, _parts
  _counts = counts
  _parts = parts
  child_process.start()


def write_and_count(shard: Shard) -> None:
  """Writes a shard in a worker.

  Args:
    shard: What to write.

  Raises:
    RunError: As for `write_shard`.
  """

  def count(is_bad: bool) -> None:
    with _counts.get_lock():
      _counts[0] += 1
      _counts[1] += is_bad
    if _counts[2]:
      raise _StoppedError

  note = _note(_parts, os.getpid())

  def say_where(item: Item) -> None:
    note.write_text(json.dumps(key_of(item)))

  write_shard(shard, count, say_where)
  note.unlink(missing_ok=True)
