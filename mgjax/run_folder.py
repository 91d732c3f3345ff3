"""The folder of a run: whose it is, and whether it can be written."""

import json
import pathlib
from collections.abc import Sequence

import ml_collections
from absl import flags
from etils import epath

from configs import default
from mgjax import files
from mgjax.cli import ConfigError

# The names of the classes, for machines without the data set.
LABELS = 'labels.json'


def weights(values: flags.FlagValues) -> pathlib.Path:
  """The folder with the weights."""
  if bool(values.workdir) == bool(values.checkpoint):
    raise ConfigError(
      'give --workdir, the folder of a run, or --checkpoint, the folder of '
      'one checkpoint'
    )
  folder = pathlib.Path(values.workdir or values.checkpoint)
  if not folder.is_dir():
    raise ConfigError(f'{folder} is not a folder')
  return folder


def of_weights(values: flags.FlagValues) -> pathlib.Path:
  """The run's own; a checkpoint lies in WORKDIR/checkpoints/STEP."""
  folder = weights(values)
  return folder if values.workdir else folder.absolute().parents[1]


def bundle(values: flags.FlagValues) -> epath.Path:
  """The folder that --bundle names, of a step that failed."""
  if not values.bundle:
    raise ConfigError('--bundle is missing; give the folder of a failed step.')
  folder = epath.Path(values.bundle)
  if not (folder / 'failure.json').is_file():
    raise ConfigError(
      f'--bundle={folder} holds no failure.json; give a folder such as '
      'runs/digits/failure-120, which the run names where it stops.'
    )
  return folder


def check(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  allow_change: bool,
  label_names: Sequence[str],
) -> list[str]:
  """Looks for the run of a folder.

  Args:
    config: The new run's.
    workdir: The folder, which need not exist.
    allow_change: Whether the config may differ from that of the old run.
    label_names: Those of the data set.

  Returns:
    What has changed since then, 'field: old -> new'.

  Raises:
    ConfigError: Settings have changed; the message names the fields.
  """
  path = workdir / 'config.json'
  if not path.exists():
    return []
  new = json.loads(config.to_json_best_effort())
  defaults = json.loads(default.base().to_json_best_effort())
  old = _completed(json.loads(path.read_text()), defaults)
  changed = changed_fields(old, new)
  labels = workdir / LABELS
  # Prepared anew, a data set can number its classes in another way.
  if labels.exists() and json.loads(labels.read_text()) != list(label_names):
    changed.append('the names of the classes')
  if changed and not allow_change:
    raise ConfigError(
      f'--workdir={workdir} holds a run with other settings: '
      f'{"; ".join(changed)}. Use another folder, or the old settings, or '
      '--allow_config_change to go on with the new ones'
    )
  return changed


def prepare(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  label_names: Sequence[str],
) -> None:
  """Makes the folder and writes config.json and labels.json.

  Raises:
    ConfigError: The folder cannot be written.
  """
  text = json.dumps(json.loads(config.to_json_best_effort()), indent=1)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(workdir / 'config.json', text + '\n')
    names = json.dumps(list(label_names), ensure_ascii=False, indent=0)
    files.write_text(workdir / LABELS, names + '\n')
  except OSError as error:
    raise ConfigError(
      f'--workdir={workdir} cannot be written: {error.strerror}'
    ) from error


def _completed(saved: dict, defaults: dict) -> dict:
  """Settings, with their defaults for fields that are younger than the file."""
  return defaults | {
    name: _completed(value, defaults.get(name, {}))
    if isinstance(value, dict)
    else value
    for name, value in saved.items()
  }


def changed_fields(old: dict, new: dict, prefix: str = '') -> list[str]:
  """Differences of two nested dicts as 'group.field: old -> new'.

  The fields that only say how a machine runs the training are left out.
  """
  free = ('train.', *(f'data.{name}' for name in default.MACHINE_DATA_FIELDS))
  changes = []
  for name in sorted(old.keys() | new.keys()):
    path = prefix + name
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      changes += changed_fields(a, b, path + '.')
    elif a != b and not path.startswith(free):
      changes.append(f'{path}: {a} -> {b}')
  return changes
