"""The stored records of a split: each is what was written, or an error.

ArrayRecord files keep a 64-bit hash of every record and verify it, so a flipped
bit is noticed; but their reader has one kind of error for that and for a disk
that is gone. This module tells the two
apart. A damaged record is a damaged video: training and evaluation can do
without a few. A disk that cannot be read ends a run, which can go on later.
"""

import re

import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.message import DecodeError as ParseError

from mgjax import files
from mgjax.data.decode import DecodeError

# What riegeli's reader of local files says where the system refuses a call.
_SYSTEM_CALL_FAILED = re.compile(r'(open|read|pread|lseek|fstat|close)\(\) ')


class DamagedRecordError(DecodeError):
  """A record that cannot be read, though the disk can; says which and why.

  Attributes:
    record: 'FILE, record NUMBER', which stands for the video's unknown id.
  """

  def __init__(self, record: str, reason: str):
    # Both, so that data workers can send it.
    super().__init__(record, reason)
    self.record = record

  def __str__(self) -> str:
    record, reason = self.args
    return f'{record} is damaged: {reason}'


class Records:
  """Random access to the examples of one split, as TFDS decodes them."""

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    self._bytes = builder.as_data_source(
      split,
      deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    )
    self._features = builder.info.features
    self._shards = builder.info.splits[split].file_instructions

  def __len__(self) -> int:
    return len(self._bytes)

  def name(self, index: int) -> str:
    """Says where an example is stored: 'FILE, record NUMBER'."""
    for shard in self._shards:
      if index < shard.take:
        file = epath.Path(shard.filename).name
        return f'{file}, record {shard.skip + index}'
      index -= shard.take
    raise IndexError(index)

  def __getitem__(self, index: int) -> dict:
    """Reads an example.

    Raises:
      DamagedRecordError: It is damaged; says where.
      OSError: The disk cannot be read.
    """
    try:
      record = self._bytes[index]
    except RuntimeError as error:  # Whatever is wrong.
      if self._is_of_disk(str(error)):
        raise OSError(str(error)) from error
      raise self._damaged(index, str(error)) from error
    try:
      example = self._features.deserialize_example_np(record)
    except (ParseError, ValueError) as error:
      raise self._damaged(index, f'{type(error).__name__}: {error}') from error
    # A file that is cut while it is open gives empty records.
    if example['video'] is None or example['id'] is None:
      raise self._damaged(index, 'it holds no video')
    return example

  def _is_of_disk(self, text: str) -> bool:
    if files.is_remote(self._shards[0].filename):  # Its errors are not known.
      return 'Corrupted' not in text
    return bool(_SYSTEM_CALL_FAILED.match(text))

  def _damaged(self, index: int, reason: str) -> DamagedRecordError:
    return DamagedRecordError(self.name(index), ' '.join(reason.split()))
