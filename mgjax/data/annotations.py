"""Reads the annotation files of video data sets as their publishers ship them.

Every reader returns the same: the class names in the order of the labels, and
for each video its id, split, label (or actions, where a video has several)
and the names under which its file is looked for. Nothing here opens a video.
"""

import csv
import difflib
import hashlib
import io
import math
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from mgjax.cli import ConfigError
from mgjax.data.transcode import without_suffix
from mgjax.files import read_json, read_text


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
  """What an annotation says."""

  class_names: tuple[str, ...]  # Label k is class_names[k].
  videos: tuple[Annotated, ...]
  has_actions: bool = False  # Any number of timed labels per video.
  num_unlabelled: int = 0  # Videos of test lists without labels; left out.


class VideoSet(NamedTuple):
  """A public data set."""

  name: str  # Of the prepared data set.
  read: Callable[[Sequence[pathlib.Path], int], Annotations]
  num_classes: tuple[int, ...]  # Of its published versions.
  # Frames per second of the frame folders it is published as; None: it is
  # published as videos.
  frame_fps: float | None = None


_SPLITS = {
  'train': 'train',
  'training': 'train',
  'trainingset': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validate': 'validation',
  'validation': 'validation',
  'validationset': 'validation',
  'test': 'test',
  'testing': 'test',
  'testset': 'test',
}


def read(
  dataset: str, paths: Sequence[pathlib.Path], *, fold: int
) -> Annotations:
  """Reads the annotation of a public data set.

  Args:
    dataset: A key of VIDEO_SETS.
    paths: Annotation files, or folders of them as the publisher packs them.
      A list of classes is also found beside the given files.
    fold: Which of the published train/test splits, from 1 (UCF101, HMDB51).

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
  """Returns the files, and those in the folders.

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


