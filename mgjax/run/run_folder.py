"""The folder of a run: whose it is, and whether it can be written."""

import itertools
import json
import os
import pathlib
from collections.abc import Sequence

import ml_collections
from absl import flags
from etils import epath

from mgjax import files
from mgjax.cli import ConfigError
from mgjax.config import fields

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
# The names of the classes, for machines without the data set.
LABELS = 'labels.json'

# Numbers in every line of metrics.jsonl that is about steps.
_OF_STEPS = ('step', 'train_s', 'lr', 'T', 'H', 'W', 'batch', 'loss')


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
    ConfigError: Settings have changed, and the message names the fields; or
      the folder has files that are not a run's.
  """
  if not (workdir / CONFIG).exists():
    return []
  new = json.loads(config.to_json_best_effort())
  defaults = json.loads(fields.base().to_json_best_effort())
  old = _completed(fields.read_settings(workdir), defaults)
  for settings in (old, new):
    fields.reset_unused_options(settings['model'])
  changed = changed_fields(old, new)
  if other := other_labels(workdir, label_names):
    changed.append(f'the names of the classes, such as {other}')
  if changed and not allow_change:
    raise ConfigError(
      f'--workdir={workdir} holds a run with other settings: '
      f'{"; ".join(changed)}. Use another folder, or the old settings, or '
      '--allow_config_change to go on with the new ones'
    )
  read_metrics(workdir)  # What cannot be gone on with is refused now.
  return changed


def other_labels(workdir: epath.PathLike, label_names: Sequence[str]) -> str:
  """Says which class has another name than in a run, if one has.

  Prepared anew, a data set can number its classes in another way.

  Args:
    workdir: Folder of the run, which need not tell the names.
    label_names: Those of the data set.

  Returns:
    Such as "3: 'swim' -> 'walk'"; '' where all names are the same.
  """
  path = epath.Path(workdir) / LABELS
  if not path.exists():
    return ''
  names = itertools.zip_longest(read_labels(path), label_names)
  for k, (old, new) in enumerate(names):
    if old != new:
      return f'{k}: {old!r} -> {new!r}'
  return ''


def read_labels(path: epath.PathLike) -> list[str]:
  """Reads names of classes: a list in a .json file, or one name per line.

  Raises:
    ConfigError: It cannot be read, holds no list of names, or has a name twice.
  """
  path = epath.Path(path)
  if path.suffix == '.json':
    names = files.read_json(path, list)
    if not all(isinstance(name, str) for name in names):
      raise ConfigError(
        f'{path} holds no list of names; use ["NAME", ...], in order of the '
        'class numbers, or a text file with one name per line'
      )
  else:
    lines = map(str.strip, files.read_text(path).splitlines())
    names = [line for line in lines if line]
  seen = set()
  for name in names:
    if name in seen:
      raise ConfigError(f'{path} names the class {name!r} twice; name it once')
    seen.add(name)
  return names


def read_metrics(workdir: epath.PathLike) -> list[dict]:
  """Reads metrics.jsonl; half a last line, which a kill leaves, is left out.

  Raises:
    ConfigError: It is not what a run writes.
  """
  path = epath.Path(workdir) / METRICS
  if not path.exists():
    return []
  lines = []
  # Every whole line ends with one: what follows the last is half a line, or
  # what a power cut has left of it.
  whole = path.read_bytes().rpartition(b'\n')[0]
  texts = files.decode(whole, os.fspath(path)).split('\n') if whole else []
  for number, text in enumerate(texts, 1):
    where = f'{path}, line {number}'
    line = files.parse_json(text, where)
    needed = _OF_STEPS if 'loss' in line else ('step',)
    wrong = [k for k in needed if not isinstance(line.get(k), int | float)]
    if wrong:
      raise ConfigError(
        f"{where} is not a line of a run's metrics: it has no number "
        f'{wrong[0]!r}'
      )
    lines.append(line)
  return lines


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
    files.write_text(workdir / CONFIG, text + '\n')
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
  *(f'data.{name}' for name in fields.MACHINE_DATA_FIELDS),
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
    ConfigError: Other settings differ, and the message names them; or the
      folder does not hold the settings of a run.
  """
  workdir = epath.Path(workdir)
  if not (workdir / CONFIG).exists():
    if allow_change:
      return {}
    raise ConfigError(
      f'{workdir} holds no {CONFIG}, so nothing tells whether --config is that '
      'of its run; --allow_config_change takes it as it is'
    )
  # Both as JSON has them, so that lists equal tuples.
  old = json.loads(fields.read_saved(workdir).to_json_best_effort())
  new = json.loads(config.to_json_best_effort())
  fields.reset_unused_options(new['model'])
  differences = _differences(old, new)
  # How many damaged videos are tolerated is no setting of the run alone.
  free = ('eval.', 'data.max_bad_fraction', *_MACHINE_FIELDS)
  others = [
    f'{field}: {a} -> {b}'
    for field, (a, b) in differences.items()
    if not field.startswith(free)
  ]
  if others and not allow_change:
    raise ConfigError(
      f'{workdir} holds a run with other settings: {"; ".join(others)}. Leave '
      '--config out to use those of the run (config.eval and what is the '
      "machine's may be overridden), or give --allow_config_change"
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
