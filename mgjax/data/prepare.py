r"""Prepares a data set of videos: one TFDS folder of encoded videos.

python -m mgjax.data.prepare --dataset=kinetics400 --videos=DIR \
  --annotations=FILE[,FILE...] --out=data

Every video file is decoded from its first to its last frame, so that no damage
waits for training, and once more as training will; files that fail are left out
and listed with the reason. All cores work; a killed run continues where it was
when the same command is started again. The folder then also holds

  manifest.jsonl  a line per annotated video: id, split, labels, file, frames,
                  rate, size, duration, SHA-256 of the file, MD5 of what its
                  frames show; or why it is not there
  summary.json    counts, coverage per class, damaged files, files that are
                  not used, settings, and the manifest's own SHA-256, which
                  evaluation records quote

With --dataset=folder, the classes are folders ([train|validation|test/]CLASS/
VIDEO), or --annotations names a CSV file with path,label[,split].
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import process
from typing import Any, NamedTuple

import av
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_info as tfds_info
from tensorflow_datasets.core import example_serializer, naming
from tensorflow_datasets.core import splits as tfds_splits

from mgjax import environment, files
from mgjax.cli import ArgumentParser, ConfigError, RunError, guard
from mgjax.data import annotations as annotations_lib
from mgjax.data import child_process, transcode
from mgjax.data.annotations import VIDEO_SETS, Annotated, Annotations
from mgjax.data.decode import DecodeError
from mgjax.data.transcode import Encoding, without_suffix
from mgjax.progress import Progress

VERSION = '1.0.0'
MANIFEST = 'manifest.jsonl'
SUMMARY = 'summary.json'

# What a killed run leaves: a file per finished shard. Removed at the end.
_PARTS = 'parts'
# Among the parts: damaged files, as they are found; at which files workers
# died; and, followed by a process id, the file that a worker is at.
_QUARANTINED = 'quarantined.jsonl'
_DEATHS = 'deaths.jsonl'
_AT = 'at-'
# A death may have another cause than the file, such as too little memory.
_MAX_DEATHS = 2

# Why files are not used.
_OTHER_KIND = 'neither a video nor a folder of frames'
_NOT_ANNOTATED = 'not in the annotation'
_LINK = 'links to what is there already, or to nothing'
# How many of each the summary names.
_MAX_NAMED = 1000

_NOT_UTF8 = 'its name is not UTF-8; rename it'


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the command line says; every flag is described there."""

  dataset: str
  videos: pathlib.Path
  annotations: tuple[pathlib.Path, ...]
  out: pathlib.Path
  name: str
  classes: pathlib.Path | None
  num_classes: int | None
  fold: int
  validation_fraction: float
  encoding: Encoding
  videos_per_shard: int
  max_bad_fraction: float
  max_missing_fraction: float
  num_workers: int
  beam_runner: str
  beam_options: str


class Item(NamedTuple):
  """A video to be stored."""

  id: str
  path: str  # Relative to the videos' folder.
  size: int  # Bytes of the file, or files in the folder.
  mtime_ns: int
  label: int | None
  actions: tuple[tuple[int, float, float], ...]  # Label, start_s, end_s.


@dataclasses.dataclass(frozen=True)
class Shard:
  """All that a process needs to write one file of the data set."""

  videos: str  # Folder that the items' paths start from.
  folder: str  # Of the data set.
  file_name: str
  split: str
  index: int
  class_names: tuple[str, ...]
  has_actions: bool
  encoding: Encoding
  items: tuple[Item, ...]

  @property
  def part(self) -> pathlib.Path:
    """Where its share of the manifest is until the data set is complete."""
    name = f'{self.split}-{self.index:05d}.jsonl'
    return pathlib.Path(self.folder) / _PARTS / name

  def fingerprint(self) -> str:
    """Hash of all that determines the file, but for the videos' own bytes."""
    inputs = (
      self.file_name,
      self.class_names,
      self.has_actions,
      dataclasses.astuple(self.encoding),
      self.items,
    )
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Plan:
  """What will be written, known before the first video is opened."""

  name: str  # For config.data.name.
  folder: pathlib.Path
  annotations: Annotations
  shards: tuple[Shard, ...]
  missing: tuple[Annotated, ...]  # Annotated, but without a file.
  # Whose names no manifest can hold; they count as damaged.
  misnamed: tuple[Annotated, ...]
  # The same id again, or the same file under another one; left out.
  duplicates: tuple[Annotated, ...]
  unused: dict[str, tuple[str, ...]]  # Files, by the reason.

  @property
  def num_items(self) -> int:
    return sum(len(shard.items) for shard in self.shards) + len(self.misnamed)

  def fingerprint(self) -> str:
    parts = [shard.fingerprint() for shard in self.shards]
    parts += [f'{video.split} {video.id}' for video in self.missing]
    parts += [
      f'{video.split} {video.id} {_NOT_UTF8}' for video in self.misnamed
    ]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def prepare(settings: Settings, *, progress: bool = True) -> pathlib.Path:
  """Writes the data set, or what is still missing of it.

  Args:
    settings: What to write and where.
    progress: Whether to show a progress bar and to report on stderr.

  Returns:
    Folder for `tfds.builder_from_directory`.

  Raises:
    ConfigError: A setting cannot work, or the folder holds a data set that
      was made from something else.
    RunError: Too many videos are damaged, or a worker died.
  """

  def report(message: str) -> None:
    if progress:
      print(message, file=sys.stderr)

  plan = make_plan(settings)
  if (plan.folder / 'dataset_info.json').exists():
    summary = _read_summary(plan.folder)
    if summary.get('plan_sha256') != plan.fingerprint():
      raise ConfigError(
        f'{plan.folder} holds a data set made from other files or settings; '
        'choose another --name or --out, or delete it.'
      )
    report(f'{plan.name} is already prepared: {plan.folder}')
    return plan.folder
  _check_missing(plan, settings)
  with _locked(plan.folder):
    todo = _clean(plan)
    if plan.misnamed:
      with (plan.folder / _PARTS / _QUARANTINED).open('a') as log:
        log.write(_json_lines(_misnamed_records(plan)))
      _check_bad(len(plan.misnamed), plan, settings)
    if len(todo) < len(plan.shards):
      report(f'{len(plan.shards) - len(todo)} shards are done already')
    if settings.beam_runner:
      _write_on_beam(todo, settings)
    else:
      while not _write_here(plan, todo, settings, progress):
        death = _read_deaths(plan.folder)[-1]
        report(f'a worker died at {death["file"]} ({death["cause"]}); going on')
        todo = _clean(plan)
    summary = _finish(plan, settings)
  for line in _report_lines(plan, summary, settings):
    report(line)
  return plan.folder


