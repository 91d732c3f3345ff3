"""One run, one folder: who works in a folder, and whether it is still theirs.

The file run.lock in a run's folder says which process writes there. The system
keeps a lock on it for as long as that process lives (flock), whatever way it
ends, so a run that was killed can go on at once. Where processes on several
machines can have the folder open (a network disk, an object store), that is not
enough: the holder counts up a number in the file. Another process that wants
the folder watches whether the number still changes. So the clocks of the
machines need not agree.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from mgjax import files, stop_signal
from mgjax.errors import ConfigError, RunError
from mgjax.run import checkpoint

NAME = 'run.lock'
BEAT_S = 15.0  # Between two counts of the holder.
STALE_S = 60.0  # A holder that has not counted for so long is taken for dead.
SETTLE_S = 2.0  # Wait after writing: of two that write, the later one holds.


class RunLock:
  """The right of this process to write in a folder.

  Only the first process of a run has one. A context manager: leaving it gives
  the folder free.
  """

  def __init__(self, workdir: epath.PathLike):
    self._workdir = epath.Path(workdir)
    self._path = self._workdir / NAME
    self._file: int | None = None  # On a disk, what is locked.
    self._entry: dict = {}  # What is in the file.
    self._kept: dict[epath.Path, bytes] = {}
    self._writing = threading.Lock()
    self._ended = threading.Event()

  @property
  def is_held(self) -> bool:
    """Whether this process has the folder."""
    return bool(self._entry)

  def take(self) -> None:
    """Takes the folder, which is made where there is none, if it is free.

    It is taken over from a process that has died. Where that may have been on
    another machine, this takes up to STALE_S.

    Raises:
      ConfigError: Another process has it, or it cannot be written.
    """
    if self.is_held:
      return
    try:
      self._acquire()
    except BaseException as error:
      self._entry = {}
      self._unlock()
      if not isinstance(error, OSError):
        raise
      raise ConfigError(
        f'--workdir={self._workdir} cannot be written: '
        f'{error.strerror or error}'
      ) from error
    stop_signal.before_end(self.release)
    threading.Thread(target=self._beat, name='run-lock', daemon=True).start()

  def _acquire(self) -> None:
    self._workdir.mkdir(parents=True, exist_ok=True)
    was_there = self._path.exists()
    is_locked = not files.is_remote(self._path) and self._lock_file()
    self._wait_for_others(is_locked, was_there)
    self._entry = {
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
      'machine': _machine(),
      'run': uuid.uuid4().hex,
      'beat': 0,
    }
    self._write()
    if not is_locked:  # Two may have written at the same time.
      time.sleep(SETTLE_S)
      if found := self._others():
        raise self._refusal(found)

  def keep(self, path: epath.Path) -> None:
    """Remembers a file, which nobody may change as long as the run lasts."""
    self._kept[path] = path.read_bytes()

  def check(self) -> None:
    """Checks that the folder is where it was and has not been changed.

    Raises:
      RunError: It has been moved, removed or taken over, or a file that is to
        be kept has changed.
    """
    self._check_folder()
    for path, content in self._kept.items():
      with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == content:
          continue
      raise RunError(
        f'{path} has been changed or removed while a run was writing to its '
        f'folder, so the run has ended; {_newest(self._workdir)}. The next '
        'start compares its own settings with those in the file'
      )

  @contextlib.contextmanager
  def explain(self) -> Iterator[None]:
    """Explains an error of the work inside by a folder that is gone.

    Raises:
      RunError: It is gone.
    """
    try:
      yield
    except (OSError, RunError):
      self._check_folder()
      raise

  def _check_folder(self) -> None:
    """Raises RunError where the folder is no longer this process's."""
    if not self.is_held:
      return
    found = self._read()
    if found and found.get('run') == self._entry['run']:
      return
    folder, workdir = self._moved_to(), f'--workdir={self._workdir}'
    if folder:
      raise RunError(
        f'{workdir} has been moved to {folder} while a run was writing to it, '
        f'so the run has ended; {_newest(folder)}: the same command with '
        f'--workdir={folder} goes on from there'
      )
    what = 'has been moved or removed while a run was writing to it, so the'
    if found:
      what = f'has been taken over by {_who(found)}, so this'
    raise RunError(f'{workdir} {what} run has ended; {_newest(self._workdir)}')

  def release(self) -> None:
    """Gives the folder free."""
    self._ended.set()
    # Not for ever: the disk may be gone.
    if self.is_held and self._writing.acquire(timeout=10.0):
      with contextlib.suppress(OSError):
        found = self._read()
        if folder := self._moved_to():
          (folder / NAME).unlink()
        elif found and found.get('run') == self._entry['run']:
          self._path.unlink()
      self._entry = {}
      self._writing.release()
    self._unlock()

  def __enter__(self) -> 'RunLock':
    return self

  def __exit__(self, *error) -> None:
    self.release()

  def _lock_file(self) -> bool:
    """Locks the file; returns False where the disk has no locks.

    Raises:
      ConfigError: Another process has locked it.
    """
    while True:
      self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise self._refusal(self._read() or {}) from None
      except OSError:  # Some network disks have no locks.
        self._unlock()
        return False
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(self._file), os.stat(self._path)):
          return True
      self._unlock()  # Who had it has removed it in between.

  def _unlock(self) -> None:
    if self._file is not None:
      os.close(self._file)
      self._file = None

  def _wait_for_others(self, is_locked: bool, was_there: bool) -> None:
    """Waits until it is certain that the process in the file has died.

    Args:
      is_locked: Whether the system says that no process of this machine has
        the folder.
      was_there: Whether there was a file before this process tried to lock it.

    Raises:
      ConfigError: The other process lives.
    """
    found = self._read()
    if found is None or (not found and not was_there):
      return
    if is_locked and (not found or found.get('machine') == _machine()):
      return
    print(
      f'{self._workdir} was last written by {_who(found)}; waiting up to '
      f'{STALE_S:g} s to see whether that is still at work',
      file=sys.stderr,
    )
    deadline = time.monotonic() + STALE_S
    while time.monotonic() < deadline:
      time.sleep(min(1.0, STALE_S / 20))
      now = self._read()
      if now is None:
        return
      if now != found:
        raise self._refusal(now)

  def _others(self) -> dict | None:
    """What is in the file, where it is not this process's."""
    found = self._read()
    if found and found.get('run') != self._entry['run']:
      return found
    return None

  def _read(self) -> dict | None:
    """What is in the file; None where there is none, {} where it is no entry.

    Raises:
      OSError: It cannot be read.
    """
    try:
      content = self._path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
      return None
    try:
      found = json.loads(content)
    except ValueError:  # Who made it was killed before it was written.
      return {}
    return found if isinstance(found, dict) else {}

  def _write(self) -> None:
    content = (json.dumps(self._entry) + '\n').encode()
    if self._file is None:
      files.write_bytes(self._path, content)
      return
    # In place: the lock is that of the file, not of its name.
    os.pwrite(self._file, content, 0)
    os.ftruncate(self._file, len(content))
    os.fsync(self._file)

  def _beat(self) -> None:
    """Counts up until the folder is given free or is another's."""
    while not self._ended.wait(BEAT_S):
      # The next time will do, whatever it was that an object store answers.
      with self._writing, contextlib.suppress(Exception):
        if self._ended.is_set() or self._others():
          return
        self._entry['beat'] += 1
        self._write()

  def _moved_to(self) -> pathlib.Path | None:
    """Where the folder is now, as far as the system tells; None: not moved."""
    if self._file is None:
      return None
    locked = os.fstat(self._file)
    with contextlib.suppress(OSError):
      if os.path.samestat(os.stat(self._path), locked):
        return None
    with contextlib.suppress(OSError):  # Linux.
      place = pathlib.Path(f'/proc/self/fd/{self._file}').readlink()
      if os.path.samestat(place.stat(), locked):
        return place.parent
    return None

  def _refusal(self, found: dict) -> ConfigError:
    return ConfigError(
      f'--workdir={self._workdir} is in use by {_who(found)}; wait for that '
      'run or stop it, or use another folder'
    )


def _who(entry: dict) -> str:
  """Names the process that an entry is of."""
  if 'pid' not in entry:
    return 'another process'
  return (
    f'process {entry["pid"]} on host {entry.get("host")} (since '
    f'{entry.get("since")})'
  )


def _machine() -> str:
  """The same for all processes of one running system, containers included."""
  with contextlib.suppress(OSError):  # Linux.
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
    return boot.read_text().strip()
  return socket.gethostname()


def _newest(folder: epath.PathLike) -> str:
  """Says where the newest checkpoint in a folder is."""
  if steps := checkpoint.steps(folder):
    return f'the newest checkpoint is {folder}/checkpoints/{steps[-1]}'
  return 'there is no checkpoint of it'