def choose_classes(
  annotations: Annotations, class_names: Sequence[str]
) -> Annotations:
  """Keeps the videos of some classes, whose labels follow the given order.

  Actions of other classes are dropped, and videos without any left.

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
  """Returns some classes, always the same ones, in the order of the labels.

  Raises:
    ConfigError: There are not so many.
  """
  names = annotations.class_names
  if not 1 <= num_classes <= len(names):
    raise ConfigError(
      f'--num_classes is {num_classes}; the annotation has {len(names)} '
      'classes.'
    )
  # Ordered by hash: a choice that depends on the names alone, and of which a
  # smaller one is a part.
  chosen = set(sorted(names, key=_hash_fraction)[:num_classes])
  return [name for name in names if name in chosen]


def from_folders(
  paths: Iterable[str], *, validation_fraction: float
) -> Annotations:
  """Takes the labels from folders: [SPLIT/]CLASS/.../VIDEO.

  Args:
    paths: Of all videos, relative to the top folder.
    validation_fraction: Share of videos that become the validation split
      where there are no folders for splits. A video's split depends on its
      path alone.

  Raises:
    ConfigError: A video is in no class folder, or only some are in splits.
  """
  paths = list(paths)
  parts = [tuple(without_suffix(path).split('/')) for path in paths]
  in_split = [p[0].lower() in _SPLITS for p in parts]
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
    split = (
      _SPLITS[part[0].lower()]
      if has_split
      else _drawn_split(name, validation_fraction)
    )
    videos.append(Annotated(name, split, rest[0], (name,), file=path))
  return _single_label(videos)


def from_csv(
  paths: Sequence[pathlib.Path], *, validation_fraction: float
) -> Annotations:
  """Reads CSV files with the columns path, label and, if wanted, split.

  A header `path,label[,split]` may stand first. Without a split column the
  file's name tells it (train.csv, val.csv), else it is drawn.

  Args:
    paths: The files.
    validation_fraction: As in `from_folders`.

  Raises:
    ConfigError: A row has another form, or an unknown split.
  """
  videos = []
  for path in paths:
    if not path.is_file():
      raise ConfigError(f'--annotations: there is no file {path}.')
    for place, (where, row) in enumerate(_rows(path)):
      if place == 0 and row[0] == 'path':
        continue
      if len(row) not in (2, 3) or not (row[0] and row[1]):
        raise ConfigError(
          f'{where}: {",".join(row)!r}; the form is path,label or '
          'path,label,split.'
        )
      name = _stem(row[0])
      if len(row) == 3:
        split = _split(row[2], where)
      else:
        split = _split_of_file(path) or _drawn_split(name, validation_fraction)
      videos.append(Annotated(name, split, row[1], (name,), file=row[0]))
  return _single_label(videos)


# ---- Formats ----

_KINETICS_CSV = 'the columns are label,youtube_id,time_start,time_end,split.'
_KINETICS_JSON = (
  'the form is {"annotations": {"label": "…", "segment": [1.0, 11.0]}, '
  '"subset": "train"}.'
)


def _kinetics(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """CSV with a header, or JSON; clips are ID_000012_000022."""
  del fold
  videos = []
  num_unlabelled = 0
  # The publisher packs every list in both forms.
  has_csv = any(path.suffix == '.csv' for path in files)
  for path in _lists(files, r'\.csv$' if has_csv else r'\.json$'):
    for where, row in _kinetics_rows(path):
      if 'youtube_id' in row and not row.get('label'):
        num_unlabelled += 1
        continue
      try:
        start, end = _times(row['time_start'], row['time_end'])
        clip = f'{row["youtube_id"]}_{int(start):06d}_{int(end):06d}'
        label = _text_of(row['label'])
      except (KeyError, TypeError, ValueError) as error:
        form = _KINETICS_CSV if path.suffix == '.csv' else _KINETICS_JSON
        raise ConfigError(f'{where}: {_wrong(error)}; {form}') from error
      split = row.get('split')
      split = _split(str(split), where) if split else _split_of_file(path)
      if split is None:
        raise ConfigError(f'{where}: no split, neither here nor in the name.')
      videos.append(Annotated(clip, split, label, (clip, row['youtube_id'])))
  return _single_label(videos, num_unlabelled=num_unlabelled)


def _kinetics_rows(path: pathlib.Path) -> list[tuple[str, dict]]:
  if path.suffix == '.csv':
    return _named_rows(path)
  rows = []
  for youtube_id, entry in read_json(path, dict).items():
    where = f'{path}, entry {youtube_id!r}'
    try:
      notes = entry.get('annotations', {})
      start, end = notes.get('segment', (None, None))
      row = {
        'youtube_id': youtube_id,
        'label': notes.get('label'),
        'time_start': start,
        'time_end': end,
        'split': entry.get('subset'),
      }
    except (AttributeError, TypeError, ValueError) as error:
      raise ConfigError(f'{where}: {error}; {_KINETICS_JSON}') from error
    rows.append((where, row))
  return rows


def _something_v1(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """`id;label` lists and a list of labels, one per line."""
  del fold
  path = _companion(
    files, r'labels?\.csv$', 'something-something-v1-labels.csv'
  )
  names = [(where, row[0]) for where, row in _rows(path, delimiter=';')]
  class_names = _classes((*name, k) for k, name in enumerate(names))
  check = _label_check(class_names, path)
  videos = []
  num_unlabelled = 0
  for path in _lists(files, r'(train|val|validation|test)\.csv$'):
    for where, row in _rows(path, delimiter=';'):
      if len(row) < 2:
        num_unlabelled += 1
        continue
      label = check(row[1], where)
      videos.append(Annotated(row[0], _named_split(path), label, (row[0],)))
  return _single_label(videos, class_names, num_unlabelled)


def _something_v2(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """JSON lists with templates, and a JSON list of labels with indices."""
  del fold
  path = _companion(files, r'labels\.json$', 'labels.json')
  labels = []
  for name, index in read_json(path, dict).items():
    where = f'{path}, entry {name!r}'
    try:
      labels.append((where, name, int(index)))
    except (TypeError, ValueError) as error:
      raise ConfigError(
        f'{where}: the index is {index!r}; it must be a whole number.'
      ) from error
  class_names = _classes(labels)
  check = _label_check(class_names, path)
  videos = []
  num_unlabelled = 0
  for path in _lists(files, r'(train|val|validation|test)\.json$'):
    for number, entry in enumerate(read_json(path, list), 1):
      where = f'{path}, entry {number}'
      try:
        name = str(entry['id'])
        template = entry.get('template')
        if template is None:
          num_unlabelled += 1
          continue
        label = re.sub(r'[\[\]]', '', template)
      except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
          f'{where}: {_wrong(error)}; the form is {{"id": "1", "template": '
          '"Holding [something]"}.'
        ) from error
      label = check(label, where)
      videos.append(Annotated(name, _named_split(path), label, (name,)))
  return _single_label(videos, class_names, num_unlabelled)


def _charades(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """CSV with `c092 11.90 21.20;...`; the test list is the validation split."""
  del fold
  path = _companion(files, r'_v1_classes\.txt$', 'Charades_v1_classes.txt')
  names = []
  for where, line in _lines(path):
    code, _, name = line.partition(' ')
    if not name:
      raise ConfigError(f"{where}: {line!r}; the form is 'c000 class'.")
    names.append((where, code, name))
  # Codes are numbered, and name the classes, too.
  codes = _classes((w, code, k) for k, (w, code, _) in enumerate(names))
  class_names = _classes((w, name, k) for k, (w, _, name) in enumerate(names))
  label_of = dict(zip(codes, class_names, strict=True))
  videos = []
  for path in _lists(files, r'_v1_(train|test)\.csv$'):
    for where, row in _named_rows(path):
      try:
        actions = []
        for part in filter(None, row['actions'].split(';')):
          code, start, end = part.split()
          actions.append(Action(label_of[code], *_times(start, end)))
        name = row['id']
      except (AttributeError, KeyError, ValueError) as error:
        raise ConfigError(
          f'{where}: {_wrong(error)}; the columns are id,...,actions,length '
          "with actions such as 'c092 11.90 21.20;c147 0.00 12.60'."
        ) from error
      split = _only_test_is_validation(_named_split(path))
      videos.append(Annotated(name, split, None, (name,), tuple(actions)))
  return Annotations(class_names, tuple(videos), has_actions=True)


def _moments(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """CSV `class/video.mp4,class,votes,votes` and `class,index` categories."""
  del fold
  path = _companion(files, r'categories\.txt$', 'moments_categories.txt')
  indices = []
  for where, row in _rows(path):
    try:
      name, index = row
      indices.append((where, name, int(index)))
    except ValueError as error:
      raise ConfigError(
        f'{where}: {",".join(row)!r}; the form is class,index.'
      ) from error
  class_names = _classes(indices)
  check = _label_check(class_names, path)
  videos = []
  for path in _lists(files, r'(training|validation)Set\.csv$'):
    for where, row in _rows(path):
      if len(row) < 2:
        raise ConfigError(
          f'{where}: {row[0]!r}; the form is class/video.mp4,class,…'
        )
      name, label = _stem(row[0]), check(row[1], where)
      videos.append(
        Annotated(name, _named_split(path), label, (name,), file=row[0])
      )
  return _single_label(videos, class_names)


def _ucf101(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """trainlist01.txt, testlist01.txt and classInd.txt."""
  path = _companion(files, r'^classInd\.txt$', 'classInd.txt')
  indices = []
  for where, line in _lines(path):
    try:
      index, name = line.split(' ', 1)
      indices.append((where, name, int(index)))
    except ValueError as error:
      raise ConfigError(f"{where}: {line!r}; the form is '1 class'.") from error
  class_names = _classes(indices)
  check = _label_check(class_names, path)
  videos = []
  for path in _lists(files, rf'^(train|test)list{fold:02d}\.txt$'):
    split = 'train' if path.name.startswith('train') else 'validation'
    for where, line in _lines(path):
      file = line.split(' ')[0]
      name = _stem(file)
      label = check(name.split('/')[0], where)
      names = (name, _base(name))
      videos.append(Annotated(name, split, label, names, file=file))
  return _single_label(videos, class_names)


def _hmdb51(files: Sequence[pathlib.Path], fold: int) -> Annotations:
  """CLASS_test_split1.txt with `video.avi 1`: 1 is train, 2 test, 0 unused."""
  suffix = f'_test_split{fold}.txt'
  videos = []
  for path in _lists(files, rf'{re.escape(suffix)}$'):
    label = path.name.removesuffix(suffix)
    for where, line in _lines(path):
      file_name, _, part = line.rpartition(' ')
      split = {'1': 'train', '2': 'validation', '0': None}.get(part, part)
      if split == part:
        raise ConfigError(
          f'{where}: {line!r} does not end with 0, 1 or 2, as HMDB51 has it.'
        )
      if split:
        file = f'{label}/{file_name.strip()}'
        name = _stem(file)
        names = (name, _base(name))
        videos.append(Annotated(name, split, label, names, file=file))
  return _single_label(videos)


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


# ---- Parts that the formats share ----


def _single_label(
  videos: Sequence[Annotated],
  class_names: Sequence[str] | None = None,
  num_unlabelled: int = 0,
) -> Annotations:
  """Without a list of classes, they are sorted by name."""
  if class_names is None:
    class_names = sorted({v.label for v in videos})
  return Annotations(
    tuple(class_names), tuple(videos), num_unlabelled=num_unlabelled
  )


def _classes(entries: Iterable[tuple[str, str, int]]) -> tuple[str, ...]:
  """Returns the names of the classes in the order of their numbers.

  Args:
    entries: Where it stands, name and number of every class.

  Raises:
    ConfigError: A name or a number is there twice: labels would be shifted
      against those of the publisher.
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
  """Start and end in seconds.

  Raises:
    TypeError, ValueError: They are no times, or not in this order.
  """
  times = float(start), float(end)
  # Written so that it does not hold for nan.
  if not 0 <= times[0] <= times[1] < math.inf:
    raise ValueError(f'{start} to {end} is no span of time in seconds')
  return times


