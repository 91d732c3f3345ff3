"""A run's settings against those of its folder and of its other processes."""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from mgjax import files
from mgjax.config import fields, rules, saved
from mgjax.data.sources import Source
from mgjax.errors import ConfigError
from mgjax.run import run_folder
from mgjax.setup import data as data_setup

# How a machine runs a training: no result depends on it.
_MACHINE_FIELDS = (
  'train.',
  *(f'data.{name}' for name in fields.MACHINE_DATA_FIELDS),
)


def check(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  allow_change: bool,
  source: Source,
) -> list[str]:
  """Looks for the run of a folder.

  Args:
    config: The new run's.
    workdir: The folder, which need not exist.
    allow_change: Whether config and data may differ from those of the old run.
    source: The training videos.

  Returns:
    What has changed since then, 'field: old -> new'.

  Raises:
    ConfigError: Settings have changed, and the message names the fields; or
      the folder has files that are not a run's.
  """
  if not (workdir / run_folder.CONFIG).exists():
    return []
  old = saved.current_form(saved.read_settings(workdir))
  new = saved.as_json(config)
  # The default until version 0.1: a run whose config does not set it goes on.
  if new['eval']['every'] is None and old['eval']['every'] == 10.0:
    old['eval']['every'] = None
  changed = changed_fields(old, new)
  if other := run_folder.other_labels(workdir, source.label_names):
    changed.append(f'the names of the classes, such as {other}')
  changed += changed_data(workdir, config, source)
  if changed and not allow_change:
    raise ConfigError(
      f'--workdir={workdir} holds a run with other settings: '
      f'{"; ".join(changed)}. Use another folder, or the old settings, or '
      '--allow_config_change to go on with the new ones'
    )
  run_folder.read_metrics(
    workdir
  )  # What cannot be gone on with is refused now.
  return changed


def data_of(
  config: ml_collections.ConfigDict, source: Source
) -> dict[str, Any]:
  """What plan.json has of the training videos, to know them again.

  Args:
    config: The run's.
    source: The videos; of the user's own, or of a prepared data set, which has
      a version, copies and perhaps a manifest.
  """
  found = {
    'videos': len(source),
    'version': source.folder.name if source.folder else None,
    'manifest_sha256': source.manifest_sha256,
    'copies': len(source.copies.copies) if source.copies else 0,
  }
  if data_setup.evens_classes(config) and not source.manifest_sha256:
    # Those of all videos decide each clip, and a damaged video's is not known.
    found['labels_crc32'] = zlib.crc32(source.labels().tobytes())
  return found


def changed_data(
  workdir: epath.Path, config: ml_collections.ConfigDict, source: Source
) -> list[str]:
  """What is another in the training videos than when a run began.

  Args:
    workdir: Of the run; those of earlier versions tell less, or nothing.
    config: The new run's.
    source: The videos.
  """
  try:
    old = files.read_json(workdir / 'plan.json').get('videos')
  except ConfigError:
    return []  # A run's folder without its plan still goes on.
  if not old:
    return []
  found = data_of(config, source)
  new = {field: found.get(field) for field in old}
  return [
    f'the data set: {field}: {a} -> {b}'
    for field, (a, b) in differences(old, new).items()
  ]


def prepare(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  label_names: Sequence[str],
) -> None:
  """Makes the folder of a run and writes config.json and labels.json.

  Args:
    config: The run's.
    workdir: The folder, which need not exist.
    label_names: Those of the data set.

  Raises:
    ConfigError: The folder cannot be written.
  """
  text = as_text(config)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(workdir / run_folder.CONFIG, text)
    names = json.dumps(list(label_names), ensure_ascii=False, indent=0)
    files.write_text(workdir / run_folder.LABELS, names + '\n')
  except OSError as error:
    raise ConfigError(
      f'--workdir={workdir} cannot be written: {error.strerror}'
    ) from error


def check_evaluation(
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  allow_change: bool,
) -> dict:
  """Compares the settings of an evaluation, or prediction, with the run's.

  Args:
    config: The evaluation's.
    workdir: The run's folder.
    allow_change: Whether others than the protocol (config.eval) and what is a
      machine's own may differ from the run's.

  Returns:
    What differs, for eval.json: the evaluation's value by 'group.field'.

  Raises:
    ConfigError: Some cannot work. Or other settings differ, and the message
      names them; or the folder does not hold the settings of a run.
  """
  # A command has done so; who calls `evaluate_checkpoint` from Python has not.
  rules.check(config)
  workdir = epath.Path(workdir)
  if not (workdir / run_folder.CONFIG).exists():
    if allow_change:
      return {}
    raise ConfigError(
      f'{workdir} holds no {run_folder.CONFIG}, so nothing tells whether '
      '--config is that of its run; --allow_config_change takes it as it is'
    )
  # Both as JSON has them, so that lists equal tuples.
  old = saved.as_json(saved.read_saved(workdir))
  new = saved.as_json(config)
  differing = differences(old, new)
  # How many damaged videos are tolerated is no setting of the run alone.
  free = ('eval.', 'data.max_bad_fraction', *_MACHINE_FIELDS)
  others = [
    f'{field}: {a} -> {b}'
    for field, (a, b) in differing.items()
    if not field.startswith(free)
  ]
  if others and not allow_change:
    raise ConfigError(
      f'{workdir} holds a run with other settings: {"; ".join(others)}. Leave '
      '--config out to use those of the run (config.eval and what is the '
      "machine's may be overridden), or give --allow_config_change"
    )
  return {field: b for field, (_, b) in differing.items()}


def changed_fields(old: dict, new: dict) -> list[str]:
  """Differences of two nested dicts as 'group.field: old -> new'.

  The fields that only say how a machine runs the training are left out.
  """
  return [
    f'{field}: {a} -> {b}'
    for field, (a, b) in differences(old, new).items()
    if not field.startswith(_MACHINE_FIELDS)
  ]


def differences(old: dict, new: dict, prefix: str = '') -> dict[str, tuple]:
  """Old and new value by 'group.field' of what differs in nested dicts."""
  found: dict[str, tuple] = {}
  for name in sorted(old.keys() | new.keys()):
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      found |= differences(a, b, f'{prefix}{name}.')
    elif a != b:
      found[prefix + name] = a, b
  return found


def as_text(config: ml_collections.ConfigDict) -> str:
  """The settings as config.json has them."""
  return json.dumps(saved.as_json(config), indent=1) + '\n'


def flat(
  config: ml_collections.ConfigDict, prefix: str = ''
) -> dict[str, bool | int | float | str]:
  """Fields by dotted name; what is no number, truth value or text, as text.

  Args:
    config: The settings, or a section of them.
    prefix: What the names begin with.
  """
  found: dict[str, bool | int | float | str] = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      found |= flat(value, f'{prefix}{name}.')
    else:
      plain = isinstance(value, bool | int | float | str)
      found[prefix + name] = value if plain else str(value)
  return found


def of_all_processes(config: ml_collections.ConfigDict) -> dict[str, str]:
  """Fields that must be the same in all processes of a run, as text.

  Each host may have a data folder and a number of cores of its own.
  """
  own = [f'data.{name}' for name in fields.MACHINE_DATA_FIELDS]
  return {k: str(v) for k, v in flat(config).items() if k not in own}
