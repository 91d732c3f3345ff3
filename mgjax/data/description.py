"""What a prepared data set says of itself, before a video is read.

Two small files tell it. Reading them takes neither JAX nor TFDS, so that a plan
can say at once what a training would say minutes later.
"""

from typing import NamedTuple

from etils import epath

from mgjax import files
from mgjax.errors import ConfigError


class Description(NamedTuple):
  """What is known of a data set before a video is read.

  Attributes:
    name: NAME[/CONFIG][:VERSION].
    splits: Number of examples, by name of the split.
    num_classes: Of the labels; None: it does not say.
    has_actions: Whether videos have any number of timed labels, and not one.
  """

  name: str
  splits: dict[str, int]
  num_classes: int | None
  has_actions: bool


def folder_of(data_dir: epath.PathLike, name: str) -> epath.Path | None:
  """Folder of a data set; None where it is not here.

  Args:
    data_dir: Folder of all data sets.
    name: NAME[/CONFIG], which is the newest version, or NAME[/CONFIG]:VERSION,
      as TFDS has it.
  """
  name, _, version = name.partition(':')
  found = [
    folder
    for folder in _versions(epath.Path(data_dir) / name)
    if version in ('', folder.name)
  ]
  return found[-1] if found else None


def needed_folder(data_dir: epath.PathLike, name: str) -> epath.Path:
  """As `folder_of`, for a data set that has to be here.

  Raises:
    ConfigError: It has not been prepared; says how to.
  """
  found = folder_of(data_dir, name)
  if found is None:
    plain, _, version = name.partition(':')
    folder = epath.Path(data_dir) / plain
    how = f'prepare it: python -m mgjax.data.prepare --out={data_dir}'
    if name.startswith('moving_digits'):
      how = (
        'prepare it: python -m mgjax.data.moving_digits '
        f'--config={plain.split("/")[-1]} --out={data_dir}'
      )
    if others := _versions(folder):
      how = f'there is version {", ".join(path.name for path in others)}'
    raise ConfigError(
      f'data.name={name!r}: no data set at {folder / version}; {how}'
    )
  return found


def _versions(folder: epath.Path) -> list[epath.Path]:
  """The folders of the versions of a data set: 10.0.0 behind 9.0.0."""
  number = lambda path: [
    int(n) if n.isdigit() else -1 for n in path.name.split('.')
  ]
  found = (path.parent for path in folder.glob('*/dataset_info.json'))
  return sorted(found, key=number)


def describe(data_dir: epath.PathLike, name: str) -> Description | None:
  """Reads the description of a data set.

  Args:
    data_dir: Folder of all data sets.
    name: NAME or NAME/CONFIG.

  Returns:
    The description; None where the data set is not here.

  Raises:
    ConfigError: The files are damaged, or none of this program's.
  """
  folder = folder_of(data_dir, name)
  if folder is None:
    return None
  try:
    info = files.read_json(folder / 'dataset_info.json')
    splits = {
      split['name']: sum(map(int, split['shardLengths']))
      for split in info['splits']
    }
    if not (folder / 'features.json').exists():
      return Description(name, splits, None, False)
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
  return Description(name, splits, num_classes, has_actions)