def _wrong(error: Exception) -> str:
  """What an error says of an entry."""
  if isinstance(error, KeyError):
    return f'there is no {error.args[0]!r}'
  return str(error)


def _label_check(
  class_names: Collection[str], path: pathlib.Path
) -> Callable[[str, str], str]:
  """Returns a function that returns a label if the file of classes has it."""
  known = frozenset(class_names)

  def check(label: str, where: str) -> str:
    if label not in known:
      raise ConfigError(f'{where}: the label {label!r} is not in {path}.')
    return label

  return check


def _lists(files: Sequence[pathlib.Path], pattern: str) -> list[pathlib.Path]:
  """Returns the files whose names end like the publisher's lists."""
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
  """Returns the list of classes: one of the files, or a file beside them."""
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


def _split(word: str, where: str) -> str:
  if word.lower() not in _SPLITS:
    raise ConfigError(
      f'{where}: the split is {word!r}; it must be train, validation or test.'
    )
  return _SPLITS[word.lower()]


def _split_of_file(path: pathlib.Path) -> str | None:
  """Returns the split that a file's name tells, if it does."""
  words = re.split('[^a-z]+', path.stem.lower())
  return next((_SPLITS[w] for w in reversed(words) if w in _SPLITS), None)


def _named_split(path: pathlib.Path) -> str:
  split = _split_of_file(path)
  assert split is not None, f'{path} was chosen by its split'
  return split


