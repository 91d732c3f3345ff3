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


def given(values: flags.FlagValues) -> epath.Path:
  """The folder that --workdir names."""
  if not values.workdir:
    raise ConfigError('--workdir is missing; give the folder of a run.')
  return epath.Path(values.workdir)


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
  for settings in (old, new):
    default.reset_unused_options(settings['model'])
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


# How a machine runs a training: no result depends on it.
_MACHINE_FIELDS = (
  'train.',
  *(f'data.{name}' for name in default.MACHINE_DATA_FIELDS),
)


def changed_fields(old: dict, new: dict) -> list[str]:
  """Differences of two nested dicts as 'group.field: old -> new'.

  The fields that only say how a machine runs the training are left out.
  """
  return [
    f'{field}: {a} -> {b}'
    for field, (a, b) in _differences(old, new).items()
    if not field.startswith(_MACHINE_FIELDS)
  ]


def check_evaluation(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  allow_change: bool,
) -> dict:
  """Compares the settings of an evaluation with those of the run.

  Args:
    config: The evaluation's.
    workdir: The run's folder.
    allow_change: Whether others than the protocol (config.eval) and what is a
      machine's own may differ from the run's.

  Returns:
    What differs, for eval.json: the evaluation's value by 'group.field'.

  Raises:
    ConfigError: Other settings differ; the message names them.
  """
  path = workdir / 'config.json'
  if not path.exists():
    return {}
  # Both as JSON has them, so that lists equal tuples.
  old = json.loads(default.read_saved(workdir).to_json_best_effort())
  new = json.loads(config.to_json_best_effort())
  default.reset_unused_options(new['model'])
  differences = _differences(old, new)
  free = ('eval.', *_MACHINE_FIELDS)
  others = [
    f'{field}: {a} -> {b}'
    for field, (a, b) in differences.items()
    if not field.startswith(free)
  ]
  if others and not allow_change:
    raise ConfigError(
      f'--workdir={workdir} holds a run with other settings: '
      f'{"; ".join(others)}. Leave --config out to evaluate with the settings '
      "of the run (config.eval and what is the machine's may be overridden), "
      'or give --allow_config_change'
    )
  return {field: b for field, (_, b) in differences.items()}


def _differences(old: dict, new: dict, prefix: str = '') -> dict[str, tuple]:
  """Old and new value by 'group.field' of what differs in nested dicts."""
  found: dict[str, tuple] = {}
  for name in sorted(old.keys() | new.keys()):
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      found |= _differences(a, b, f'{prefix}{name}.')
    elif a != b:
      found[prefix + name] = a, b
  return found
