"""What an annotation says: classes, and videos with their labels.

`Annotations` is what every reader returns, whatever the form of the files. The
readers of a data set of one's own are here; those of the public data sets are
in publishers.py. Nothing here opens a video.
"""

import collections
import csv
import difflib
import hashlib
import io
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mgjax.data.suffixes import without_suffix
from mgjax.errors import ConfigError
from mgjax.files import read_text


class Action(NamedTuple):
  """A labelled part of a video."""

  label: str
  start_s: float
  end_s: float


class Annotated(NamedTuple):
  """A video as the annotation describes it."""

  id: str  # Unique within its split.
  split: str  # 'train', 'validation' or 'test'.
  label: str | None  # None where the data set has actions instead.
  # Paths without suffix, in order of preference; the end of a path is enough.
  names: tuple[str, ...]
  actions: tuple[Action, ...] = ()
  file: str = ''  # Path with suffix, where the annotation gives one.


class Annotations(NamedTuple):
  """What the files of an annotation say together."""

  class_names: tuple[str, ...]  # Label k is class_names[k].
  videos: tuple[Annotated, ...]
  has_actions: bool = False  # Any number of timed labels per video.
  # Videos of test lists, whose labels are not published; not among `videos`.
  num_unlabelled: int = 0


# The split that each of the publishers' words stands for.
_SPLITS = {
  word: split
  for split, words in {
    'train': 'train training trainingset',
    'validation': 'val valid validate validation validationset',
    'test': 'test testing testset',
  }.items()
  for word in words.split()
}


# What people call the columns of a CSV file.
_PATH_WORDS = (
  *('path', 'file', 'filename', 'file_name', 'name', 'id', 'clip'),
  *('video', 'video_path', 'video_name'),
)
_LABEL_WORDS = (
  *('label', 'labels', 'label_name', 'class', 'classes', 'class_name'),
  *('category', 'action'),
)


def choose_classes(
  annotations: Annotations, class_names: Sequence[str]
) -> Annotations:
  """Keeps the videos of some classes.

  Args:
    annotations: All classes and videos.
    class_names: The classes to keep. Label k becomes class_names[k].

  Returns:
    The annotation without the other classes, their actions, and the videos
    that have no label left.

  Raises:
    ConfigError: A class does not exist, or is named twice.
  """
  known = set(annotations.class_names)
  for name in class_names:
    if name not in known:
      similar = difflib.get_close_matches(name, annotations.class_names, n=1)
      hint = f'; did you mean {similar[0]!r}?' if similar else ''
      raise ConfigError(f'--classes: there is no class {name!r}{hint}')
  chosen = set(class_names)
  if len(chosen) < len(class_names):
    raise ConfigError('--classes: a class is named twice.')
  videos = []
  for video in annotations.videos:
    actions = tuple(a for a in video.actions if a.label in chosen)
    if actions or video.label in chosen:
      videos.append(video._replace(actions=actions))
  return annotations._replace(
    class_names=tuple(class_names), videos=tuple(videos)
  )


def sample_classes(annotations: Annotations, num_classes: int) -> list[str]:
  """Chooses some classes, always the same ones.

  Args:
    annotations: All classes and videos.
    num_classes: How many to choose, from 1. A smaller choice is a part of a
      larger one.

  Returns:
    Their names, in the order of the labels.

  Raises:
    ConfigError: There are not so many.
  """
  names = annotations.class_names
  if not 1 <= num_classes <= len(names):
    raise ConfigError(
      f'--num_classes is {num_classes}; the annotation has {len(names)} '
      'classes.'
    )
  # Ordered by hash, the choice depends on nothing but the names.
  chosen = set(sorted(names, key=_hash_fraction)[:num_classes])
  return [name for name in names if name in chosen]