def _only_test_is_validation(split: str) -> str:
  """Sets with one evaluation list call it test; here it is the validation."""
  return 'validation' if split == 'test' else split


def _drawn_split(name: str, validation_fraction: float) -> str:
  drawn = _hash_fraction(name) < validation_fraction
  return 'validation' if drawn else 'train'


def _hash_fraction(text: str) -> float:
  """Returns a number in [0, 1) that depends on the text alone."""
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64


def _stem(path: str) -> str:
  return path.rsplit('.', 1)[0] if '.' in path.rsplit('/', 1)[-1] else path


def _base(path: str) -> str:
  return path.rsplit('/', 1)[-1]


def _text_of(value: object) -> str:
  if not isinstance(value, str):
    raise TypeError(f'{value!r} is not a text')
  return value


def _rows(
  path: pathlib.Path, delimiter: str = ','
) -> list[tuple[str, list[str]]]:
  """Rows of a CSV file that are not empty, and where they stand."""
  reader = csv.reader(
    io.StringIO(read_text(path), newline=''),
    delimiter=delimiter,
    # Labels that start with a quotation mark are no quoted fields in V1.
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


def _named_rows(path: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  """As `_rows`, by the names of the columns in the first row."""
  rows = _rows(path)
  header = rows[0][1] if rows else []
  return [
    (where, dict(zip(header, row, strict=False))) for where, row in rows[1:]
  ]


def _lines(path: pathlib.Path) -> list[tuple[str, str]]:
  """Lines that are not empty, and where they stand."""
  return [
    (f'{path}, line {number}', line.strip())
    for number, line in enumerate(read_text(path).splitlines(), 1)
    if line.strip()
  ]
