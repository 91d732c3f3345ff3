"""The annotation files of public data sets, as their publishers ship them.

A table at the end, VIDEO_SETS, has a reader for every data set that
`--dataset` accepts. A file that does not have the publisher's form is refused
with the line or entry at which it differs: a misread label would cost a
training.
"""

import contextlib
import math
import pathlib
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from mgjax.data.prepare.annotations import (
  Action,
  Annotated,
  Annotations,
  check_split,
  read_lines,
  read_named_rows,
  read_rows,
  single_label,
  split_of_file,
  without_end,
)
from mgjax.errors import ConfigError
from mgjax.files import read_json


class VideoSet(NamedTuple):
  """A public data set.

  Attributes:
    name: Name of the prepared data set.
    read: Function of the annotation files and the number of the fold.
    num_classes: Numbers of classes of the versions that were published.
    frame_fps: Frames per second, if it is published as frame folders; None: it
      is published as videos.
  """

  name: str
  read: Callable[[Sequence[pathlib.Path], int], Annotations]
  num_classes: tuple[int, ...]
  frame_fps: float | None = None


def read(
  dataset: str, paths: Sequence[pathlib.Path], *, fold: int
) -> Annotations:
  """Reads the annotation of a public data set.

  Args:
    dataset: A key of VIDEO_SETS.
    paths: Annotation files, or folders of them as the publisher packs them.
      A list of classes is also found beside the given files.
    fold: Which of the published train/test splits, from 1. Only UCF101 and
      HMDB51 have several.

  Raises:
    ConfigError: A file is missing or does not have the publisher's form.
  """
  annotations = VIDEO_SETS[dataset].read(list_files(paths), fold)
  if not annotations.videos:
    raise ConfigError(
      f'--annotations: no labelled video in {_listing(paths)}; give the '
      f"publisher's files of {dataset}."
    )
  return annotations


