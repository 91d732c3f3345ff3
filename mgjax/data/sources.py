"""Opens a prepared data set for random access to its encoded videos.

Every data set has the same form: a TFDS folder of ArrayRecord files whose
examples are {'video': encoded bytes, 'label': class, 'id': text}; a set with
any number of timed labels per video (Charades) has 'actions' in place of
'label'. Nothing here needs TensorFlow.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mgjax.data import copies as copies_lib
from mgjax.data import description
from mgjax.data.copies import Copies
from mgjax.data.decode import Form, Video
from mgjax.data.decoded_cache import DecodedCache
from mgjax.data.records import DamagedRecordError, Records
from mgjax.errors import ConfigError, RunError


class TimedLabel(NamedTuple):
  """A labelled part of a video, in seconds from its start."""

  label: int
  start_s: float
  end_s: float


class Example(NamedTuple):
  """One video of a data set."""

  video: bytes  # The encoded file.
  label: int | None  # None where the data set has actions.
  id: str
  actions: tuple[TimedLabel, ...] = ()
  form: Form | None = None  # Of the original, where this is a smaller copy.
  in_order: Form | None = None  # See `mgjax.data.decode.Video`.
  opened: Video | None = None  # In the place of `video`, if it is no file.

  def open(self, cache: DecodedCache | None = None) -> Video:
    """Opens the video, for a `with`.

    Args:
      cache: May have its frames; None: there is none.

    Raises:
      DecodeError: The bytes are not a video.
    """
    if self.opened:
      return self.opened
    # Not a partial one: by its name in this module.
    decode = lambda: Video(self.video, in_order=self.in_order)
    return (cache and cache.open(self.video, decode)) or decode()


@dataclasses.dataclass(eq=False, repr=False)
class Source:
  """Random access to the examples of one split.

  Streams ask a source for its length, its attributes, `read` and `name_of`;
  whoever has videos elsewhere than in a prepared data set derives a class and
  replaces `__len__` and `__getitem__`.

  Attributes:
    name: Of the data set.
    split: Of it.
    records: What is stored, as TFDS decodes it.
    label_names: Name of each label.
    has_actions: Whether examples have actions, and no label.
    manifest_sha256: Hash of the manifest, which lists every video of the data
      set; None where there is none (generated data sets).
    copies: Smaller copies of the videos, for `read`; None: there are none.
    folder: Of the data set, where it is a prepared one.
  """

  name: str
  split: str
  records: Any
  label_names: tuple[str, ...]
  has_actions: bool = False
  manifest_sha256: str | None = None
  copies: Copies | None = None
  folder: epath.Path | None = None

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Example:
    return self._example(self.records, index)

  def read(self, index: int, *, short_px: int) -> Example:
    """An example whose frames will be resized to a short side.

    Args:
      index: Of the example.
      short_px: The short side.

    Returns:
      The example, or its smallest copy that has as many pixels as are needed.

    Raises:
      DamagedRecordError: What is stored is damaged.
      RunError: The disk cannot be read.
    """
    copy = self.copies and self.copies.choose(index, short_px)
    if not copy:
      return self[index]
    example = self._example(copy.records, int(copy.places[index]))
    return example._replace(form=self.copies.form(index))

  def encoded(self) -> Iterator[bytes]:
    """Yields the files that `read` can return, smallest copies first.

    Raises:
      RunError: The disk cannot be read.
    """
    copies = self.copies.copies if self.copies else ()
    for records in (*(copy.records for copy in copies), self.records):
      for index in range(len(records)):
        with contextlib.suppress(DamagedRecordError):
          yield self._example(records, index).video

  def name_of(self, index: int) -> str:
    """The id of an example; where it is stored, if that is damaged."""
    try:
      return self[index].id
    except DamagedRecordError as error:
      return error.record

  def labels(self) -> np.ndarray:
    """The class of every example, of a source without actions.

    A manifest tells them at once; without one, every example is read, once.

    Returns:
      int64 [N]; -1 where the example is damaged.

    Raises:
      RunError: The disk cannot be read.
    """
    return self._labels

  @functools.cached_property
  def _labels(self) -> np.ndarray:
    if self.manifest_sha256:
      number = {name: k for k, name in enumerate(self.label_names)}
      lines = copies_lib.read_manifest(self.folder, self.split)
      return np.array([number[line['labels'][0]] for line in lines], np.int64)
    found = np.full(len(self), -1)
    for index in range(len(self)):
      with contextlib.suppress(DamagedRecordError):
        found[index] = self.label_of(index)
    return found

  def label_of(self, index: int) -> int:
    """The class of an example, of a source without actions."""
    return self[index].label

  def _example(self, records, index: int) -> Example:
    try:
      example = records[index]
    except OSError as error:
      raise RunError(
        f'{self.name}, split {self.split!r}: example {index} cannot be read '
        f'({type(error).__name__}: {error}); is the disk or mount of the data '
        'set still there? The same command goes on from the newest checkpoint'
      ) from error
    video, name = bytes(example['video']), example['id'].decode()
    if not self.has_actions:
      return Example(video, int(example['label']), name)
    columns = (example['actions'][n] for n in ('label', 'start_s', 'end_s'))
    return Example(
      video,
      None,
      name,
      tuple(
        TimedLabel(int(label), float(start), float(end))
        for label, start, end in zip(*columns, strict=True)
      ),
    )


def union_labels(
  actions: Sequence[TimedLabel],
  num_classes: int,
  *,
  first_frame: int = 0,
  last_frame: int | None = None,
  fps: float = 1.0,
) -> np.ndarray:
  """Every label that some frame of a clip, or of a whole video, has.

  Frame i is shown at i / fps seconds and has the labels of the actions that
  last then, both ends included.

  Args:
    actions: Timed labels of the video.
    num_classes: K.
    first_frame: First frame of the clip.
    last_frame: Last one; None: the labels of all actions, whenever they are.
    fps: Frame rate of the video.

  Returns:
    float32 [K], 1 for these labels and 0 for the others; possibly all 0.

  Source: SlowFast charades.py: training clips have the labels of all frames
    from their first to their last, evaluation clips those of the whole video.
  """
  labels = np.zeros(num_classes, np.float32)
  for action in actions:
    if last_frame is not None:
      first = max(first_frame, math.ceil(action.start_s * fps))
      if first > min(last_frame, math.floor(action.end_s * fps)):
        continue
    labels[action.label] = 1
  return labels


def stack_labels(labels: list) -> np.ndarray:
  """Labels of a batch: int32 [b], or float32 [b, K] where they are vectors."""
  dtype = np.float32 if np.ndim(labels[0]) else np.int32
  return np.array(labels, dtype)


def open_source(
  data_dir: epath.PathLike, name: str, split: str, *, copies: bool = True
) -> Source:
  """Opens a split of a prepared data set.

  Args:
    data_dir: Folder of all data sets.
    name: NAME[/CONFIG][:VERSION].
    split: Such as 'train'.
    copies: Whether clips that need no more pixels are read from the smaller
      copies of the data set, where there are some (mgjax/data/copies.py).

  Raises:
    ConfigError: The data set, or the split in it, does not exist, or a copy
      is not one of it.
  """
  folder = description.needed_folder(data_dir, name)
  builder = tfds.builder_from_directory(str(folder))
  if split not in builder.info.splits:
    raise ConfigError(
      f'{folder} has no split {split!r}; it has {sorted(builder.info.splits)}'
    )
  label_names = copies_lib.labels_of(builder)
  manifest = folder / 'manifest.jsonl'
  return Source(
    name=name,
    split=split,
    records=Records(builder, split),
    label_names=label_names,
    has_actions='actions' in builder.info.features,
    manifest_sha256=(
      hashlib.sha256(manifest.read_bytes()).hexdigest()
      if manifest.exists()
      else None
    ),
    copies=(
      copies_lib.find(folder, name.partition(':')[0], split, label_names)
      if copies
      else None
    ),
    folder=folder,
  )
