"""Smaller copies of a data set, read where a clip needs no more pixels.

`mgjax.data.prepare --short_side_px=128` writes NAME/short128 beside NAME, or
with --name=NAME/CONFIG_short128 beside NAME/CONFIG. A coarse grid takes its
clips from the smallest copy that is large enough for the resized clip, because
it is decoded several times faster. Frames and crop of a clip are computed from
the form of the original in every case, so that a copy changes nothing but the
pixels' last bits.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mgjax.data.decode import Form
from mgjax.data.records import DamagedRecordError, Records
from mgjax.errors import ConfigError

_MANIFEST = 'manifest.jsonl'


@dataclasses.dataclass(frozen=True)
class Copy:
  """A copy of a split.

  Attributes:
    name: Of its data set, such as 'kinetics400/short128'.
    records: Random access to its examples.
    places: int64 [N], where each video of the original is in it; -1: nowhere.
    short_side_px: int64 [N], of its videos.
  """

  name: str
  records: Records
  places: np.ndarray
  short_side_px: np.ndarray


@dataclasses.dataclass(frozen=True)
class Copies:
  """The copies of a split, smallest first, and the forms of its videos."""

  copies: tuple[Copy, ...]
  num_frames: np.ndarray  # int64 [N]
  fps: np.ndarray  # float64 [N]
  hw: np.ndarray  # int64 [N, 2]

  def form(self, index: int) -> Form:
    """Form of the original of a video."""
    return Form(
      int(self.num_frames[index]),
      float(self.fps[index]),
      *map(int, self.hw[index]),
    )

  def choose(self, index: int, short_px: int) -> Copy | None:
    """The smallest copy of a video that is large enough for a clip.

    Args:
      index: The video's place in the original.
      short_px: Short side to which its frames are resized.

    Returns:
      A copy; None where only the original will do.
    """
    needed = min(short_px, self.hw[index].min())
    for copy in self.copies:
      if copy.places[index] >= 0 and copy.short_side_px[index] >= needed:
        return copy
    return None


def labels_of(builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
  """Name of each label of a data set."""
  features = builder.info.features
  if 'actions' in features:
    features = features['actions']
  return tuple(features['label'].names)


def find(
  folder: epath.Path, name: str, split: str, label_names: Sequence[str]
) -> Copies | None:
  """Opens the copies of a split.

  Args:
    folder: Of the data set that is copied, with its version.
    name: NAME[/CONFIG] or NAME/[CONFIG_]short256: copies are
      NAME/[CONFIG_]shortN with a smaller N.
    split: Of it.
    label_names: Name of each of its labels.

  Returns:
    None where there is no copy, or the data set has no manifest.

  Raises:
    ConfigError: A copy does not hold what its manifest says, or has other
      labels.
  """
  family, _, config = name.partition('/')
  own = re.fullmatch(r'(|.+_)short(\d+)', config)
  prefix = own[1] if own else config and f'{config}_'
  if not (folder / _MANIFEST).exists():
    return None
  parent = folder.parent.parent if config else folder.parent
  found = []
  for path in parent.glob(f'{prefix}short*/{folder.name}/{_MANIFEST}'):
    number = re.fullmatch(rf'{prefix}short(\d+)', path.parent.parent.name)
    if number and (not own or int(number[1]) < int(own[2])):
      found.append((int(number[1]), path.parent))
  if not found:
    return None
  originals = read_manifest(folder, split)
  if not originals:
    return None
  copies = []
  for number, path in sorted(found):
    name = f'{family}/{prefix}short{number}'
    try:
      copies.append(_open(path, name, split, originals, label_names))
    except _OtherLabelsError as error:
      raise ConfigError(
        f'the labels of {path} are not those of {folder}: {error}; prepare the '
        'copy again from the same annotation, or set data.copies=False'
      ) from error
  return Copies(
    copies=tuple(copy for copy in copies if copy is not None),
    num_frames=np.array([r['num_frames'] for r in originals]),
    fps=np.array([r['fps'] for r in originals], np.float64),
    hw=np.array([[r['height'], r['width']] for r in originals]),
  )


class _OtherLabelsError(Exception):
  """The examples of a copy have other labels; says which."""


def _open(
  folder: epath.Path,
  name: str,
  split: str,
  originals: Sequence[dict],
  label_names: Sequence[str],
) -> Copy | None:
  """Opens a copy; None if it is not complete or lacks the split."""
  if not (folder / 'dataset_info.json').exists():
    return None
  builder = tfds.builder_from_directory(str(folder))
  if split not in builder.info.splits:
    return None
  # Examples come with the copy's own labels, which are numbers.
  for label, names in enumerate(
    itertools.zip_longest(labels_of(builder), label_names)
  ):
    if names[0] != names[1]:
      raise _OtherLabelsError(
        f'label {label} is {names[0]!r}, not {names[1]!r}'
      )
  copied = read_manifest(folder, split)
  place_of = {record['id']: i for i, record in enumerate(copied)}
  places = np.full(len(originals), -1)
  short_side_px = np.zeros(len(originals), np.int64)
  for i, original in enumerate(originals):
    place = place_of.get(original['id'], -1)
    # Frame i of a copy is frame i of the original.
    if place >= 0 and copied[place]['num_frames'] == original['num_frames']:
      if copied[place]['labels'] != original['labels']:
        raise _OtherLabelsError(
          f'video {original["id"]} has {copied[place]["labels"]}, not '
          f'{original["labels"]}'
        )
      places[i] = place
      sides = copied[place]['height'], copied[place]['width']
      short_side_px[i] = min(sides)
  records = Records(builder, split)
  for place in {0, len(copied) - 1}:
    try:
      stored = records[place]['id'].decode()
    except DamagedRecordError:  # Told when its turn comes.
      stored = copied[place]['id']
    if len(records) != len(copied) or stored != copied[place]['id']:
      raise ConfigError(
        f'{folder / _MANIFEST} is not that of the data set in its folder; '
        'prepare the copy again, or set data.copies=False'
      )
  return Copy(name, records, places, short_side_px)


def read_manifest(folder: epath.Path, split: str) -> list[dict]:
  """Lines of the stored videos of a split, in the order of its examples."""
  with (folder / _MANIFEST).open() as file:
    records = [json.loads(line) for line in file]
  stored = [
    record
    for record in records
    if record['status'] == 'stored' and record['split'] == split
  ]
  # The order in which mgjax.data.prepare writes them.
  return sorted(
    stored,
    key=lambda r: (r['shard'], hashlib.sha256(r['id'].encode()).digest()),
  )
