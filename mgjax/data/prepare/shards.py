"""Writes one shard: a file of the data set, and its part of the manifest."""

import contextlib
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from mgjax import files
from mgjax.data.decode import DecodeError
from mgjax.data.prepare import deaths, quarantine, tfds_files, transcode
from mgjax.data.prepare.folder import json_lines
from mgjax.data.prepare.plan import Item, Shard
from mgjax.errors import RunError


def write_shard(
  shard: Shard,
  on_video: Callable[[bool], None] = lambda is_bad: None,
  before_video: Callable[[Item], None] = lambda item: None,
) -> None:
  """Writes a file of the data set, and then its part of the manifest.

  Each of them is there whole or not at all. The shard alone determines every
  byte of them, so writing it twice is harmless: Beam may do that, even at the
  same time.

  Args:
    shard: What to write.
    on_video: Called after every video with whether it is damaged.
    before_video: Called with every video before it is read.

  Raises:
    RunError: A file cannot be read though it is not damaged, or the disk is
      full.
  """
  folder = pathlib.Path(shard.folder)
  path = folder / shard.file_name
  known_deaths = deaths.read(folder)
  records = []
  with files.replacing(path) as temporary, _Writer(shard, temporary) as writer:
    for item in shard.items:
      before_video(item)
      record, video = _load(item, shard, known_deaths)
      if video is not None:
        record['shard'] = shard.index
        writer.write(item, video)
      else:
        quarantine.log(folder, [record])
      records.append(record)
      on_video(video is None)
  header = {
    'fingerprint': shard.fingerprint(),
    'num_bytes': path.stat().st_size,
  }
  files.write_text(shard.part, json_lines([header, *records]))


class _Writer:
  """Writes the examples of a shard into a file."""

  def __init__(self, shard: Shard, temporary: pathlib.Path):
    """Opens the file.

    Args:
      shard: What is written.
      temporary: The file, which has another name until it is complete.
    """
    self._shard = shard
    self._features = tfds_files.make_features(
      shard.class_names, shard.has_actions
    )
    self._serializer = example_serializer.ExampleSerializer(
      self._features.get_serialized_info()
    )
    with self._one_line():
      # One record to a group: a larger group is read whole to get at one.
      self._file = array_record_module.ArrayRecordWriter(
        str(temporary), 'group_size:1'
      )

  def __enter__(self) -> '_Writer':
    return self

  def __exit__(self, *unused: Any) -> None:
    with self._one_line():
      self._file.close()

  def write(self, item: Item, video: bytes) -> None:
    """Adds an example.

    Raises:
      RunError: The disk is full.
    """
    example = self._features.encode_example(
      {'video': video, 'id': item.id, **_annotation(item, self._shard)}
    )
    # A protocol buffer orders its fields anew in every process, unless asked.
    record = self._serializer.get_tf_example(example).SerializeToString(
      deterministic=True
    )
    with self._one_line():
      self._file.write(record)

  @contextlib.contextmanager
  def _one_line(self) -> Iterator[None]:
    """Puts what ArrayRecord says of a full disk into a line of ours."""
    try:
      yield
    except RuntimeError as error:
      reason = str(error).split(';')[0]
      path = pathlib.Path(self._shard.folder) / self._shard.file_name
      raise RunError(
        f'{path} cannot be written: {reason}. Finished shards are kept; once '
        'there is room, the same command goes on.'
      ) from error


def _load(
  item: Item, shard: Shard, known_deaths: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], bytes | None]:
  """Reads a video.

  Returns:
    Its line of the manifest, and the bytes to store; None: it is damaged.

  Raises:
    RunError: The file or the memory is out of reach, which is not the video's
      fault.
  """
  record = {
    'id': item.id,
    'split': shard.split,
    'labels': [shard.class_names[k] for k in _labels(item)],
    'status': 'stored',
    'file': item.path,
  }
  path = pathlib.Path(shard.videos) / item.path
  try:
    refused = deaths.why_not(item, known_deaths)
    if refused:
      raise DecodeError(refused)
    video = transcode.load(path, shard.encoding)
  except DecodeError as error:
    reason = ' '.join(str(error).split())
    return {**record, 'status': 'quarantined', 'reason': reason}, None
  except OSError as error:
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
    'fps': video.scan.fps,  # Not rounded: frame indices are computed from it.
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


def _labels(item: Item) -> list[int]:
  if item.label is not None:
    return [item.label]
  return sorted({label for label, _, _ in item.actions})


def _annotation(item: Item, shard: Shard) -> dict[str, Any]:
  """Returns the label or the actions, as the features name them."""
  if not shard.has_actions:
    return {'label': item.label}
  keys = ('label', 'start_s', 'end_s')
  return {'actions': [dict(zip(keys, a, strict=True)) for a in item.actions]}