# ---- Before the work ----


def make_plan(settings: Settings) -> Plan:
  """Reads the annotation, finds the files and assigns them to shards.

  Raises:
    ConfigError: Something of it cannot work.
  """
  if not settings.videos.is_dir():
    raise ConfigError(f'--videos: there is no folder {settings.videos}.')
  data_name = _data_name(settings)
  name, _, config = data_name.partition('/')
  listing = list_files(settings.videos, leave_out=settings.out / name)
  index = listing.index
  everything = _read_annotations(settings, listing)
  annotations = _choose_classes(everything, settings)
  folder = settings.out / name / config / VERSION

  found: dict[str, list[tuple[bytes, Annotated, str | None]]] = {}
  seen = set()
  files = set()
  duplicates, misnamed = [], []
  for video in annotations.videos:
    path = find_file(video, index)
    file = listing.targets.get(path, path)
    if (video.split, video.id) in seen or (file in files and path is not None):
      duplicates.append(video)
      continue
    seen.add((video.split, video.id))
    files.add(file)
    if path in listing.misnamed:
      misnamed.append(video._replace(file=path))
      continue
    # Ordered by hash: every shard is a random sample, the same in every run.
    order = hashlib.sha256(video.id.encode()).digest()
    found.setdefault(video.split, []).append((order, video, path))

  label_of = {name: k for k, name in enumerate(annotations.class_names)}
  shards = []
  missing = []
  for split, videos in sorted(found.items()):
    if not any(path for _, _, path in videos):
      raise ConfigError(
        f'--videos: no file of the {split} split is under {settings.videos} '
        f'({len(videos)} are annotated; looked for '
        f'{videos[0][1].names[0]}.mp4 and the like); leave its annotation out '
        'if you do not have it.'
      )
    videos.sort(key=lambda v: v[:2])
    # Cut by annotated videos: a file that turns up later changes its own
    # shard and no other.
    num_shards = -(-len(videos) // settings.videos_per_shard)
    for number in range(num_shards):
      first, end = (len(videos) * n // num_shards for n in (number, number + 1))
      items = []
      for _, video, path in videos[first:end]:
        if path is None:
          missing.append(video)
        else:
          items.append(_item(video, path, settings.videos, label_of))
      file_name = f'{name}-{split}.array_record'
      shards.append(
        Shard(
          videos=str(settings.videos.absolute()),
          folder=str(folder.absolute()),
          file_name=f'{file_name}-{number:05d}-of-{num_shards:05d}',
          split=split,
          index=number,
          class_names=annotations.class_names,
          has_actions=annotations.has_actions,
          encoding=settings.encoding,
          items=tuple(items),
        )
      )
  if not shards:
    raise ConfigError(
      f'--videos: {misnamed[0].file}: {_NOT_UTF8} (so it is with all '
      f'{len(misnamed)} videos).'
    )
  return Plan(
    name=data_name,
    folder=folder,
    annotations=annotations,
    shards=tuple(shards),
    missing=tuple(missing),
    misnamed=tuple(misnamed),
    duplicates=tuple(duplicates),
    unused=_unused(everything, listing, settings),
  )


def _unused(
  annotations: Annotations, listing: 'Listing', settings: Settings
) -> dict[str, tuple[str, ...]]:
  """Files of which nothing becomes of the data set, by the reason.

  Those of classes that are not wanted are not among them.
  """
  used = {find_file(video, listing.index) for video in annotations.videos}
  used_targets = {listing.targets.get(path, path) for path in used}
  annotated, links = [], list(listing.links)
  for path in itertools.chain.from_iterable(listing.index.values()):
    if path not in used:
      is_used = listing.targets.get(path, path) in used_targets
      (links if is_used else annotated).append(path)
  # The annotation may lie beside the videos.
  top = os.path.realpath(settings.videos)
  flags = [*settings.annotations, *filter(None, [settings.classes])]
  own = {os.path.relpath(os.path.realpath(path), top) for path in flags}
  others = [
    path
    for path in listing.others
    if own.isdisjoint({path, os.path.dirname(path)})
  ]
  unused = {_OTHER_KIND: others, _LINK: links, _NOT_ANNOTATED: annotated}
  return {why: tuple(sorted(paths)) for why, paths in unused.items() if paths}


def _read_annotations(settings: Settings, listing: 'Listing') -> Annotations:
  """Reads the annotation.

  Raises:
    ConfigError: It cannot be read, or has no videos.
  """
  fraction = settings.validation_fraction
  if settings.dataset != 'folder':
    if not settings.annotations:
      raise ConfigError(
        f'--annotations is missing; give the files of {settings.dataset} as '
        'its publisher ships them, or their folder.'
      )
    annotations = annotations_lib.read(
      settings.dataset, settings.annotations, fold=settings.fold
    )
  elif settings.annotations:
    annotations = annotations_lib.from_csv(
      settings.annotations, validation_fraction=fraction
    )
  else:
    # The files themselves, and links to what is elsewhere.
    paths = {}
    for path in sorted(
      path for paths in listing.index.values() for path in paths
    ):
      file = listing.targets.get(path, path)
      if path == file or file not in paths:
        paths[file] = path
    annotations = annotations_lib.from_folders(
      sorted(paths.values()), validation_fraction=fraction
    )
  if not annotations.videos:
    others = f'; {listing.others[0]} is none' if listing.others else ''
    raise ConfigError(
      f'--videos: there is no video under {settings.videos}{others}.'
    )
  return annotations


def _choose_classes(
  annotations: Annotations, settings: Settings
) -> Annotations:
  """Keeps the wanted classes."""
  class_names = None
  if settings.classes:
    if not settings.classes.is_file():
      raise ConfigError(f'--classes: there is no file {settings.classes}.')
    lines = files.read_text(settings.classes).splitlines()
    class_names = [line.strip() for line in lines if line.strip()]
  elif settings.num_classes is not None:
    class_names = annotations_lib.sample_classes(
      annotations, settings.num_classes
    )
  if class_names is None:
    return annotations
  return annotations_lib.choose_classes(annotations, class_names)


def _data_name(settings: Settings) -> str:
  """Returns name[/config], under which the data set is stored."""
  name = settings.name
  if not name:
    if settings.dataset == 'folder':
      raise ConfigError('--name is missing; --dataset=folder has none.')
    name = VIDEO_SETS[settings.dataset].name
    if settings.classes:
      name += f'_{re.sub("[^a-z0-9]+", "_", settings.classes.stem.lower())}'
    elif settings.num_classes is not None:
      name += f'_mini{settings.num_classes}'
    if settings.encoding.short_side_px:
      name += f'/short{settings.encoding.short_side_px}'
  if not re.fullmatch(r'[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)?', name):
    raise ConfigError(
      f'--name is {name!r}; use NAME or NAME/CONFIG of lower-case letters, '
      'digits and _.'
    )
  return name


class Listing(NamedTuple):
  """What is below a folder; paths are relative to it, with /.

  In names that are not UTF-8, what is not is written as \\x and two digits.
  """

  index: dict[str, list[str]]  # Videos and frame folders, by name.
  targets: dict[str, str]  # The files that links among these lead to.
  misnamed: set[str]  # Videos and frame folders with such names.
  links: list[str]  # That lead to nothing, or to a folder that is listed.
  others: list[str]  # Files of other kinds.


def list_files(
  folder: pathlib.Path, leave_out: pathlib.Path | None = None
) -> Listing:
  """Lists the video files and frame folders below a folder.

  Links are followed, but a folder is listed once: under a path without links
  if it has one below this folder.

  Args:
    folder: The folder.
    leave_out: A folder below it that is not listed.

  Raises:
    ConfigError: A folder below it cannot be read.
  """
  listing = Listing(collections.defaultdict(list), {}, set(), [], [])
  listed = {os.path.realpath(leave_out)} if leave_out else set()
  top = os.path.realpath(folder)
  # Paths to list, and those without links of the same folders.
  pending = [('.', top)]
  links = []
  while pending or links:
    if not pending:  # Links last, so that what is no link has its own path.
      pending, links = sorted(links, reverse=True), []
    path, real = pending.pop()
    if real in listed:
      # Not in the folder that is left out, or by another way.
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
  """Adds the files of one folder, with what they lead to."""
  suffixes = {_suffix(path) for path, _ in files}
  # Beside videos, pictures are something else.
  is_frames = (
    not suffixes.isdisjoint(transcode.FRAME_CODECS)
    and suffixes.isdisjoint(transcode.VIDEO_SUFFIXES)
    and folder != '.'
  )
  found = [(folder, folder)] if is_frames else []
  for path, target in files:
    if _suffix(path) in transcode.VIDEO_SUFFIXES:
      found.append((path, target))
    elif not (is_frames and _suffix(path) in transcode.FRAME_CODECS):
      listing.others.append(_printable(path))
  for raw, target in found:
    path, target = _printable(raw), _printable(target)
    name = path.rsplit('/', 1)[-1]
    listing.index[name if raw == folder else without_suffix(name)].append(path)
    if target != path:
      listing.targets[path] = target
    if path != raw:
      listing.misnamed.add(path)


def _printable(path: str) -> str:
  """A path in which bytes that are not UTF-8 are written as \\x.."""
  return path.encode(errors='surrogateescape').decode(errors='backslashreplace')


def _suffix(name: str) -> str:
  return os.path.splitext(name)[1].lower()


def find_file(video: Annotated, index: dict[str, list[str]]) -> str | None:
  """Returns the path of an annotated video, or None if it has no file.

  The path as it is annotated comes first, then that with another suffix.
  Where files of one name lie in several other folders, that in the folder of
  the video's split or class is taken.
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


def _item(
  video: Annotated,
  path: str,
  videos: pathlib.Path,
  label_of: dict[str, int],
) -> Item:
  try:
    stat = (videos / path).stat()
    size = stat.st_size
    if (videos / path).is_dir():
      size = len(os.listdir(videos / path))
  except OSError as error:
    raise ConfigError(f'--videos: {path}: {error.strerror}.') from error
  return Item(
    id=video.id,
    path=path,
    size=size,
    mtime_ns=stat.st_mtime_ns,
    label=None if video.label is None else label_of[video.label],
    actions=tuple(
      (label_of[a.label], a.start_s, a.end_s) for a in video.actions
    ),
  )


# ---- One shard ----


def make_features(
  class_names: Sequence[str], has_actions: bool
) -> tfds.features.FeaturesDict:
  """Returns the features of an example: video, id, and label or actions."""
  label = tfds.features.ClassLabel(names=list(class_names))
  annotation = {'label': label}
  if has_actions:
    times = {'start_s': tfds.features.Scalar(np.float32)}
    times['end_s'] = tfds.features.Scalar(np.float32)
    annotation = {'actions': tfds.features.Sequence({'label': label, **times})}
  return tfds.features.FeaturesDict(
    {
      # Text holds raw bytes; features.Video would need TensorFlow.
      'video': tfds.features.Text(),
      'id': tfds.features.Text(),
      **annotation,
    }
  )


def write_shard(
  shard: Shard,
  on_video: Callable[[bool], None] = lambda is_bad: None,
  before_video: Callable[[Item], None] = lambda item: None,
) -> None:
  """Writes a file of the data set and its part of the manifest, atomically.

  A function of the shard alone, on whatever machine; writing it twice is
  harmless.

  Args:
    shard: What to write.
    on_video: Called after every video with whether it is damaged.
    before_video: Called with every video before it is read.

  Raises:
    RunError: A file cannot be read (a damaged one is none of these), or the
      disk is full.
  """
  folder = pathlib.Path(shard.folder)
  features = make_features(shard.class_names, shard.has_actions)
  serializer = example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  deaths = _read_deaths(folder)
  records = []
  # A name of its own: Beam may run the same shard twice at once.
  path = folder / shard.file_name
  with files.replacing(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(
      str(temporary), 'group_size:1'
    )
    try:
      for item in shard.items:
        before_video(item)
        record, video = _load(item, shard, deaths)
        if video is not None:
          record['shard'] = shard.index
          example = {'video': video, 'id': item.id, **_annotation(item, shard)}
          encoded = features.encode_example(example)
          with _writing(path):
            writer.write(serializer.serialize_example(encoded))
        else:
          # At once: a run that stops for too many of them should say why.
          with (folder / _PARTS / _QUARANTINED).open('a') as log:
            log.write(_json_lines([record]))
        records.append(record)
        on_video(video is None)
    finally:
      with _writing(path):
        writer.close()
  header = {
    'fingerprint': shard.fingerprint(),
    'num_bytes': (folder / shard.file_name).stat().st_size,
  }
  files.write_text(shard.part, _json_lines([header, *records]))


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
  """Says in a line of ours what ArrayRecord says where it cannot write."""
  try:
    yield
  except RuntimeError as error:
    reason = str(error).split(';')[0]
    raise RunError(
      f'{path} cannot be written: {reason}. Finished shards are kept; once '
      'there is room, the same command goes on.'
    ) from error


def _load(
  item: Item, shard: Shard, deaths: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], bytes | None]:
  """Returns a video's line of the manifest, and its bytes if it is sound."""
  record = {
    'id': item.id,
    'split': shard.split,
    'labels': [shard.class_names[k] for k in _labels(item)],
    'status': 'stored',
    'file': item.path,
  }
  path = pathlib.Path(shard.videos) / item.path
  causes = [d['cause'] for d in deaths if _key(item).items() <= d.items()]
  try:
    if len(causes) >= _MAX_DEATHS:
      raise DecodeError(f'kills the process that reads it: {causes[-1]}')
    video = transcode.load(path, shard.encoding)
  except DecodeError as error:
    reason = ' '.join(str(error).split())
    return {**record, 'status': 'quarantined', 'reason': reason}, None
  except OSError as error:
    # Not the video's fault: the disk's, or the network's.
    raise RunError(
      f'cannot read {path}: {error}; start again to continue.'
    ) from error
  except MemoryError as error:
    raise RunError(
      f'out of memory at {path}: {error}; start again to continue, perhaps '
      'with fewer --num_workers.'
    ) from error
  record |= {
    'num_frames': video.scan.num_frames,
    'fps': video.scan.fps,  # In full: frame indices are computed from it.
    'width': video.scan.width,
    'height': video.scan.height,
    'duration_s': round(video.scan.duration_s, 4),
    'rotation_degrees': video.scan.rotation_degrees,
    'is_transcoded': video.is_transcoded,
    'num_bytes': len(video.encoded),
    'sha256': hashlib.sha256(video.encoded).hexdigest(),
    'frames_md5': video.scan.frames_md5,
  }
  return record, video.encoded


def _key(item: Item) -> dict[str, Any]:
  """What tells a file from others, and from its own later versions."""
  return {'file': item.path, 'size': item.size, 'mtime_ns': item.mtime_ns}


def _labels(item: Item) -> list[int]:
  if item.label is not None:
    return [item.label]
  return sorted({label for label, _, _ in item.actions})


def _annotation(item: Item, shard: Shard) -> dict[str, Any]:
  if not shard.has_actions:
    return {'label': item.label}
  keys = ('label', 'start_s', 'end_s')
  return {'actions': [dict(zip(keys, a, strict=True)) for a in item.actions]}


def is_written(shard: Shard) -> bool:
  """Whether an earlier run wrote the shard from the same files."""
  try:
    header, *records = _read_part(shard)
    size = (pathlib.Path(shard.folder) / shard.file_name).stat().st_size
  except (FileNotFoundError, ValueError):
    return False  # ValueError: half of a part, after the power went.
  expected = {'fingerprint': shard.fingerprint(), 'num_bytes': size}
  return (
    header == expected
    and len(records) == len(shard.items)
    # Earlier versions did not try random access.
    and all('frames_md5' in r for r in records if r['status'] == 'stored')
  )


# ---- All shards ----


def _write_here(
  plan: Plan, todo: Sequence[Shard], settings: Settings, progress: bool
) -> bool:
  """Writes shards with one process per core, and shows the progress.

  Returns:
    Whether all are written; False: a worker died and there is a note at which
    file, so that it is not read a third time.
  """
  num_todo = sum(len(shard.items) for shard in todo)
  num_bad = _num_quarantined(set(plan.shards) - set(todo)) + len(plan.misnamed)
  num_workers = settings.num_workers or environment.num_cpus()
  # What is done already does not count for the time left.
  num_done = plan.num_items - num_todo
  bar = Progress(plan.num_items, num_done, unit='video', quiet=not progress)

  def update(num_new: int, num_bad: int) -> None:
    nonlocal num_done
    num_done += num_new
    bar.update(num_done, f'{num_bad} damaged  {bar.time_left(num_done)}')
    _check_bad(num_bad, plan, settings)

  with contextlib.closing(bar):
    # A file that kills its process should not kill this one, unless asked to.
    if todo and settings.num_workers != 1:
      return _write_in_processes(todo, num_workers, num_bad, update)
    for shard in todo:

      def count(is_bad: bool) -> None:
        nonlocal num_bad
        num_bad += is_bad
        update(1, num_bad)

      write_shard(shard, count)
  return True


def _write_in_processes(
  todo: Sequence[Shard],
  num_workers: int,
  num_bad: int,
  update: Callable[[int, int], None],
) -> bool:
  parts = todo[0].part.parent
  # Not fork: the parent may have threads (TFDS), which a fork breaks.
  context = multiprocessing.get_context('spawn')
  counts = context.Array('q', 3)  # Videos done, damaged; whether to stop.
  child_process.before_start()
  pool = concurrent.futures.ProcessPoolExecutor(
    min(num_workers, len(todo)),
    mp_context=context,
    initializer=_start_worker,
    initargs=(counts, parts),
  )
  num_shown = 0
  with pool:
    pending = {pool.submit(_write_and_count, shard) for shard in todo}
    workers = multiprocessing.active_children()
    try:
      while pending:
        finished, pending = concurrent.futures.wait(
          pending, 0.2, concurrent.futures.FIRST_COMPLETED
        )
        for future in finished:
          future.result()
        num_done, num_new_bad, _ = counts[:]
        update(num_done - num_shown, num_bad + num_new_bad)
        num_shown = num_done
    except process.BrokenProcessPool as error:
      pool.shutdown(wait=True)
      deaths = _log_deaths(workers, parts)
      # Killed: by the system, short of memory, or by a person. What a file
      # does to its decoder has another cause.
      killed = signal.strsignal(signal.SIGKILL)
      if not deaths or any(d['cause'] == killed for d in deaths):
        places = ''.join(f' at {d["file"]} ({d["cause"]})' for d in deaths)
        raise RunError(
          f'a worker died{places}, perhaps out of memory; finished shards are '
          'kept: start again to continue, perhaps with fewer --num_workers; a '
          'file at which a worker dies a second time is left out.'
        ) from error
      return False
    except BaseException:
      # Workers stop after the video that they are at.
      counts[2] = 1
      pool.shutdown(wait=True, cancel_futures=True)
      raise
  return True


def _log_deaths(
  workers: Iterable[multiprocessing.process.BaseProcess], parts: pathlib.Path
) -> list[dict[str, Any]]:
  """Notes at which files workers died, and returns that."""
  deaths = []
  for worker in workers:
    place = parts / f'{_AT}{worker.pid}'
    code = worker.exitcode
    # The pool itself terminates those that live on.
    if code in (0, -signal.SIGTERM) or not place.exists():
      continue
    cause = signal.strsignal(-code) if code < 0 else f'exit code {code}'
    deaths.append({**json.loads(place.read_text()), 'cause': cause})
  with (parts / _DEATHS).open('a') as log:
    log.write(_json_lines(deaths))
  return deaths


def _read_deaths(folder: pathlib.Path) -> list[dict[str, Any]]:
  try:
    lines = (folder / _PARTS / _DEATHS).read_text().splitlines()
  except FileNotFoundError:
    return []
  # A kill leaves half a line.
  return [json.loads(line) for line in lines if line.endswith('}')]


class _StoppedError(Exception):
  """The parent told this worker to stop."""


_counts: Any = None
_place: pathlib.Path


def _start_worker(counts: Any, parts: pathlib.Path) -> None:
  global _counts, _place
  _counts = counts
  _place = parts / f'{_AT}{os.getpid()}'
  child_process.start()


def _write_and_count(shard: Shard) -> None:
  def count(is_bad: bool) -> None:
    with _counts.get_lock():
      _counts[0] += 1
      _counts[1] += is_bad
    if _counts[2]:
      raise _StoppedError

  def say_where(item: Item) -> None:
    _place.write_text(json.dumps(_key(item)))

  write_shard(shard, count, say_where)
  _place.unlink(missing_ok=True)


def _write_on_beam(todo: Sequence[Shard], settings: Settings) -> None:
  """Writes shards on the workers of an Apache Beam runner.

  They see the same files under the same paths: a shared file system.

  Differs: TFDS 4.9.10 has a builder that writes shards with Beam
    (ShardBasedBuilder). It keeps all videos of a shard in memory, runs the
    first split again with the second, and mixes up the lengths of 11 shards
    or more (sorted as text), so the same pipeline is written out here.
  """
  try:
    import apache_beam as beam
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise ConfigError(
      '--beam_runner: Apache Beam is not installed; pip install -r '
      'requirements-beam.txt.'
    ) from error
  try:
    words = shlex.split(settings.beam_options)
    options = pipeline_options.PipelineOptions(words)
    pipeline = beam.Pipeline(runner=settings.beam_runner, options=options)
  except Exception as error:  # Every runner has its own.
    raise ConfigError(
      f'--beam_runner={settings.beam_runner}, --beam_options='
      f'{settings.beam_options!r}: {error}'
    ) from error
  _ = (
    pipeline
    | beam.Create(list(todo))
    # Else a runner may fuse the steps and write all shards in one place.
    | beam.Reshuffle()
    | beam.Map(write_shard)
  )
  try:
    pipeline.run().wait_until_finish()
  except Exception as error:  # A worker's, in whatever the runner makes of it.
    raise RunError(
      f'Apache Beam, {settings.beam_runner}: {error} (finished shards are kept)'
    ) from error


def _check_missing(plan: Plan, settings: Settings) -> None:
  """Refuses a split too much of which has no file: --videos may be wrong.

  Raises:
    ConfigError: Names the split, the numbers, and how to accept them.
  """
  there = collections.Counter()
  for shard in plan.shards:
    there[shard.split] += len(shard.items)
  missing = collections.Counter(video.split for video in plan.missing)
  for split, count in missing.items():
    annotated = there[split] + count
    if count > settings.max_missing_fraction * annotated:
      first = next(v for v in plan.missing if v.split == split)
      share = math.ceil(100 * count / annotated) / 100
      raise ConfigError(
        f'--videos: {count} of the {annotated} videos of the {split} split '
        f'have no file under {settings.videos}, such as {first.names[0]}.*, '
        f'more than --max_missing_fraction={settings.max_missing_fraction:g} '
        f'allows; get them, or accept it with --max_missing_fraction={share:g}.'
      )


def _check_bad(num_bad: int, plan: Plan, settings: Settings) -> None:
  if num_bad > settings.max_bad_fraction * plan.num_items:
    raise RunError(
      f'{num_bad} of {plan.num_items} videos are damaged, more than '
      f'--max_bad_fraction={settings.max_bad_fraction:g} allows; see '
      f'{plan.folder / _PARTS / _QUARANTINED}. Start again with a larger '
      'fraction to continue without them.'
    )


# ---- After the work ----


def _finish(plan: Plan, settings: Settings) -> dict[str, Any]:
  """Writes manifest, summary and TFDS's description, this one last."""
  records = []
  lengths = collections.defaultdict(list)
  num_bytes = collections.Counter()
  for shard in plan.shards:
    header, *lines = _read_part(shard)
    records.extend(lines)
    stored = [line for line in lines if line['status'] == 'stored']
    lengths[shard.split].append(len(stored))
    num_bytes[shard.split] += header['num_bytes']
  num_bad = _count(records, status='quarantined') + len(plan.misnamed)
  _check_bad(num_bad, plan, settings)
  for split, shard_lengths in lengths.items():
    if not sum(shard_lengths):
      raise RunError(f'every video of the {split} split is damaged.')
  records += [
    _not_stored(video, status='missing', reason=f'no file {video.names[0]}.*')
    for video in plan.missing
  ]
  records += _misnamed_records(plan)
  records.sort(key=lambda r: (r['split'], r['id']))
  manifest = _json_lines(records)
  files.write_text(plan.folder / MANIFEST, manifest)
  summary = _summarize(plan, settings, records)
  summary['manifest_sha256'] = hashlib.sha256(manifest.encode()).hexdigest()
  files.write_text(
    plan.folder / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False)
  )
  _write_tfds_info(plan, settings, lengths, num_bytes)
  shutil.rmtree(plan.folder / _PARTS)
  return summary


def _misnamed_records(plan: Plan) -> list[dict[str, Any]]:
  return [
    _not_stored(video, status='quarantined', file=video.file, reason=_NOT_UTF8)
    for video in plan.misnamed
  ]


def _not_stored(video: Annotated, **why: str) -> dict[str, Any]:
  """The line of a video that no shard has to do with."""
  labels = {a.label for a in video.actions} or {video.label} - {None}
  return {
    'id': video.id,
    'split': video.split,
    'labels': sorted(labels),
    **why,
  }


def _summarize(
  plan: Plan, settings: Settings, records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  splits = {}
  for split in sorted({record['split'] for record in records}):
    in_split = [r for r in records if r['split'] == split]
    stored = [r for r in in_split if r['status'] == 'stored']
    splits[split] = {
      'annotated': len(in_split),
      'stored': len(stored),
      'missing': _count(in_split, status='missing'),
      'quarantined': _count(in_split, status='quarantined'),
      'transcoded': _count(stored, is_transcoded=True),
      'frames': sum(r['num_frames'] for r in stored),
      'hours': round(sum(r['duration_s'] for r in stored) / 3600, 4),
      'gib': round(sum(r['num_bytes'] for r in stored) / 2**30, 6),
    }
  coverage = {
    name: {split: {'annotated': 0, 'stored': 0} for split in splits}
    for name in plan.annotations.class_names
  }
  for record in records:
    for label in record['labels']:
      counts = coverage[label][record['split']]
      counts['annotated'] += 1
      counts['stored'] += record['status'] == 'stored'
  published = VIDEO_SETS.get(settings.dataset)
  return {
    'name': plan.name,
    'version': VERSION,
    'dataset': settings.dataset,
    'splits': splits,
    'num_classes': len(coverage),
    # Another number shifts the labels: a list of videos was not complete.
    'published_num_classes': list(published.num_classes) if published else [],
    'num_unlabelled': plan.annotations.num_unlabelled,
    'duplicates': [
      {'id': v.id, 'split': v.split, 'label': v.label, 'file': v.file}
      for v in plan.duplicates
    ],
    'classes': coverage,
    'quarantined': [
      {key: r[key] for key in ('id', 'split', 'file', 'reason')}
      for r in records
      if r['status'] == 'quarantined'
    ],
    'unused': {
      why: {'count': len(paths), 'files': paths[:_MAX_NAMED]}
      for why, paths in plan.unused.items()
    },
    'settings': {
      **dataclasses.asdict(settings.encoding),
      'fold': settings.fold,
      'validation_fraction': settings.validation_fraction,
      'max_bad_fraction': settings.max_bad_fraction,
      'max_missing_fraction': settings.max_missing_fraction,
    },
    'annotations': {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in annotations_lib.list_files(settings.annotations)
    },
    'software': {'av': av.__version__, 'tfds': tfds.__version__},
    'plan_sha256': plan.fingerprint(),
  }


def _write_tfds_info(
  plan: Plan,
  settings: Settings,
  lengths: dict[str, list[int]],
  num_bytes: dict[str, int],
) -> None:
  """Writes what `tfds.builder_from_directory` reads."""
  name, _, config = plan.name.partition('/')
  annotations = plan.annotations
  info = tfds.core.DatasetInfo(
    builder=tfds_info.DatasetIdentity(
      name=name,
      version=tfds.core.Version(VERSION),
      data_dir=str(plan.folder),
      module_name=__name__,
      config_name=config or None,
    ),
    description=f'Videos of {settings.dataset}, prepared by {__name__}.',
    features=make_features(annotations.class_names, annotations.has_actions),
  )
  info.set_file_format('array_record')
  info.set_splits(
    tfds_splits.SplitDict(
      [
        tfds_splits.SplitInfo(
          name=split,
          shard_lengths=shard_lengths,
          num_bytes=num_bytes[split],
          filename_template=naming.ShardedFileTemplate(
            data_dir=plan.folder,
            dataset_name=name,
            split=split,
            filetype_suffix='array_record',
          ),
        )
        for split, shard_lengths in lengths.items()
      ]
    )
  )
  last = 'dataset_info.json'
  with tempfile.TemporaryDirectory(dir=plan.folder / _PARTS) as temporary:
    info.write_to_directory(temporary)
    names = os.listdir(temporary)
    # A folder with this file is a complete data set.
    for file_name in sorted(names, key=lambda n: n == last):
      os.replace(pathlib.Path(temporary) / file_name, plan.folder / file_name)


def _report_lines(
  plan: Plan, summary: dict[str, Any], settings: Settings
) -> Iterator[str]:
  """Yields what a person wants to know at the end."""
  for split, counts in summary['splits'].items():
    yield (
      f'{split}: {counts["stored"]} videos stored ({counts["gib"]:.2f} GiB, '
      f'{counts["hours"]:.1f} h), {counts["missing"]} missing, '
      f'{counts["quarantined"]} damaged'
    )
    empty = [
      name
      for name, splits in summary['classes'].items()
      if not splits[split]['stored']
    ]
    if empty:
      yield f'{split}: no video of {len(empty)} classes ({empty[0]}, …)'
  if plan.duplicates:
    names = ', '.join(v.file or v.id for v in plan.duplicates[:3])
    more = ', …' if len(plan.duplicates) > 3 else ''
    yield (
      f'left out {len(plan.duplicates)} videos whose id was there already: '
      f'{names}{more}; {SUMMARY} lists them'
    )
  for why, paths in plan.unused.items():
    more = ', …' if len(paths) > 3 else ''
    yield (
      f'did not use {len(paths)} files ({why}): {", ".join(paths[:3])}{more}; '
      f'{SUMMARY} lists them'
    )
  is_mini = settings.classes or settings.num_classes is not None
  published = summary['published_num_classes']
  if published and not is_mini and summary['num_classes'] not in published:
    numbers = ' or '.join(map(str, published))
    yield f'{summary["num_classes"]} classes; published are {numbers}'
  yield f'Prepared {plan.folder}; use --config.data.name={plan.name}'


# ---- Files ----


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps a second run out of the folder; the lock dies with the process."""
  parts = folder / _PARTS
  try:
    parts.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f'--out: cannot write to {folder}: {error}.') from error
  with (parts / 'lock').open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ConfigError(f'another run is writing {folder}.') from error
    yield


def _clean(plan: Plan) -> list[Shard]:
  """Removes what does not belong to the plan; returns what is to be written.

  Raises:
    ConfigError: The disk is too small.
  """
  todo = [shard for shard in plan.shards if not is_written(shard)]
  keep = {_PARTS, 'lock', _QUARANTINED, _DEATHS}
  for shard in set(plan.shards) - set(todo):
    keep |= {shard.file_name, shard.part.name}
  for path in (*plan.folder.iterdir(), *(plan.folder / _PARTS).iterdir()):
    if path.name not in keep:
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  # What transcoding makes of the videos is not known before.
  if not plan.shards[0].encoding.short_side_px:
    needed = sum(_num_bytes(item, s.videos) for s in todo for item in s.items)
    free = shutil.disk_usage(plan.folder).free
    if needed > free:
      raise ConfigError(
        f'--out: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB '
        f'are free in {plan.folder}.'
      )
  return todo


def _num_bytes(item: Item, videos: str) -> int:
  """Bytes that a video will take, to the accuracy of one of its frames."""
  path = pathlib.Path(videos, item.path)
  if not path.is_dir():
    return item.size
  # Asking for the size of every frame would take minutes on a network disk.
  with os.scandir(path) as files:
    frames = (f for f in files if _suffix(f.name) in transcode.FRAME_CODECS)
    sizes = (frame.stat().st_size for frame in frames)
    return item.size * next(sizes, 0)


def _read_part(shard: Shard) -> list[dict[str, Any]]:
  with shard.part.open() as part:
    return [json.loads(line) for line in part]


def _num_quarantined(shards: Iterable[Shard]) -> int:
  return sum(_count(_read_part(s)[1:], status='quarantined') for s in shards)


def _read_summary(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / SUMMARY
  return files.read_json(path) if path.exists() else {}


def _count(records: Iterable[dict[str, Any]], **wanted: Any) -> int:
  return sum(
    all(record[key] == value for key, value in wanted.items())
    for record in records
  )


def _json_lines(records: Iterable[dict[str, Any]]) -> str:
  return ''.join(f'{json.dumps(r, ensure_ascii=False)}\n' for r in records)


# ---- Command line ----


def _parse(argv: Sequence[str] | None) -> Settings:
  """Reads the flags.

  Raises:
    ConfigError: A value is out of its range.
  """
  parser = ArgumentParser(
    prog='python -m mgjax.data.prepare',
    description=__doc__,
  )
  add = parser.add_argument
  add('--dataset', required=True, choices=[*VIDEO_SETS, 'folder'])
  add('--videos', required=True, help='folder of videos or frame folders')
  add(
    '--annotations',
    default='',
    help="the publisher's files, or a folder of them; several with commas",
  )
  add('--out', default='data', help='folder of prepared data sets (data)')
  add('--name', default='', help='NAME[/CONFIG] of the prepared data set')
  add('--classes', help='file of the classes to keep, in order of the labels')
  add('--num_classes', type=int, help='keep so many classes, always the same')
  add('--fold', type=int, default=1, help='UCF101, HMDB51: split 1, 2 or 3 (1)')
  add(
    '--validation_fraction',
    type=float,
    default=0.1,
    help='share of validation videos where nothing tells the split (0.1)',
  )
  add(
    '--short_side_px',
    type=int,
    default=0,
    help='encode all videos anew, at most this small; 0: store as is (0)',
  )
  add(
    '--gop',
    type=int,
    default=12,
    help='frames from key frame to key frame (12)',
  )
  add('--crf', type=int, default=20, help="x264's quality, 0 to 51 (20)")
  add(
    '--frame_fps',
    type=float,
    help="frames per second of frame folders (the data set's, else 30)",
  )
  add('--videos_per_shard', type=int, default=256, help='(256)')
  add(
    '--max_bad_fraction',
    type=float,
    default=0.01,
    help='share of damaged files that is tolerated (0.01)',
  )
  add(
    '--max_missing_fraction',
    type=float,
    default=0.3,
    help="share of a split's annotated videos that may have no file (0.3)",
  )
  add(
    '--num_workers',
    type=int,
    default=0,
    help='processes; 0: all cores; 1: this one (0)',
  )
  add('--beam_runner', default='', help='run on Apache Beam: DirectRunner, …')
  add('--beam_options', default='', help="the runner's options, as one text")
  args = parser.parse_args(argv)
  for flag, accepted, is_right in (
    ('num_classes', '1 or more', lambda v: v is None or v >= 1),
    ('fold', '1, 2 or 3', lambda v: v in (1, 2, 3)),
    ('validation_fraction', 'from 0 to below 1', lambda v: 0 <= v < 1),
    ('short_side_px', '0 or an even number from 16', _is_short_side),
    ('gop', '1 or more', lambda v: v >= 1),
    ('crf', 'from 0 to 51', lambda v: 0 <= v <= 51),
    ('frame_fps', 'above 0', lambda v: v is None or 0 < v < 1000),
    ('videos_per_shard', '1 or more', lambda v: v >= 1),
    ('max_bad_fraction', 'from 0 to 1', lambda v: 0 <= v <= 1),
    ('max_missing_fraction', 'from 0 to 1', lambda v: 0 <= v <= 1),
    ('num_workers', '0 or more', lambda v: v >= 0),
  ):
    if not is_right(getattr(args, flag)):
      raise ConfigError(
        f'--{flag} is {getattr(args, flag)}; it must be {accepted}.'
      )
  if args.classes and args.num_classes is not None:
    raise ConfigError('--classes and --num_classes exclude each other.')
  if args.beam_options and not args.beam_runner:
    raise ConfigError('--beam_options needs a --beam_runner.')
  published = VIDEO_SETS.get(args.dataset)
  frame_fps = args.frame_fps or (published and published.frame_fps) or 30.0
  return Settings(
    dataset=args.dataset,
    videos=pathlib.Path(args.videos),
    annotations=tuple(
      pathlib.Path(p) for p in args.annotations.split(',') if p
    ),
    out=pathlib.Path(args.out),
    name=args.name,
    classes=pathlib.Path(args.classes) if args.classes else None,
    num_classes=args.num_classes,
    fold=args.fold,
    validation_fraction=args.validation_fraction,
    encoding=Encoding(args.short_side_px, args.gop, args.crf, frame_fps),
    videos_per_shard=args.videos_per_shard,
    max_bad_fraction=args.max_bad_fraction,
    max_missing_fraction=args.max_missing_fraction,
    num_workers=args.num_workers,
    beam_runner=args.beam_runner,
    beam_options=args.beam_options,
  )


def _is_short_side(value: int) -> bool:
  return value == 0 or (value >= 16 and value % 2 == 0)


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the data set that the arguments describe; returns a code."""

  def command() -> None:
    prepare(_parse(argv))

  return guard(command)


if __name__ == '__main__':
  # Beam's workers look the functions up under the module's own name.
  from mgjax.data import prepare as module

  sys.exit(module.main())
