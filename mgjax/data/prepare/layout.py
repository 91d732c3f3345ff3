"""The folder of a data set: names of its files, and the lock of its writer.

While shards are written, PARTS lies in it with what the manifest will be made
of. A killed run leaves it behind, and the same command goes on from it.
"""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from mgjax import files
from mgjax.errors import ConfigError

VERSION = '1.0.0'
MANIFEST = 'manifest.jsonl'
SUMMARY = 'summary.json'
# TFDS writes it. A folder with this file holds a complete data set.
INFO = 'dataset_info.json'

# Folder that is removed at the end: a file per finished shard, and these.
PARTS = 'parts'
LOCK = 'lock'
QUARANTINED = 'quarantined.jsonl'  # Damaged videos, as they are found.
DEATHS = 'deaths.jsonl'  # At which videos workers died.


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps a second run out of the folder; the lock dies with the process.

  Args:
    folder: Folder of the data set, which is made if it does not exist.

  Raises:
    ConfigError: It cannot be made, or another run is writing it.
  """
  parts = folder / PARTS
  files.make_folder(parts, f'--out: {folder}')
  with (parts / LOCK).open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ConfigError(f'another run is writing {folder}.') from error
    yield


def json_lines(records: Iterable[dict[str, Any]]) -> str:
  """Returns records as lines of JSON."""
  return ''.join(f'{json.dumps(r, ensure_ascii=False)}\n' for r in records)


def append(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> None:
  """Appends records to a file of JSON lines, which several processes may do."""
  with path.open('a', encoding='utf-8') as log:
    log.write(json_lines(records))
