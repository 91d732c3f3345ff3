"""Opens a prepared data set for random access to its encoded videos.

Every data set has the same form: a TFDS folder of ArrayRecord files whose
examples are {'video': encoded bytes, 'label': class, 'id': text}. Nothing here
needs TensorFlow.
"""

import os
import pathlib
from typing import NamedTuple

import ml_collections
import tensorflow_datasets as tfds

from mgjax.cli import ConfigError


class Example(NamedTuple):
  """One video of a data set."""

  video: bytes  # The encoded file.
  label: int
  id: str


class Source:
  """Random access to the examples of one split."""

  def __init__(self, name: str, split: str, data_source, label_names):
    self.name = name
    self.split = split
    self.label_names = tuple(label_names)
    self._data_source = data_source

  def __len__(self) -> int:
    return len(self._data_source)

  def __getitem__(self, index: int) -> Example:
    example = self._data_source[index]
    name = example['id']
    return Example(
      video=bytes(example['video']),
      label=int(example['label']),
      id=name.decode() if isinstance(name, bytes) else str(name),
    )


def data_dir(config: ml_collections.ConfigDict) -> pathlib.Path:
  """Folder of all data sets: config.data.dir, $TFDS_DATA_DIR or ./data."""
  return pathlib.Path(
    config.data.dir or os.environ.get('TFDS_DATA_DIR') or 'data'
  )


def builder_dir(config: ml_collections.ConfigDict) -> pathlib.Path:
  """Folder of the newest version of the configured data set.

  Raises:
    ConfigError: It has not been prepared.
  """
  folder = data_dir(config) / config.data.name
  # Dotted numbers compare as numbers: version 10.0.0 is newer than 9.0.0.
  versions = sorted(
    (p.parent for p in folder.glob('*/dataset_info.json')),
    key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split('.')],
  )
  if not versions:
    how = 'see the README for how data sets are prepared'
    if config.data.name.startswith('moving_digits'):
      how = (
        'prepare it: python -m mgjax.data.moving_digits '
        f'--config={config.data.name.split("/")[-1]} --out={data_dir(config)}'
      )
    raise ConfigError(
      f'data.name={config.data.name!r}: no data set at {folder}; {how}'
    )
  return versions[-1]


def open_source(config: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of the configured data set.

  Raises:
    ConfigError: The data set, or the split in it, does not exist.
  """
  folder = builder_dir(config)
  builder = tfds.builder_from_directory(str(folder))
  if split not in builder.info.splits:
    raise ConfigError(
      f'{folder} has no split {split!r}; it has {sorted(builder.info.splits)}'
    )
  return Source(
    name=config.data.name,
    split=split,
    data_source=builder.as_data_source(split),
    label_names=builder.info.features['label'].names,
  )