def list_files(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """Lists annotation files.

  Args:
    paths: Files, or folders whose files are meant (those in folders below them
      are not).

  Raises:
    ConfigError: One does not exist.
  """
  files = []
  for path in paths:
    if path.is_dir():
      files.extend(sorted(p for p in path.iterdir() if p.is_file()))
    elif path.is_file():
      files.append(path)
    else:
      raise ConfigError(f'--annotations: there is no file or folder {path}.')
  return files


_KINETICS_CSV = 'the columns are label,youtube_id,time_start,time_end,split.'
_KINETICS_JSON = (
  'the form is {"annotations": {"label": "…", "segment": [1.0, 11.0]}, '
  '"subset": "train"}.'
)


def _kinetics(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """CSV with a header, or JSON; clips are ID_000012_000022."""
  videos = []
  num_unlabelled = 0
  # The publisher packs every list in both forms: read twice, every video would
  # be there twice.
  has_csv = any(path.suffix == '.csv' for path in files)
  form = _KINETICS_CSV if has_csv else _KINETICS_JSON
  for path in _lists(files, r'\.csv$' if has_csv else r'\.json$'):
    rows = read_named_rows(path) if has_csv else _json_entries(path)
    for where, row in rows:
      with _expecting(where, form):
        if not has_csv:
          row = _kinetics_row(*row)
        if 'youtube_id' in row and not row.get('label'):
          num_unlabelled += 1
          continue
        start, end = _times(row['time_start'], row['time_end'])
        clip = f'{row["youtube_id"]}_{int(start):06d}_{int(end):06d}'
        label = row['label']
        if not isinstance(label, str):  # A number in JSON names no class.
          raise TypeError(f'{label!r} is not a text')
      split = row.get('split')
      split = check_split(str(split), where) if split else split_of_file(path)
      if split is None:
        raise ConfigError(f'{where}: no split, neither here nor in the name.')
      videos.append(Annotated(clip, split, label, (clip, row['youtube_id'])))
  return single_label(videos, num_unlabelled=num_unlabelled)


def _json_entries(path: pathlib.Path) -> list[tuple[str, tuple[str, Any]]]:
  """Place, name and value of the entries of a JSON object."""
  entries = read_json(path, dict).items()
  return [(f'{path}, entry {entry[0]!r}', entry) for entry in entries]


def _kinetics_row(youtube_id: str, entry: Any) -> dict:
  """An entry of the JSON lists as a row of the CSV lists."""
  notes = entry.get('annotations', {})
  start, end = notes.get('segment', (None, None))
  return {
    'youtube_id': youtube_id,
    'label': notes.get('label'),
    'time_start': start,
    'time_end': end,
    'split': entry.get('subset'),
  }


def _something_v1(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """`id;label` lists and a list of labels, one per line."""
  labels = _companion(
    files, r'labels?\.csv$', 'something-something-v1-labels.csv'
  )
  rows = read_rows(labels, delimiter=';')
  class_names = _classes((w, row[0], k) for k, (w, row) in enumerate(rows))
  entries = []
  for path in _lists(files, r'(train|val|validation|test)\.csv$'):
    for where, row in read_rows(path, delimiter=';'):
      name, label = (*row, None)[:2]  # A test list has no labels.
      entries.append((where, Annotated(name, _split(path), label, (name,))))
  return _checked(labels, class_names, entries)


def _something_v2(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """JSON lists with templates, and a JSON list of labels with indices."""
  labels = _companion(files, r'labels\.json$', 'labels.json')
  class_names = _numbered_classes(
    _json_entries(labels), 'the index must be a whole number.'
  )
  entries = []
  for path in _lists(files, r'(train|val|validation|test)\.json$'):
    for number, entry in enumerate(read_json(path, list), 1):
      where = f'{path}, entry {number}'
      form = 'the form is {"id": "1", "template": "Holding [something]"}.'
      with _expecting(where, form):
        name, label = str(entry['id']), entry.get('template')
        if label is not None:
          label = re.sub(r'[\[\]]', '', label)
      entries.append((where, Annotated(name, _split(path), label, (name,))))
  return _checked(labels, class_names, entries)


def _charades(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """CSV with `c092 11.90 21.20;...`; the test list is the validation split."""
  path = _companion(files, r'_v1_classes\.txt$', 'Charades_v1_classes.txt')
  names = []
  for where, line in read_lines(path):
    with _expecting(where, "the form is 'c000 class'.", line):
      code, name = line.split(' ', 1)
      names.append((where, code, name))
  # Codes are numbered, and name the classes, too.
  codes = _classes((w, code, k) for k, (w, code, _) in enumerate(names))
  class_names = _classes((w, name, k) for k, (w, _, name) in enumerate(names))
  label_of = dict(zip(codes, class_names, strict=True))
  form = (
    'the columns are id,...,actions,length with actions such as '
    "'c092 11.90 21.20;c147 0.00 12.60'."
  )
  videos = []
  for path in _lists(files, r'_v1_(train|test)\.csv$'):
    # The set has one list for evaluation, which it calls test.
    split = 'train' if _split(path) == 'train' else 'validation'
    for where, row in read_named_rows(path):
      with _expecting(where, form):
        actions = []
        for part in filter(None, row['actions'].split(';')):
          code, start, end = part.split()
          actions.append(Action(label_of[code], *_times(start, end)))
        name = row['id']
      videos.append(Annotated(name, split, None, (name,), tuple(actions)))
  return Annotations(class_names, tuple(videos), has_actions=True)


def _moments(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """CSV `class/video.mp4,class,votes,votes` and `class,index` categories."""
  labels = _companion(files, r'categories\.txt$', 'moments_categories.txt')
  class_names = _numbered_classes(read_rows(labels), 'the form is class,index.')
  entries = []
  for path in _lists(files, r'(training|validation)Set\.csv$'):
    for where, row in read_rows(path):
      with _expecting(where, 'the form is class/video.mp4,class,…', row[0]):
        file, label, *_ = row
      name = without_end(file)
      video = Annotated(name, _split(path), label, (name,), file=file)
      entries.append((where, video))
  return _checked(labels, class_names, entries)


def _ucf101(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """trainlist01.txt, testlist01.txt and classInd.txt."""
  labels = _companion(files, r'^classInd\.txt$', 'classInd.txt')
  rows = [
    (where, line.split(' ', 1)[::-1]) for where, line in read_lines(labels)
  ]
  class_names = _numbered_classes(rows, "the form is '1 class'.")
  entries = []
  for path in _lists(files, rf'^(train|test)list{fold:02d}\.txt$'):
    split = 'train' if path.name.startswith('train') else 'validation'
    for where, line in read_lines(path):
      file = line.split(' ')[0]
      entries.append((where, _in_class_folder(file, split)))
  return _checked(labels, class_names, entries)


def _hmdb51(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """CLASS_test_split1.txt with `video.avi 1`: 1 is train, 2 test, 0 unused."""
  suffix = f'_test_split{fold}.txt'
  videos = []
  for path in _lists(files, rf'{re.escape(suffix)}$'):
    label = path.name.removesuffix(suffix)
    for where, line in read_lines(path):
      file_name, _, part = line.rpartition(' ')
      if part not in ('0', '1', '2'):
        raise ConfigError(
          f'{where}: {line!r} does not end with 0, 1 or 2, as HMDB51 has it.'
        )
      if part != '0':
        split = 'train' if part == '1' else 'validation'
        videos.append(_in_class_folder(f'{label}/{file_name.strip()}', split))
  return single_label(videos)


def _in_class_folder(file: str, split: str) -> Annotated:
  """A video whose path is CLASS/NAME; it may also be without that folder."""
  name = without_end(file)
  label, _, base = name.partition('/')
  return Annotated(
    name, split, label, (name, posixpath.basename(base)), file=file
  )


@contextlib.contextmanager
def _expecting(where: str, form: str, entry: Any = None) -> Iterator[None]:
  """Refuses an entry of an annotation that cannot be read.

  Args:
    where: Its place.
    form: What it should be.
    entry: What it is, for the message; None: the text of the error.

  Raises:
    ConfigError: The body has raised an error.
  """
  try:
    yield
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    wrong = str(error)
    if isinstance(error, KeyError):
      wrong = f'there is no {error.args[0]!r}'
    if entry is not None:
      wrong = repr(entry)
    raise ConfigError(f'{where}: {wrong}; {form}') from error


def _numbered_classes(
  rows: Iterable[tuple[str, Sequence[Any]]], form: str
) -> tuple[str, ...]:
  """Returns the names of the classes in the order of their numbers.

  Args:
    rows: Place, and name and number of every class.
    form: What a row should be, for errors.

  Raises:
    ConfigError: A row has another form, or see `_classes`.
  """
  entries = []
  for where, row in rows:
    with _expecting(where, form, ', '.join(map(str, row))):
      name, number = row
      entries.append((where, name, int(number)))
  return _classes(entries)


def _classes(entries: Iterable[tuple[str, str, int]]) -> tuple[str, ...]:
  """Returns the names of the classes in the order of their numbers.

  Args:
    entries: Place, name and number of every class.

  Raises:
    ConfigError: A name or a number is there twice. Labels would be shifted
      against the publisher's.
  """
  names: dict[int, str] = {}
  numbers: dict[str, int] = {}
  for where, name, number in entries:
    if number in names:
      raise ConfigError(
        f'{where}: class {name!r} has the number {number}, and so has '
        f'{names[number]!r}; give every class a number of its own.'
      )
    if name in numbers:
      raise ConfigError(
        f'{where}: the class {name!r} is there twice; name it once.'
      )
    names[number], numbers[name] = name, number
  return tuple(sorted(numbers, key=numbers.__getitem__))


def _times(start: object, end: object) -> tuple[float, float]:
  """Returns start and end in seconds.

  Raises:
    TypeError: One is not a number or text.
    ValueError: One is not a time, or the end comes before the start.
  """
  times = float(start), float(end)
  # Comparisons with nan are false, so this refuses it.
  if not 0 <= times[0] <= times[1] < math.inf:
    raise ValueError(f'{start} to {end} is no span of time in seconds')
  return times


def _checked(
  labels: pathlib.Path,
  class_names: Collection[str],
  entries: Iterable[tuple[str, Annotated]],
) -> Annotations:
  """Returns the annotation of videos whose labels a list of classes has.

  Args:
    labels: The list of classes.
    class_names: What it says.
    entries: Place and contents; videos without a label are only counted.

  Raises:
    ConfigError: The list lacks a label.
  """
  known = frozenset(class_names)
  videos, num_unlabelled = [], 0
  for where, video in entries:
    if video.label is None:
      num_unlabelled += 1
      continue
    if video.label not in known:
      raise ConfigError(
        f'{where}: the label {video.label!r} is not in {labels}.'
      )
    videos.append(video)
  return single_label(videos, tuple(class_names), num_unlabelled)


def _lists(files: Sequence[pathlib.Path], pattern: str) -> list[pathlib.Path]:
  """Returns the files whose names match those of the publisher's lists.

  Raises:
    ConfigError: None does.
  """
  found = [path for path in files if re.search(pattern, path.name)]
  if not found:
    raise ConfigError(
      f'--annotations: none of {_listing(files)} is a list of videos (a name '
      f'that matches {pattern}).'
    )
  return found


def _companion(
  files: Sequence[pathlib.Path], pattern: str, usual_name: str
) -> pathlib.Path:
  """Finds the list of classes: one of the files, or a file beside them.

  Args:
    files: The annotation files.
    pattern: Matches the name of the list.
    usual_name: Its name, for the error.

  Raises:
    ConfigError: There is none.
  """
  folders = dict.fromkeys(path.parent for path in files)
  beside = [p for folder in folders for p in sorted(folder.iterdir())]
  for path in (*files, *beside):
    if re.search(pattern, path.name):
      return path
  raise ConfigError(
    f'--annotations: there is no list of classes ({usual_name}) among or '
    f'beside {_listing(files)}.'
  )


def _listing(paths: Sequence[pathlib.Path]) -> str:
  names = [str(path) for path in paths[:3]]
  return ', '.join(names) + (', …' if len(paths) > 3 else '') or 'no files'


def _split(path: pathlib.Path) -> str:
  split = split_of_file(path)
  assert split is not None, f'{path} was chosen by its split'
  return split


# The values of --dataset.
VIDEO_SETS = {
  'kinetics400': VideoSet('kinetics400', _kinetics, (400,)),
  'kinetics600': VideoSet('kinetics600', _kinetics, (600,)),
  'kinetics700': VideoSet('kinetics700', _kinetics, (700,)),
  'ssv1': VideoSet('something_something_v1', _something_v1, (174,), 12.0),
  'ssv2': VideoSet('something_something_v2', _something_v2, (174,)),
  'charades': VideoSet('charades', _charades, (157,), 24.0),
  'mit': VideoSet('moments_in_time', _moments, (339, 305)),
  'ucf101': VideoSet('ucf101', _ucf101, (101,)),
  'hmdb51': VideoSet('hmdb51', _hmdb51, (51,)),
}
