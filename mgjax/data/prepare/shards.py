"""Writes one shard: a file of the data set, and its part of the manifest.

A decoder may crash on a video, and take its process with it. The folder of the
parts has a list of these deaths; a video at which several workers died is not
read again.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from mgjax import files
from mgjax.data.decode import DecodeError
from mgjax.data.prepare import layout, tfds_files, transcode
from mgjax.data.prepare.plan import Item, Shard
from mgjax.errors import RunError

# One death may have another cause, such as too little memory.
_MAX_DEATHS = 2


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
  deaths = read_deaths(folder)
  features = tfds_files.make_features(shard.class_names, shard.has_actions)
  serializer = example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  records = []
  with files.replacing(path) as temporary:
    with _one_line(path):
      # One record to a group: a larger group is read whole to get at one.
      file = array_record_module.ArrayRecordWriter(
        str(temporary), 'group_size:1'
      )
    try:
      for item in shard.items:
        before_video(item)
        record, video = _load(item, shard, deaths)
        if video is not None:
          record['shard'] = shard.index
          example = serializer.get_tf_example(
            features.encode_example({'video': video, **_annotation(item)})
          )
          # A protocol buffer orders its fields anew in every process, unless
          # asked.
          with _one_line(path):
            file.write(example.SerializeToString(deterministic=True))
        else:  # At once: a run that stops should say why.
          layout.append(folder / layout.PARTS / layout.QUARANTINED, [record])
        records.append(record)
        on_video(video is None)
    finally:
      with _one_line(path):
        file.close()
  header = {
    'fingerprint': shard.fingerprint(),
    'num_bytes': path.stat().st_size,
  }
  files.write_text(shard.part, layout.json_lines([header, *records]))


@contextlib.contextmanager
def _one_line(path: pathlib.Path) -> Iterator[None]:
  """Puts what ArrayRecord says of a full disk into a line of ours."""
  try:
    yield
  except RuntimeError as error:
    raise RunError(
      f'{path} cannot be written: {str(error).split(";")[0]}. Finished shards '
      'are kept; once there is room, the same command goes on.'
    ) from error


def key_of(item: Item) -> dict[str, Any]:
  """Identifies a version of a file: another path, size or time is another."""
  return {'file': item.path, 'size': item.size, 'mtime_ns': item.mtime_ns}


def read_deaths(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns key and cause of all deaths so far, of earlier runs as well.

  Args:
    folder: Folder of the data set.
  """
  try:
    text = (folder / layout.PARTS / layout.DEATHS).read_text(encoding='utf-8')
  except FileNotFoundError:
    return []
  # A kill leaves half a line.
  return [json.loads(line) for line in text.splitlines() if line.endswith('}')]


def _load(
  item: Item, shard: Shard, deaths: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], bytes | None]:
  """Reads a video.

  Returns:
    Its line of the manifest, and the bytes to store; None: it is damaged.

  Raises:
    RunError: The file or the memory is out of reach, which is not the video's
      fault.
  """
  labels = {label for label, _, _ in item.actions}
  if item.label is not None:
    labels = {item.label}
  record = {
    'id': item.id,
    'split': shard.split,
    'labels': [shard.class_names[k] for k in sorted(labels)],
    'status': 'stored',
    'file': item.path,
  }
  path = pathlib.Path(shard.videos) / item.path
  try:
    key = key_of(item).items()
    causes = [death['cause'] for death in deaths if key <= death.items()]
    if len(causes) >= _MAX_DEATHS:
      raise DecodeError(f'kills the process that reads it: {causes[-1]}')
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


def _annotation(item: Item) -> dict[str, Any]:
  """Returns id, and label or actions, as the features name them."""
  if item.label is not None:
    return {'id': item.id, 'label': item.label}
  keys = ('label', 'start_s', 'end_s')
  actions = [dict(zip(keys, action, strict=True)) for action in item.actions]
  return {'id': item.id, 'actions': actions}
