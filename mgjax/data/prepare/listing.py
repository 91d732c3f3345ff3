"""Which video files and frame folders there are, and which of them is meant.

`list_files` walks through the folder of the videos once. `find_file` then finds
the file of an annotated video without asking the disk again.
"""

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from mgjax.data.prepare.annotations import Annotated
from mgjax.data.suffixes import (
  FRAME_CODECS,
  VIDEO_SUFFIXES,
  suffix_of,
  without_suffix,
)
from mgjax.errors import ConfigError


class Listing(NamedTuple):
  """What is below a folder; paths are relative to it, with /.

  Bytes of a name that are not UTF-8 are written as \\x and two digits.

  Attributes:
    index: Paths of videos and frame folders, by their names without folder and
      suffix.
    targets: The paths that links in `index` lead to.
    misnamed: Paths in `index` whose names are not UTF-8.
    links: Links that lead to nothing, or to a folder that is listed already.
    others: Files of other kinds.
  """

  index: dict[str, list[str]]
  targets: dict[str, str]
  misnamed: set[str]
  links: list[str]
  others: list[str]


def list_files(
  folder: pathlib.Path, leave_out: pathlib.Path | None = None
) -> Listing:
  """Lists the video files and frame folders below a folder.

  Links are followed, but every folder is listed once. Its path is the one
  without links, if that is below the folder.

  Args:
    folder: The folder of the videos.
    leave_out: A folder below it that is not listed, such as the output.

  Raises:
    ConfigError: A folder below it cannot be read.
  """
  listing = Listing(collections.defaultdict(list), {}, set(), [], [])
  listed = {os.path.realpath(leave_out)} if leave_out else set()
  top = os.path.realpath(folder)
  # Folders to list: path below the top, and path without links.
  pending = [('.', top)]
  links = []
  while pending or links:
    if not pending:  # Links last: a folder should be listed by its own path.
      pending, links = sorted(links, reverse=True), []
    path, real = pending.pop()
    if real in listed:
      # `leave_out` is no link, and so is not listed as one.
      if os.path.islink(os.path.join(folder, path)):
        listing.links.append(_printable(path))
      continue
    listed.add(real)
    try:
      with os.scandir(os.path.join(folder, path)) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
      name = _printable(str(error.filename))
      raise ConfigError(f'--videos: {name}: {error.strerror}.') from error
    files = []
    for entry in entries:
      name = entry.name if path == '.' else f'{path}/{entry.name}'
      is_link = entry.is_symlink()
      target = os.path.join(real, entry.name)
      if is_link:
        target = os.path.realpath(target)
      if entry.is_dir():
        (links if is_link else pending).append((name, target))
      elif is_link and not os.path.exists(target):
        listing.links.append(_printable(name))
      else:
        files.append((name, os.path.relpath(target, top)))
    _add_files(path, files, listing)
  return listing


def _add_files(
  folder: str, files: Sequence[tuple[str, str]], listing: Listing
) -> None:
  """Adds the files of one folder.

  Args:
    folder: Its path below the top folder; '.': the top folder itself.
    files: Paths of the files, and the paths that they lead to.
    listing: Gets them.
  """
  suffixes = {suffix_of(path) for path, _ in files}
  # Pictures beside videos are previews or the like. The top folder is no video:
  # it has no name of its own.
  is_frames = (
    not suffixes.isdisjoint(FRAME_CODECS)
    and suffixes.isdisjoint(VIDEO_SUFFIXES)
    and folder != '.'
  )
  found = [(folder, folder)] if is_frames else []
  for path, target in files:
    if suffix_of(path) in VIDEO_SUFFIXES:
      found.append((path, target))
    elif not (is_frames and suffix_of(path) in FRAME_CODECS):
      listing.others.append(_printable(path))
  for raw, target in found:
    path, target = _printable(raw), _printable(target)
    name = path.rsplit('/', 1)[-1]
    # A folder of frames may have a dot in its name.
    listing.index[name if raw == folder else without_suffix(name)].append(path)
    if target != path:
      listing.targets[path] = target
    if path != raw:
      listing.misnamed.add(path)


def _printable(path: str) -> str:
  """Returns a path in which bytes that are not UTF-8 are written as \\x.."""
  return path.encode(errors='surrogateescape').decode(errors='backslashreplace')


def find_file(video: Annotated, index: dict[str, list[str]]) -> str | None:
  """Returns the path of an annotated video, or None if it has no file.

  The file at the annotated path is taken first, then one that differs in the
  suffix alone. Of several files whose paths only end like an annotated one,
  the file in a folder of the video's split or class is taken.

  Args:
    video: The video.
    index: Paths by name, see `Listing.index`.
  """
  spellings = {video.split, video.split[:3], video.label}
  spellings.add((video.label or '').replace(' ', '_'))
  for name in video.names:
    paths = [
      path
      for path in index.get(name.rsplit('/', 1)[-1], ())
      if f'/{without_suffix(path)}'.endswith(f'/{name}')
    ]
    if paths:
      return min(
        paths,
        key=lambda path: (
          path != video.file,
          without_suffix(path) != name,
          -len(spellings.intersection(path.split('/'))),
          not path.endswith(f'/{video.file}'),
          path,
        ),
      )
  return None
