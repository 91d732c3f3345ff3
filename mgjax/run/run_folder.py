"""The folder of a run: where it is, and what it holds for those who read it."""

import collections
import functools
import itertools
import os
import pathlib
from collections.abc import Sequence

from absl import flags
from etils import epath

from mgjax import cli, files
from mgjax.errors import ConfigError

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
# The names of the classes, for machines without the data set.
LABELS = 'labels.json'

# Numbers in every line of metrics.jsonl that is about steps.
_OF_STEPS = ('step', 'train_s', 'lr', 'T', 'H', 'W', 'batch', 'loss')


def workdir_of_flags(values: flags.FlagValues) -> epath.Path:
  """Returns the folder that --workdir names.

  Raises:
    ConfigError: It is missing.
  """
  if not values.workdir:
    raise ConfigError('--workdir is missing; give the folder of a run.')
  return epath.Path(values.workdir)


def weights_of_flags(values: flags.FlagValues) -> pathlib.Path:
  """Returns the folder that --workdir or --checkpoint names.

  Raises:
    ConfigError: None or both of them are given, or there is no such folder.
  """
  if bool(values.workdir) == bool(values.checkpoint):
    raise ConfigError(
      'give --workdir, the folder of a run, or --checkpoint, the folder of '
      'one checkpoint'
    )
  folder = pathlib.Path(values.workdir or values.checkpoint)
  if not folder.is_dir():
    raise ConfigError(f'{folder} is not a folder')
  return folder


def define_weights_flags(values: flags.FlagValues) -> None:
  """Adds --workdir and --checkpoint, which say what weights, and --labels."""
  flag = functools.partial(cli.define_flag, values)
  text = (
    'Folder of a run, or of imported weights; the newest checkpoint is used.'
  )
  flag('workdir', str, None, text)
  text = (
    'Folder of one checkpoint of a run, such as runs/digits/checkpoints/300.'
  )
  flag('checkpoint', str, None, text)
  flag('labels', str, None, 'File with the names of the labels.')


def run_of_weights(values: flags.FlagValues) -> pathlib.Path:
  """Returns the folder of the run that --workdir or --checkpoint is of.

  Raises:
    ConfigError: As `weights_of_flags`.
  """
  # A checkpoint lies in WORKDIR/checkpoints/STEP.
  folder = weights_of_flags(values)
  return folder if values.workdir else folder.absolute().parents[1]


def bundle_of_flags(values: flags.FlagValues) -> epath.Path:
  """Returns the folder that --bundle names, of a step that failed.

  Raises:
    ConfigError: It is missing, or holds no failed step.
  """
  if not values.bundle:
    raise ConfigError('--bundle is missing; give the folder of a failed step.')
  folder = epath.Path(values.bundle)
  if not (folder / 'failure.json').is_file():
    raise ConfigError(
      f'--bundle={folder} holds no failure.json; give a folder such as '
      'runs/digits/failure-120, which the run names where it stops.'
    )
  return folder


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
  for name, count in collections.Counter(names).items():
    if count > 1:
      raise ConfigError(f'{path} names the class {name!r} twice; name it once')
  return names


def read_metrics(workdir: epath.PathLike) -> list[dict]:
  """Reads metrics.jsonl, but for half a last line, which a kill leaves.

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
