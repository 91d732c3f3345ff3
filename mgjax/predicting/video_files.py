"""Serves video files in the place of a data set."""

import pathlib
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

from mgjax import environment
from mgjax.data import scanning, sources
from mgjax.data.decode import DecodeError, Form
from mgjax.errors import RunError


class Looked(NamedTuple):
  """Which of some files can be used.

  Attributes:
    in_order: How `mgjax.data.decode.Video` reads each file that can be used.
    errors: Why each of the others cannot be used.
  """

  in_order: dict[pathlib.Path, Form | None]
  errors: dict[pathlib.Path, str]


def look_at(paths: Sequence[pathlib.Path]) -> Looked:
  """Decodes files, as `mgjax.data.prepare` does with what it stores.

  Args:
    paths: Of the files; one that is named twice is looked at once.
  """

  def look(path: pathlib.Path) -> Form | str | None:
    try:
      found = scanning.scan(path.read_bytes())
    except OSError as error:
      return str(error.strerror)
    except DecodeError as error:
      return str(error)
    return None if found.is_addressable else found.form

  usable, errors = {}, {}
  different = list(dict.fromkeys(paths))
  with futures.ThreadPoolExecutor(environment.num_cpus()) as pool:
    for path, found in zip(different, pool.map(look, different), strict=True):
      (errors if isinstance(found, str) else usable)[path] = found
  return Looked(usable, errors)


def none_usable(errors: dict[pathlib.Path, str]) -> str:
  """The message where no file can be used; `errors` is why, by file."""
  path, reason = next(iter(errors.items()))
  return f'none of the files can be used, such as {path}: {reason}'


class VideoFiles(sources.Source):
  """Video files as the examples of a split, without labels."""

  def __init__(
    self,
    paths: Sequence[pathlib.Path],
    in_order: dict[pathlib.Path, Form | None],
    num_classes: int,
  ):
    """Names the files.

    Args:
      paths: The files, in the order of the examples.
      in_order: Of `look_at`.
      num_classes: K: of the labels, only their number counts.
    """
    super().__init__(
      'files', 'given', paths, tuple(map(str, range(num_classes)))
    )
    self._in_order = in_order

  def __getitem__(self, index: int) -> sources.Example:
    path = self.records[index]
    try:
      encoded = path.read_bytes()
    except OSError as error:
      raise RunError(f'{path}: {error.strerror}') from error
    return sources.Example(
      encoded, label=0, id=str(path), in_order=self._in_order[path]
    )
