"""What the folder of a run says of its weights: accuracy, source, licence."""

import pathlib
from typing import NamedTuple

from etils import epath

from mgjax import files
from mgjax.config import saved
from mgjax.errors import ConfigError, RunError
from mgjax.evaluation import results
from mgjax.run import checkpoint, run_folder

_IN_METRICS = 'eval_'
_MAX_RUNS = 10  # Of a chain, each started from the one before.


class Accuracy(NamedTuple):
  """Of a checkpoint, as its run has recorded it.

  Attributes:
    metrics: Percent by name (of `results.METRICS`); {}: there is no record.
    record: Where it stands, and how it was measured.
  """

  metrics: dict[str, float]
  record: str


def accuracy(workdir: pathlib.Path, step: int) -> Accuracy:
  """The accuracy of a checkpoint of a run.

  Args:
    workdir: The run's folder.
    step: Of the checkpoint.

  Raises:
    ConfigError: A record cannot be read.
  """
  path = workdir / results.FILE
  if path.exists():
    found = files.read_json(path)
    if found.get('step') == step:
      split = found.get('config_eval', {}).get('split', 'validation')
      record = (
        f'{results.FILE} of the run, step {step}: views of each video: '
        f'{found["num_views"]}; {found["num_scored"]} of '
        f'{found["num_videos"]} videos of the split {split}'
      )
      if others := found.get('overrides'):
        changed = ', '.join(f'{k}={v}' for k, v in others.items())
        record += f"; other settings than the run's: {changed}"
      return Accuracy(_metrics(found), record)
  for line in reversed(run_folder.read_metrics(workdir)):
    if line['step'] == step and f'{_IN_METRICS}num_scored' in line:
      found = {k.removeprefix(_IN_METRICS): v for k, v in line.items()}
      record = (
        f'{run_folder.METRICS} of the run, step {step}: '
        f'{found["num_scored"]} videos'
      )
      return Accuracy(_metrics(found), record)
  return Accuracy({}, '')


def _metrics(found: dict) -> dict[str, float]:
  return {name: found[name] for name in results.METRICS if name in found}


class Source(NamedTuple):
  """What weights were made from.

  Attributes:
    imported: The file that they, or those that the run started from, were
      imported from; '': none.
    licence: Of that file; '': it is not known.
    lost: Where a run that was started from is no more; '': all are there.
  """

  imported: str = ''
  licence: str = ''
  lost: str = ''


def source(path: epath.Path, init_from: str) -> Source:
  """What the weights of a checkpoint were made from.

  Args:
    path: Its folder.
    init_from: config.init_from of its run.
  """
  for _ in range(_MAX_RUNS):
    record = checkpoint.read_record(path)
    if 'imported_from' in record:
      return Source(record['imported_from'], record.get('licence', ''))
    if not init_from:
      return Source()
    try:
      path = checkpoint.find(init_from, 'init_from')
      # A checkpoint lies in WORKDIR/checkpoints/STEP.
      init_from = saved.read_saved(path.parents[1]).init_from
    except (ConfigError, RunError):
      break
  return Source(lost=init_from)
