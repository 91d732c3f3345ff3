"""Small files of a run, on a disk or in an object store (gs://, s3://)."""

import codecs
import contextlib
import errno
import json
import os
import pathlib
import socket
import tempfile
import types
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from mgjax.errors import ConfigError, RunError

# No file that is read whole is longer; Kinetics-700's annotation has 0.1 GB.
_MAX_BYTES = 2**30
# Brackets within brackets: settings and annotations have five.
_MAX_DEPTH = 100

# What a full or read-only disk answers.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_remote(path: epath.PathLike) -> bool:
  """Whether a path is in an object store, which knows whole files only."""
  return '://' in os.fspath(path)


def size_text(size: int) -> str:
  """A number of bytes in words: '2.5 GiB', below one GiB '0.3 MiB'."""
  unit, name = (2**30, 'GiB') if size >= 2**30 else (2**20, 'MiB')
  return f'{size / unit:.1f} {name}'


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a file whole or not at all: a kill leaves the old or the new one."""
  write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, content: bytes) -> None:
  """Writes a file whole or not at all: a kill leaves the old or the new one."""
  if is_remote(path):  # A file appears there once it is complete.
    epath.Path(path).write_bytes(content)
    return
  with replacing(path) as temporary:
    temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[pathlib.Path]:
  """Yields the name of a new file, which at the end takes the place of `path`.

  Readers see the old file or the new one whole, also after a kill or a loss of
  power. Where the body raises, the old file stays and the new one is removed.

  Args:
    path: A file on a disk, which need not exist.

  Yields:
    A path beside it that nobody else uses; the body must create this file.

  Raises:
    OSError: The disk refuses it.
  """
  path = pathlib.Path(path)
  # Several processes may write it, such as two evaluations of a run; those of
  # two containers can have the same name and number.
  own = f'{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}'
  temporary = path.with_name(f'{path.name}.{own}.tmp')
  try:
    yield temporary
    # Else the new name may survive a loss of power, and its contents not.
    with temporary.open('rb') as file:
      os.fsync(file.fileno())
    temporary.replace(path)
  finally:
    with contextlib.suppress(OSError):  # Replaced, or the disk is gone.
      temporary.unlink()


def make_folder(path: epath.PathLike, what: str) -> None:
  """Makes a folder for output, before the work whose output it is.

  Args:
    path: The folder, which may be there.
    what: Names it in errors, such as '--out=tables'.

  Raises:
    ConfigError: It cannot be made, or nothing can be written there.
  """
  folder = epath.Path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not is_remote(folder):
      # Permissions do not tell of disks that are full or read-only.
      with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b'x')
  except OSError as error:
    raise ConfigError(f'{what} cannot be written: {error.strerror}') from error


def check_output(path: epath.PathLike, what: str) -> None:
  """Looks whether a file can be written, before the work that makes it.

  Args:
    path: The file, which need not be there.
    what: Names it in errors, such as '--output=plan.png'.

  Raises:
    ConfigError: There is no such folder, it is a folder itself, or nothing can
      be written there.
  """
  path = epath.Path(path)
  if is_remote(path):
    return
  if path.is_dir():
    raise ConfigError(f'{what} is a folder; give the name of a file')
  if not path.absolute().parent.is_dir():
    raise ConfigError(f'{what}: {path.parent} is not a folder')
  make_folder(path.absolute().parent, what)


def read_text(path: epath.PathLike) -> str:
  """Reads a text file, without the mark that some editors put in front.

  Raises:
    ConfigError: It cannot be read, or is no text in UTF-8.
  """
  path = epath.Path(path)
  try:
    # Asked of the system: to some versions of etils a device is a file.
    if not is_remote(path) and path.exists() and not os.path.isfile(path):
      raise ConfigError(f'{path} is no file; give a text file.')
    if path.stat().length > _MAX_BYTES:
      raise ConfigError(
        f'{path} has {path.stat().length / 2**30:.1f} GiB; a text file has at '
        f'most {_MAX_BYTES >> 30}.'
      )
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
  except OSError as error:
    raise ConfigError(
      f'{path} cannot be read: {error.strerror or error}.'
    ) from error
  return decode(content, os.fspath(path))


def decode(content: bytes, where: str) -> str:
  """Decodes a text.

  Args:
    content: Its bytes.
    where: What they are from: the first words of an error.

  Raises:
    ConfigError: They are no text in UTF-8.
  """
  # UTF-8 can have this byte; it is UTF-16 that does.
  bad = content.find(b'\0')
  try:
    text = content.decode()
  except UnicodeDecodeError as error:
    bad = error.start
  if bad >= 0:
    line = content.count(b'\n', 0, bad) + 1
    raise ConfigError(
      f'{where}, line {line}: byte {content[bad]:#04x} is no text; save the '
      'file as UTF-8.'
    )
  return text


def read_json(path: epath.PathLike, kind: type | types.UnionType = dict) -> Any:
  """Reads a JSON file.

  Args:
    path: The file.
    kind: What it must hold: dict, list, or either (dict | list).

  Raises:
    ConfigError: It cannot be read, is not JSON (a name twice in one object
      included), or holds something else.
  """
  return parse_json(read_text(path), os.fspath(path), kind)


def parse_json(
  text: str, where: str, kind: type | types.UnionType = dict
) -> Any:
  """Reads JSON.

  Args:
    text: The JSON.
    where: What it is from: the first words of an error.
    kind: What it must hold: dict or list.

  Raises:
    ConfigError: As for `read_json`.
  """
  try:
    content = json.loads(text, object_pairs_hook=_unique)
    if _depth(content) > _MAX_DEPTH:
      raise RecursionError
  except RecursionError as error:
    raise ConfigError(
      f'{where} is JSON with more than {_MAX_DEPTH} brackets within each other.'
    ) from error
  except MemoryError as error:
    raise ConfigError(f'{where} is too large for the memory.') from error
  except ValueError as error:  # A number of thousands of digits is one, too.
    raise ConfigError(f'{where} is not JSON: {error}.') from error
  if not isinstance(content, kind):
    names = {dict: 'an object, {...}', list: 'a list, [...]'}
    kinds = [name for k, name in names.items() if issubclass(k, kind)]
    raise ConfigError(
      f'{where} holds a JSON {type(content).__name__}; it must be '
      f'{" or ".join(kinds)}.'
    )
  return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object; json.loads takes the last of several entries of a name."""
  entries = dict(pairs)
  if len(entries) < len(pairs):
    seen = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise ValueError(f'{twice!r} is there twice in one object')
  return entries


def _depth(content: Any) -> int:
  """Brackets around the innermost value."""
  depth, level = 0, [content]
  while level:
    level = [
      item
      for outer in level
      if isinstance(outer, dict | list)
      for item in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(item, dict | list)
    ]
    depth += 1
  return depth


def is_of_disk(error: BaseException | None) -> bool:
  """Whether an error is a disk's that is full or cannot be written."""
  return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def disk_error(error: OSError, workdir: epath.PathLike) -> RunError | None:
  """Returns what to tell the user where an error is the disk's, else None."""
  if not is_of_disk(error):
    return None
  return RunError(
    f'--workdir={os.fspath(workdir)} cannot be written: {error.strerror} '
    f'({error.filename or "a file that was open"}). What was complete is kept; '
    'once there is room, the same command goes on from the newest checkpoint'
  )
