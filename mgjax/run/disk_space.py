"""Checks before a training that the disk has room for what it will write."""

import os
import pathlib
import shutil
from typing import Any

import jax
from etils import epath

from mgjax import files
from mgjax.errors import ConfigError
from mgjax.files import size_text

# Of metrics.jsonl and TensorBoard's events, measured on generous runs.
_LINE_BYTES = 2500
_EVALUATION_BYTES = 200_000
_START_BYTES = 500_000  # Settings, plan and pictures.


def check(
  workdir: epath.PathLike,
  state: Any,
  *,
  num_checkpoints: int,
  num_lines: int,
  num_evaluations: int,
) -> None:
  """Refuses a run that its disk has no room for.

  Args:
    workdir: The run's folder, which need not exist. One in an object store is
      not checked: no store says how much room it has.
    state: What a checkpoint holds: a tree of arrays, or of their shapes.
    num_checkpoints: How many there are at most at the same time.
    num_lines: Of metrics.jsonl, those of evaluations left aside.
    num_evaluations: Of the run.

  Raises:
    ConfigError: Says how much is needed and how much is free.
  """
  if files.is_remote(workdir):
    return
  folder = pathlib.Path(workdir).absolute()
  one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  needed = (
    num_checkpoints * one
    + num_lines * _LINE_BYTES
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
      f'{size_text(needed)} with up to {num_checkpoints} checkpoints of '
      f'{size_text(one)}, '
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
