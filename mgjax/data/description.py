"""What a prepared data set says of itself, before a video is read.

Two small files tell it. Reading them takes neither JAX nor TFDS, so that a plan
can say at once what a training would say minutes later.
"""

import os
from typing import NamedTuple

import ml_collections
from etils import epath

from mgjax import files
from mgjax.cli import ConfigError


class Description(NamedTuple):
  """What is known of a data set before a video is read.

  Attributes:
    name: For messages: config.data.name.
    splits: Number of examples, by name of the split.
    num_classes: Of the labels; None: it does not say.
    has_actions: Whether videos have any number of timed labels, and not one.
  """

  name: str
  splits: dict[str, int]
  num_classes: int | None
  has_actions: bool


def data_dir(config: ml_collections.ConfigDict) -> epath.Path:
  """Folder of all data sets: config.data.dir, $TFDS_DATA_DIR or ./data."""
  return epath.Path(
    config.data.dir or os.environ.get('TFDS_DATA_DIR') or 'data'
  )


def folder_of(config: ml_collections.ConfigDict) -> epath.Path | None:
  """Folder of the newest version of the configured data set, if it is here."""
  folder = data_dir(config) / config.data.name
  found = sorted(folder.glob('*/dataset_info.json'), key=_version)
  return found[-1].parent if found else None


def _version(path: epath.Path) -> list[int]:
  """Sorts 10.0.0 behind 9.0.0."""
  return [int(n) if n.isdigit() else -1 for n in path.parent.name.split('.')]


def describe(config: ml_collections.ConfigDict) -> Description | None:
  """Reads the description of the configured data set.

  Returns:
    The description; None where the data set is not here.

  Raises:
    ConfigError: The files are damaged, or none of this program's.
  """
  folder = folder_of(config)
  if folder is None:
    return None
  try:
    info = files.read_json(folder / 'dataset_info.json')
    splits = {
      split['name']: sum(map(int, split['shardLengths']))
      for split in info['splits']
    }
    if not (folder / 'features.json').exists():
      return Description(config.data.name, splits, None, False)
    features = files.read_json(folder / 'features.json')
    fields = features['featuresDict']['features']
    has_actions = 'actions' in fields
    if has_actions:
      sequence = fields['actions']['sequence']['feature']
      fields = sequence['featuresDict']['features']
    num_classes = int(fields['label']['classLabel']['numClasses'])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    if isinstance(error, ConfigError):
      raise
    raise ConfigError(
      f'{folder}: dataset_info.json or features.json is not that of a data set '
      f'({type(error).__name__}: {error}); prepare it again'
    ) from error
  return Description(config.data.name, splits, num_classes, has_actions)
