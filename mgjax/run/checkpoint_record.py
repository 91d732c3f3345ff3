"""What a checkpoint says of itself: counters, checksums, and what is damaged.

The record is a small JSON file beside the arrays. It has a checksum of every
array and one of itself, so that whoever reads any part of a damaged checkpoint
notices.
"""

import contextlib
import functools
import inspect
import json
import logging as std_logging
import os
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from mgjax.errors import ConfigError, RunError

# What a record has that was written before every array had a checksum.
OLD_CHECKSUM = 'crc32'


class DamagedError(RunError):
  """A checkpoint that cannot be read, or does not hold what was written."""


def describe_arrays(tree: Any) -> dict[str, dict]:
  """Type, shape and checksum of every array of a tree.

  Args:
    tree: A state or a part of one. Every process holds its arrays whole.

  Returns:
    By the path of the array, such as 'params/head/kernel': {'dtype', 'shape',
    'crc32' of its bytes in C order}.
  """
  return {
    path: {
      'dtype': str(leaf.dtype),
      'shape': list(leaf.shape),
      'crc32': _crc32(leaf),
    }
    for path, leaf in by_path(tree).items()
  }


def sealed(record: dict) -> dict:
  """A JSON record with a checksum of its own."""
  record = json.loads(json.dumps(record))
  return {**record, 'record_crc32': _record_crc32(record)}


def read_record(path: epath.PathLike) -> dict:
  """Reads a checkpoint's record of counters and checksums.

  Args:
    path: The checkpoint's folder.

  Raises:
    DamagedError: It is not what was written.
  """
  file = epath.Path(path) / 'progress' / 'metadata'
  with reading(path):
    record = json.loads(file.read_text())
    # Records had no checksum of their own when the state had one as a whole.
    if 'arrays' in record or 'record_crc32' in record:
      if record.get('record_crc32') != _record_crc32(record):
        raise DamagedError(
          f'{path} is damaged: {file.relative_to(path)} does not have the '
          'checksum that was noted in it'
        )
    elif not isinstance(record[OLD_CHECKSUM], int):
      raise ValueError('the checksum is no number')
  return record


def checksum(state: Any) -> int:
  """CRC-32 of all bytes of a state: what older checkpoints have of it."""
  crc = 0
  for leaf in jax.tree.leaves(state):
    crc = _crc32(leaf, crc)
  return crc


def _crc32(array, crc: int = 0) -> int:
  return zlib.crc32(np.ascontiguousarray(array).view(np.uint8), crc)


def _record_crc32(record: dict) -> int:
  rest = {k: v for k, v in record.items() if k != 'record_crc32'}
  return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their paths, such as 'params/head/kernel'."""
  return {
    jax.tree_util.keystr(keys, simple=True, separator='/'): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@contextlib.contextmanager
def reading(path: epath.PathLike) -> Iterator[None]:
  """Whatever goes wrong inside is a DamagedError that names the checkpoint."""
  try:
    yield
  except (ConfigError, RunError):
    raise
  # Orbax, TensorStore, JSON and the file system have many errors for this.
  except Exception as error:
    raise DamagedError(f'{path} cannot be read ({reason(error)})') from error


def reason(error: Exception) -> str:
  """What an error says, without the pages that TensorStore adds."""
  line = (str(error).strip().splitlines() or [''])[0]
  for page in (' [tensorstore_spec', ' See full TensorStore details'):
    line = line.split(page)[0]
  if len(line) > 300:  # What it was about, and what was wrong with it.
    line = f'{line[:100]} ... {line[-190:]}'
  return f'{type(error).__name__}: {line}'


def check_arrays(
  tree: Any, noted: Mapping[str, dict], path: epath.PathLike
) -> None:
  """Raises DamagedError where an array that was read is not what was noted."""
  with reading(path):  # What comes back can be no array at all.
    found = describe_arrays(tree)
  wrong = [name for name, array in found.items() if array != noted.get(name)]
  if wrong:
    raise DamagedError(
      f'{path} is damaged: {len(wrong)} of {len(found)} arrays, such as '
      f'{wrong[0]}, do not have the checksum that was noted when they were '
      'written'
    )


@functools.cache
def hush() -> None:
  """Keeps off stderr what Orbax leaves behind where it raises an error.

  The error says what was wrong. Coroutines and futures that were under way then
  print it once more, or that their loop has ended, each with a traceback, and
  some of them after the error was raised.
  """
  previous = sys.unraisablehook

  def hook(unraisable) -> None:
    if 'Event loop is closed' in str(unraisable.exc_value):
      return
    if not inspect.iscoroutine(unraisable.object):
      previous(unraisable)

  sys.unraisablehook = hook
  # A write that fails is hundreds of lines from several threads.
  logging.get_absl_logger().addFilter(
    lambda record: (
      record.levelno < std_logging.ERROR
      or f'{os.sep}orbax{os.sep}' not in record.pathname
    )
  )
  std_logging.getLogger('asyncio').setLevel(std_logging.CRITICAL)
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited')
