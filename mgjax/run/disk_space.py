"""Room for what a run will write, looked for before it trains."""

import os
import pathlib
import shutil
from typing import Any

import jax
import ml_collections
from etils import epath

from mgjax import files
from mgjax.cli import ConfigError
from mgjax.planning.memory import size_text

# Of metrics.jsonl and TensorBoard's events, measured on generous runs.
_LINE_BYTES = 2500
_EVALUATION_BYTES = 200_000
_START_BYTES = 500_000  # Settings, plan and pictures.


def check(
  workdir: epath.PathLike,
  train: ml_collections.ConfigDict,
  state: Any,
  *,
  num_steps: int,
  num_evaluations: int,
) -> None:
  """Refuses a run that its disk has no room for.

  Args:
    workdir: The run's folder, which need not exist; nothing is known of those
      in an object store.
    train: config.train.
    state: What a checkpoint holds: a tree of arrays, or of their shapes.
    num_steps: Of the run.
    num_evaluations: Of the run.

  Raises:
    ConfigError: Says how much is needed and how much is free.
  """
  if files.is_remote(workdir):
    return
  folder = pathlib.Path(workdir).absolute()
  # A new checkpoint is complete before an old one is removed.
  kept = min(train.keep_checkpoints + train.keep_best + 1, num_steps)
  one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  needed = (
    kept * one
    + num_steps // train.log_every_steps * _LINE_BYTES
    + num_evaluations * _EVALUATION_BYTES
    + _START_BYTES
  )
  # What is there is part of what is kept, or makes room.
  there = _size(folder)
  parent = next(p for p in (folder, *folder.parents) if p.is_dir())
  free = shutil.disk_usage(parent).free
  if needed > free + there:
    raise ConfigError(
      f'--workdir={os.fspath(workdir)}: the run needs about '
      f'{size_text(needed)} with up to {kept} checkpoints of {size_text(one)}, '
      f'and {size_text(free + there)} are free in {parent}'
      + (', what the run has there already included' if there else '')
      + '; make room, use another disk, or keep fewer by '
      'train.keep_checkpoints and train.keep_best'
    )


def _size(folder: pathlib.Path) -> int:
  """Bytes of all files below a folder."""
  return sum(
    path.lstat().st_size for path in folder.rglob('*') if path.is_file()
  )
