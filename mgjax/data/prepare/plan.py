"""What is to be done: a plan of all shards, before the first video is opened.

The plan is a function of the settings, the annotation and the names, sizes and
times of the files. Two data sets that were made from the same have the same
fingerprint. A shard has a fingerprint, too: where it differs from that of an
earlier run, the shard is written again.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from mgjax.data.prepare import annotations as annotations_lib
from mgjax.data.prepare import layout, publishers
from mgjax.data.prepare.annotations import Annotated, Annotations
from mgjax.data.prepare.listing import Listing, find_file, list_files
from mgjax.data.prepare.settings import Settings
from mgjax.data.prepare.transcode import Encoding
from mgjax.errors import ConfigError

# Why files are not used.
_OTHER_KIND = 'neither a video nor a folder of frames'
_NOT_ANNOTATED = 'not in the annotation'
_LINK = 'links to what is there already, or to nothing'

# Why a video with a file is not stored, whatever is in the file.
NOT_UTF8 = 'its name is not UTF-8; rename it'


class Item(NamedTuple):
  """A video to be stored."""

  id: str
  path: str  # Relative to the videos' folder.
  size: int  # Bytes of the file, or number of files in the folder.
  mtime_ns: int  # When the file or the folder was last changed.
  label: int | None  # None where the data set has actions instead.
  actions: tuple[tuple[int, float, float], ...]  # Label, start_s, end_s.


@dataclasses.dataclass(frozen=True)
class Shard:
  """All that a process needs to write one file of the data set."""

  videos: str  # Folder that the items' paths start from; absolute.
  folder: str  # Folder of the data set; absolute.
  file_name: str
  split: str
  index: int  # Among the shards of the split, from 0.
  class_names: tuple[str, ...]
  has_actions: bool
  encoding: Encoding
  items: tuple[Item, ...]

  @property
  def part(self) -> pathlib.Path:
    """Path of its part of the manifest until the data set is complete."""
    name = f'{self.split}-{self.index:05d}.jsonl'
    return pathlib.Path(self.folder) / layout.PARTS / name

  def fingerprint(self) -> str:
    """Returns a hash of what determines the file: all but the videos' bytes.

    Size and time of change stand for the bytes, which would take hours to read.
    """
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
  """What will be written, known before the first video is opened.

  Attributes:
    name: Value of config.data.name that opens the data set.
    folder: Folder of the data set.
    annotations: Classes and videos that are wanted.
    shards: The files to be written.
    missing: Videos that are annotated and have no file.
    misnamed: Videos whose files have names that no manifest can hold. They
      count as damaged.
    duplicates: Videos with the id or the file of an earlier one. They are not
      stored.
    unused: Files that are not part of the data set, by the reason.
  """

  name: str
  folder: pathlib.Path
  annotations: Annotations
  shards: tuple[Shard, ...]
  missing: tuple[Annotated, ...]
  misnamed: tuple[Annotated, ...]
  duplicates: tuple[Annotated, ...]
  unused: dict[str, tuple[str, ...]]

  @property
  def num_items(self) -> int:
    """Number of videos that have a file."""
    return sum(len(shard.items) for shard in self.shards) + len(self.misnamed)

  def fingerprint(self) -> str:
    """Returns a hash that differs if another data set would be written."""
    parts = [shard.fingerprint() for shard in self.shards]
    parts += [f'{video.split} {video.id}' for video in self.missing]
    parts += [f'{video.split} {video.id} {NOT_UTF8}' for video in self.misnamed]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def make_plan(settings: Settings) -> Plan:
  """Reads the annotation, finds the files and assigns them to shards.

  Args:
    settings: What is wanted.

  Raises:
    ConfigError: The settings, the annotation and the files cannot work
      together.
  """
  if not settings.videos.is_dir():
    raise ConfigError(f'--videos: there is no folder {settings.videos}.')
  data_name = _data_name(settings)
  name, _, config = data_name.partition('/')
  listing = list_files(settings.videos, leave_out=settings.out / name)
  everything = _read_annotations(settings, listing)
  annotations = _choose_classes(everything, settings)
  for label in annotations.class_names:
    if label != label.strip():
      raise ConfigError(
        f'--videos={settings.videos}: the class {label!r} begins or ends with '
        'white space, which is not kept in names of classes; rename it'
      )
  plan = Plan(
    name=data_name,
    folder=settings.out / name / config / layout.VERSION,
    annotations=annotations,
    shards=(),
    missing=(),
    misnamed=(),
    duplicates=(),
    unused=_unused(everything, listing, settings),
  )
  by_split, misnamed, duplicates = _find_files(annotations, listing)
  shards: list[Shard] = []
  missing: list[Annotated] = []
  for split, videos in sorted(by_split.items()):
    if not any(path for _, path in videos):
      raise ConfigError(
        f'--videos: no file of the {split} split is under {settings.videos} '
        f'({len(videos)} are annotated; looked for '
        f'{videos[0][0].names[0]}.mp4 and the like); leave its annotation out '
        'if you do not have it.'
      )
    # Ordered by hash: every shard is a random sample of the split, the same in
    # every run.
    videos.sort(key=lambda v: (hashlib.sha256(v[0].id.encode()).digest(), v[0]))
    shards += _make_shards(split, videos, plan, settings)
    missing += [video for video, path in videos if path is None]
  if not shards:
    raise ConfigError(
      f'--videos: {misnamed[0].file}: {NOT_UTF8} (so it is with all '
      f'{len(misnamed)} videos).'
    )
  return dataclasses.replace(
    plan,
    shards=tuple(shards),
    missing=tuple(missing),
    misnamed=tuple(misnamed),
    duplicates=tuple(duplicates),
  )


# A video, and the path of its file; None: it has none.
_Found = tuple[Annotated, str | None]


def _find_files(
  annotations: Annotations, listing: Listing
) -> tuple[dict[str, list[_Found]], list[Annotated], list[Annotated]]:
  """Finds the files of all videos.

  Returns:
    The videos of every split; those whose files' names are not UTF-8; and
    those with the id or the file of an earlier one.
  """
  by_split, misnamed, duplicates = collections.defaultdict(list), [], []
  seen = set()
  for video in annotations.videos:
    path = find_file(video, listing.index)
    keys = {(video.split, video.id)}
    if path is not None:
      keys.add(listing.targets.get(path, path))
    if not seen.isdisjoint(keys):
      duplicates.append(video)
      continue
    seen |= keys
    if path in listing.misnamed:
      misnamed.append(video._replace(file=path))
    else:
      by_split[video.split].append((video, path))
  return by_split, misnamed, duplicates


def _make_shards(
  split: str, videos: Sequence[_Found], plan: Plan, settings: Settings
) -> list[Shard]:
  """Assigns the videos of a split to shards of about equal size.

  Args:
    split: The split.
    videos: All its annotated videos in order, also those without a file.
    plan: Has the name of the data set, its folder and its classes.
    settings: What is wanted.

  Raises:
    ConfigError: A file cannot be read.
  """
  names = plan.annotations.class_names
  label_of = {name: k for k, name in enumerate(names)}
  # Cut by annotated videos: a file that turns up later changes its own shard
  # and no other.
  num_shards = -(-len(videos) // settings.videos_per_shard)
  file_name = f'{plan.name.partition("/")[0]}-{split}.array_record'
  shards = []
  for number in range(num_shards):
    first, end = (len(videos) * n // num_shards for n in (number, number + 1))
    shards.append(
      Shard(
        videos=str(settings.videos.absolute()),
        folder=str(plan.folder.absolute()),
        file_name=f'{file_name}-{number:05d}-of-{num_shards:05d}',
        split=split,
        index=number,
        class_names=names,
        has_actions=plan.annotations.has_actions,
        encoding=settings.encoding,
        items=tuple(
          _item(video, path, settings.videos, label_of)
          for video, path in videos[first:end]
          if path is not None
        ),
      )
    )
  return shards


def _unused(
  annotations: Annotations, listing: Listing, settings: Settings
) -> dict[str, tuple[str, ...]]:
  """Returns the files that are not part of the data set, by the reason.

  Args:
    annotations: All classes: the files of those that are not wanted do not
      count as unused.
    listing: All files.
    settings: What is wanted.
  """
  used = {find_file(video, listing.index) for video in annotations.videos}
  used_targets = {listing.targets.get(path, path) for path in used}
  annotated, links = [], list(listing.links)
  for path in itertools.chain.from_iterable(listing.index.values()):
    if path not in used:
      is_used = listing.targets.get(path, path) in used_targets
      (links if is_used else annotated).append(path)
  # The annotation and the list of classes may lie beside the videos.
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


def _read_annotations(settings: Settings, listing: Listing) -> Annotations:
  """Reads the annotation, or takes it from the folders of the videos.

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
    annotations = publishers.read(
      settings.dataset, settings.annotations, fold=settings.fold
    )
  elif settings.annotations:
    annotations = annotations_lib.from_csv(
      settings.annotations, validation_fraction=fraction
    )
  else:
    # Of a file and links to it, one path counts: its own, if that is listed.
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
  """Keeps the wanted classes.

  Raises:
    ConfigError: The list of them cannot be read, or names an unknown class.
  """
  if settings.classes:
    if not settings.classes.is_file():
      raise ConfigError(f'--classes: there is no file {settings.classes}.')
    chosen = [line for _, line in annotations_lib.read_lines(settings.classes)]
  elif settings.num_classes is not None:
    chosen = annotations_lib.sample_classes(annotations, settings.num_classes)
  else:
    return annotations
  return annotations_lib.choose_classes(annotations, chosen)


def _data_name(settings: Settings) -> str:
  """Returns name[/config], under which the data set is stored.

  Raises:
    ConfigError: It is missing, or TFDS would not find it.
  """
  name = settings.name
  if not name:
    if settings.dataset == 'folder':
      raise ConfigError('--name is missing; --dataset=folder has none.')
    name = publishers.VIDEO_SETS[settings.dataset].name
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


def _item(
  video: Annotated,
  path: str,
  videos: pathlib.Path,
  label_of: dict[str, int],
) -> Item:
  """Looks at the file of a video, without opening it.

  Raises:
    ConfigError: It cannot be read.
  """
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