def from_folders(
  paths: Iterable[str], *, validation_fraction: float
) -> Annotations:
  """Takes the labels from folders: [SPLIT/]CLASS/.../VIDEO.

  Args:
    paths: Paths of all videos, relative to the top folder.
    validation_fraction: Share of the videos of each class, in [0, 1), that
      become the validation split if there are no folders for splits; see
      `_draw_splits`.

  Raises:
    ConfigError: A video is in no class folder, or only some are in splits.
  """
  paths = list(paths)
  parts = [tuple(without_suffix(path).split('/')) for path in paths]
  in_split = [split_of_word(p[0]) is not None for p in parts]
  if any(in_split) and not all(in_split):
    odd = parts[in_split.index(False)]
    raise ConfigError(
      f'--videos: some videos are in split folders, {"/".join(odd)} is not.'
    )
  videos = []
  for path, part, has_split in zip(paths, parts, in_split, strict=True):
    rest = part[1:] if has_split else part
    if len(rest) < 2:
      raise ConfigError(
        f'--videos: {path} is in no class folder; the form is '
        '[train|validation|test/]CLASS/VIDEO.'
      )
    name = '/'.join(part)
    split = split_of_word(part[0]) if has_split else ''
    videos.append(Annotated(name, split, rest[0], (name,), file=path))
  return single_label(_draw_splits(videos, validation_fraction))


def from_csv(
  paths: Sequence[pathlib.Path], *, validation_fraction: float
) -> Annotations:
  """Reads CSV files with the columns path, label and, if wanted, split.

  A header such as `path,label[,split]` may stand first. The split of a row
  without one is that in the file's name (train.csv, val.csv), or drawn class by
  class.

  Args:
    paths: The files.
    validation_fraction: Share of the videos, as in `from_folders`, if the split
      is drawn.

  Raises:
    ConfigError: A file is missing, a row has another form, or a split is
      unknown.
  """
  videos = []
  for path in paths:
    if not path.is_file():
      raise ConfigError(f'--annotations: there is no file {path}.')
    for place, (where, row) in enumerate(read_rows(path)):
      if place == 0 and _is_header(row, where):
        continue
      if len(row) not in (2, 3) or not (row[0] and row[1]):
        raise ConfigError(
          f'{where}: {",".join(row)!r}; the form is path,label or '
          'path,label,split.'
        )
      name = without_end(row[0])
      if len(row) == 3:
        split = check_split(row[2], where)
      else:
        split = split_of_file(path) or ''
      videos.append(Annotated(name, split, row[1], (name,), file=row[0]))
  return single_label(_draw_splits(videos, validation_fraction))


def _is_header(row: Sequence[str], where: str) -> bool:
  """Whether the first row of a file names its columns.

  Raises:
    ConfigError: They have another order.
  """
  words = [cell.strip().lower() for cell in row]
  if words[0] in _LABEL_WORDS and words[1:2] and words[1] in _PATH_WORDS:
    raise ConfigError(
      f'{where}: {",".join(row)!r}; the columns are path,label or '
      'path,label,split, in this order.'
    )
  return words[0] in _PATH_WORDS and (
    words[0] == 'path' or words[1:2] != [] and words[1] in _LABEL_WORDS
  )


def single_label(
  videos: Sequence[Annotated],
  class_names: Sequence[str] | None = None,
  num_unlabelled: int = 0,
) -> Annotations:
  """Returns the annotation of videos that have one label each.

  Args:
    videos: The videos.
    class_names: All classes, in the order of the labels; None: those that the
      videos have, sorted by name.
    num_unlabelled: As `Annotations` has it.
  """
  if class_names is None:
    class_names = sorted({v.label for v in videos})
  return Annotations(
    tuple(class_names), tuple(videos), num_unlabelled=num_unlabelled
  )


def check_split(word: str, where: str) -> str:
  """Returns the split that a publisher's word stands for.

  Args:
    word: Such as 'val' or 'Training'.
    where: Place of the word, for the error.

  Raises:
    ConfigError: It stands for none.
  """
  split = split_of_word(word)
  if split is None:
    raise ConfigError(
      f'{where}: the split is {word!r}; it must be train, validation or test.'
    )
  return split


