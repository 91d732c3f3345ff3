"""Small files of a run, on a disk or in an object store (gs://, s3://)."""

import errno
import os
import socket

from etils import epath

from mgjax.cli import RunError

# What a full or read-only disk answers.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in an object store, which knows whole files only."""
  return '://' in os.fspath(path)


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a file whole or not at all: a kill leaves the old or the new one."""
  write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, content: bytes) -> None:
  """Writes a file whole or not at all: a kill leaves the old or the new one."""
  path = epath.Path(path)
  if is_remote(path):  # A file appears there once it is complete.
    path.write_bytes(content)
    return
  # Several processes may write it, such as two evaluations of a run.
  own = f'{socket.gethostname()}-{os.getpid()}'
  beside = path.with_name(f'{path.name}.{own}.tmp')
  beside.write_bytes(content)
  beside.replace(path)


def disk_error(error: OSError, workdir: epath.PathLike) -> RunError | None:
  """Returns what to tell the user where an error is the disk's, else None."""
  if error.errno not in _DISK_ERRORS:
    return None
  return RunError(
    f'--workdir={os.fspath(workdir)} cannot be written: {error.strerror} '
    f'({error.filename or "a file that was open"}). What was complete is kept; '
    'once there is room, the same command goes on from the newest checkpoint'
  )