def split_of_word(word: str) -> str | None:
  """Returns the split that a publisher's word stands for, or None."""
  return _SPLITS.get(word.lower())


def split_of_file(path: pathlib.Path) -> str | None:
  """Returns the split that is in a file's name, or None."""
  words = re.split('[^a-z]+', path.stem.lower())
  return next((_SPLITS[w] for w in reversed(words) if w in _SPLITS), None)


def _draw_splits(
  videos: Sequence[Annotated], validation_fraction: float
) -> list[Annotated]:
  """Gives each video without a split one, class by class.

  Args:
    videos: The split of those without one is ''.
    validation_fraction: Share of the videos of each class, rounded, that become
      the validation split; one at least of two or more, unless it is 0. They
      are those whose paths have the least hashes: a new video moves one other
      at most.
  """
  drawn = collections.defaultdict(set)
  for video in videos:
    if not video.split:
      drawn[video.label].add(video.id)
  in_validation = set()
  for names in drawn.values():
    count = 0
    if validation_fraction and len(names) > 1:
      # Each class is in both splits.
      wanted = round(validation_fraction * len(names))
      count = min(max(1, wanted), len(names) - 1)
    in_validation.update(sorted(names, key=_hash_fraction)[:count])
  return [
    video
    if video.split
    else video._replace(
      split='validation' if video.id in in_validation else 'train'
    )
    for video in videos
  ]


def _hash_fraction(text: str) -> float:
  """Returns a number in [0, 1) that depends on the text alone."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64


def without_end(path: str) -> str:
  """Returns a path without what follows the last dot in its name, if any.

  Annotations name files with any suffix, of which the files may have another.
  """
  return path.rsplit('.', 1)[0] if '.' in path.rsplit('/', 1)[-1] else path


# Rows and lines of text files, each with its place, which errors name.


def read_rows(
  path: pathlib.Path, delimiter: str = ','
) -> list[tuple[str, list[str]]]:
  """Reads the rows of a CSV file that are not empty.

  Args:
    path: The file.
    delimiter: What stands between fields. With ';', quotation marks are part
      of a field.

  Returns:
    For every row its place ('FILE, line N') and its fields, without spaces
    around them.

  Raises:
    ConfigError: The file cannot be read, or is no such table.
  """
  reader = csv.reader(
    io.StringIO(read_text(path), newline=''),
    delimiter=delimiter,
    # Something-Something V1 has labels that start with a quotation mark.
    quoting=csv.QUOTE_NONE if delimiter == ';' else csv.QUOTE_MINIMAL,
  )
  rows = []
  try:
    for row in reader:
      if row:
        where = f'{path}, line {reader.line_num}'
        rows.append((where, [cell.strip() for cell in row]))
  except csv.Error as error:
    raise ConfigError(
      f'{path}, line {reader.line_num}: {error}; a row of a CSV file has '
      f'short fields with {delimiter!r} between them.'
    ) from error
  return rows


def read_named_rows(path: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  """Reads a CSV file whose first row names the columns.

  Returns:
    For every later row its place and its fields by name. A field that a short
    row lacks is not there.

  Raises:
    ConfigError: As for `read_rows`.
  """
  rows = read_rows(path)
  header = rows[0][1] if rows else []
  return [
    (where, dict(zip(header, row, strict=False))) for where, row in rows[1:]
  ]


def read_lines(path: pathlib.Path) -> list[tuple[str, str]]:
  """Reads the lines of a text file that are not empty.

  Returns:
    For every line its place ('FILE, line N') and its text, without spaces
    around it.

  Raises:
    ConfigError: The file cannot be read, or is no text in UTF-8.
  """
  return [
    (f'{path}, line {number}', line.strip())
    for number, line in enumerate(read_text(path).splitlines(), 1)
    if line.strip()
  ]
