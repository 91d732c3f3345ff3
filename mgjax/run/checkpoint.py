"""One checkpoint: where it is, what is in it, and whether that is damaged.

A checkpoint has the arrays of a state and a small JSON record beside them. The
record has the run's counters, a checksum of every array and one of itself, so
that whoever reads any part of a damaged checkpoint notices.
"""

import contextlib
import functools
import inspect
import json
import logging as std_logging
import os
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from mgjax import models
from mgjax.errors import ConfigError, RunError
from mgjax.step.train_state import TrainState

# The parts of a state that make a network.
VARIABLES = ('params', 'batch_stats')
# What a record has that was written before every array had a checksum.
_OLD_CHECKSUM = 'crc32'


# No ConfigError: nothing is wrong with the settings, so the exit code is 1.
class DamagedError(RunError):
  """A checkpoint that cannot be read, or does not hold what was written."""


# Where checkpoints are.


def steps(workdir: epath.PathLike) -> list[int]:
  """Steps of the complete checkpoints in the folder of a run, ascending."""
  return _steps_in(epath.Path(workdir) / 'checkpoints')


def _steps_in(folder: epath.Path) -> list[int]:
  # A checkpoint gets its name, the step, only once it is complete. Its parts
  # are looked for, as a folder of the user's may have a number for a name.
  names = [path.parent.name for path in folder.glob('*/state')]
  return sorted(int(name) for name in names if name.isdigit())


def find(
  folder: epath.PathLike, field: str, step: int | None = None
) -> epath.Path:
  """Finds a complete checkpoint.

  Args:
    folder: Folder of a run, or of one checkpoint.
    field: Name of the setting that names the folder, for errors.
    step: Of the checkpoint; None: the newest.

  Returns:
    The checkpoint's folder.

  Raises:
    ConfigError: There is none.
  """
  folder = epath.Path(folder)
  # Given by itself: its own name is its step, and `step` says nothing.
  if (folder / 'state').is_dir():
    return folder
  found = steps(folder)
  if not found:
    raise ConfigError(
      f'{field}={folder} holds no checkpoint; give the folder of a run, or '
      'one that mgjax.import_weights has written'
    )
  if step not in (None, *found):
    raise ConfigError(f'--step={step}: there are checkpoints of steps {found}')
  return folder / 'checkpoints' / str(found[-1] if step is None else step)


# The record.


def make_record(state: Any, counters: dict) -> dict:
  """Makes the record of a checkpoint.

  Args:
    state: What its arrays are. Every process holds them whole.
    counters: JSON data that the state does not hold.

  Returns:
    The counters; 'arrays': by path, such as 'params/head/kernel', 'dtype',
    'shape', and 'crc32' of the bytes in C order; 'record_crc32': of the rest.
  """
  # As it will be read: JSON makes texts of keys, and lists of tuples.
  record = json.loads(json.dumps({**counters, 'arrays': _describe(state)}))
  return {**record, 'record_crc32': _record_crc32(record)}


def read_record(path: epath.PathLike) -> dict:
  """Reads a checkpoint's record of counters and checksums.

  Args:
    path: The checkpoint's folder.

  Raises:
    DamagedError: It is not what was written.
  """
  file = epath.Path(path) / 'progress' / 'metadata'
  with _reading(path):
    record = json.loads(file.read_text())
    # Either of the two says that it is of the newer kind: a flipped bit in one
    # name must not make an old record of it, of which less is checked.
    # Records had no checksum of their own when the state had one as a whole.
    if 'arrays' in record or 'record_crc32' in record:
      if record.get('record_crc32') != _record_crc32(record):
        raise DamagedError(
          f'{path} is damaged: {file.relative_to(path)} does not have the '
          'checksum that was noted in it'
        )
    elif not isinstance(record[_OLD_CHECKSUM], int):
      raise ValueError('the checksum is no number')
  return record


def checksum(state: Any) -> int:
  """CRC-32 of all bytes of a state: what older checkpoints have of it."""
  return functools.reduce(_add_crc32, jax.tree.leaves(state), 0)


def _add_crc32(crc: int, array: Any) -> int:
  # CRC-32: what is looked for are flipped bits, not forgers. As bytes, since
  # zlib takes no bfloat16.
  return zlib.crc32(np.ascontiguousarray(array).view(np.uint8), crc)


def _record_crc32(record: dict) -> int:
  # Of the contents and not of the file, whose spaces Orbax chooses.
  rest = {k: v for k, v in record.items() if k != 'record_crc32'}
  return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _describe(tree: Any) -> dict[str, dict]:
  """Returns what a record has of the arrays of a tree."""
  # Each by itself: who reads the weights checks them without the optimizer's
  # state, which may be twice as large.
  return {
    path: {
      'dtype': str(array.dtype),
      'shape': list(array.shape),
      'crc32': _add_crc32(0, array),
    }
    for path, array in by_path(tree).items()
  }


def by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by path, such as 'params/head/kernel'."""
  return {
    jax.tree_util.keystr(keys, simple=True, separator='/'): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


# The arrays.


def restore(
  path: epath.PathLike, abstract: TrainState
) -> tuple[TrainState, dict]:
  """Reads a whole checkpoint, to go on from it.

  Args:
    path: The checkpoint's folder.
    abstract: Tree of jax.ShapeDtypeStruct with the wanted shardings; the
      checkpoint may come from any number of devices.

  Returns:
    The state and the record.

  Raises:
    ConfigError: It is of another network or optimizer.
    DamagedError: It is damaged.
  """
  path = epath.Path(path)
  record = record_of(path, abstract)
  noted = record.get('arrays')
  state = abstract.replace(**_read(path, vars(abstract)))
  # Of what is in memory by now: TensorStore's own checksums do not cover every
  # byte.
  if noted:
    _check_arrays(state, noted, path)
  # Of all bytes together, so that only who reads all of them can check it.
  elif checksum(state) != record[_OLD_CHECKSUM]:
    raise DamagedError(
      f'{path} is damaged: its contents do not have the checksum that was '
      'noted when they were written'
    )
  return jax.tree.map(_placed, state, abstract), record


def record_of(path: epath.Path, abstract: TrainState) -> dict:
  """Reads the record, and refuses a checkpoint of another run.

  Args:
    path: The checkpoint's folder.
    abstract: As for `restore`.

  Raises:
    ConfigError: It is of another network or optimizer.
    DamagedError: The record is damaged.
  """
  # Small, and it says what the rest must be: whatever can be refused by it is
  # refused before gigabytes are read.
  record = read_record(path)
  # A wrong setting is not damage: this run must not go on from the one before.
  if noted := record.get('arrays'):
    _refuse_other_arrays(
      {name: (a['dtype'], *a['shape']) for name, a in noted.items()},
      {name: (str(a.dtype), *a.shape) for name, a in by_path(abstract).items()},
      path,
      hint='; use another --workdir, or the settings that the run began with',
    )
  return record


def load_variables(
  path: epath.PathLike,
  abstract: dict,
  *,
  head: bool = True,
  instead: str = '{path}',
) -> dict:
  """Reads parameters and statistics from a checkpoint, without the rest.

  Where the checkpoint holds an average of the parameters (optim.ema_decay),
  that is read in their place: it is what was evaluated, and what the
  statistics belong to.

  Args:
    path: The checkpoint's folder.
    abstract: {'params', 'batch_stats'}: jax.ShapeDtypeStruct, with shardings
      for arrays on devices, without for NumPy arrays.
    head: Whether the classifier is read too.
    instead: How the user asks for another checkpoint, such as '--step={step}'
      or '--checkpoint={path}'.

  Raises:
    ConfigError: The checkpoint is of another network, or has numbers that no
      training makes.
    DamagedError: It is damaged; the message names one before it that is not.
  """
  path = epath.Path(path)
  try:
    return _load_variables(path, abstract, head)
  except DamagedError as error:
    # The user chose this one, or the newest: another one would give other
    # scores, so it is named and not taken.
    advice = 'There is none before it that can be used'
    # Imported weights have no step, and no others beside them.
    others = _steps_in(path.parent) if path.name.isdigit() else []
    # Tried, not only listed: an error must not name one that is damaged, too.
    for step in reversed([s for s in others if s < int(path.name)]):
      other = path.parent / str(step)
      with contextlib.suppress(DamagedError, ConfigError):
        _load_variables(other, abstract, head)
        how = instead.format(step=step, path=other)
        advice = f'The one before, {other}, can be used: {how}'
        break
    raise DamagedError(f'{error}. {advice}') from error


def _load_variables(path: epath.Path, abstract: dict, head: bool) -> dict:
  """Reads variables without looking for another checkpoint."""
  is_head = lambda name: name.split('/')[1] == models.HEAD
  # Left out of what is asked for, so that other classes are no mismatch.
  if not head:
    params = {k: v for k, v in abstract['params'].items() if k != models.HEAD}
    abstract = abstract | {'params': params}
  record = read_record(path)
  noted = record.get('arrays')
  # The record is checked by now, what Orbax notes of its arrays is not.
  with _reading(path):
    shapes = {n: a['shape'] for n, a in noted.items()} if noted else _old(path)
  _refuse_other_arrays(
    {
      name: tuple(shape)
      for name, shape in shapes.items()
      if name.split('/')[0] in VARIABLES and (head or not is_head(name))
    },
    {name: tuple(a.shape) for name, a in by_path(abstract).items()},
    path,
    last=is_head,  # It is named only where nothing else is wrong.
  )
  # The record says it, not the settings: those of an evaluation may differ.
  averaged = any(name.startswith('ema/') for name in shapes)
  params, statistics = abstract['params'], abstract['batch_stats']
  found = _read(
    path, {'ema' if averaged else 'params': params, 'batch_stats': statistics}
  )
  if noted:
    _check_arrays(found, noted, path)
  # Said and not refused: old runs stay of use.
  elif jax.process_index() == 0:
    print(
      f'{path} was written before every array had a checksum: what is read of '
      'it is not checked',
      file=sys.stderr,
    )
  found = {
    'params': found['ema' if averaged else 'params'],
    'batch_stats': found['batch_stats'],
  }
  # Before anything is computed: XLA's ReLU may turn NaN into a number.
  _check_numbers(found, path)
  return jax.tree.map(_placed, found, abstract)


def _read(path: epath.Path, parts: Mapping[str, Any]) -> dict:
  """Reads parts of the state of a checkpoint as NumPy arrays.

  Args:
    path: The checkpoint's folder.
    parts: Trees of jax.ShapeDtypeStruct by name; the rest is not read.

  Raises:
    DamagedError: They cannot be read.
  """
  hush()  # A read that fails leaves coroutines behind.
  # Orbax has something else in the place of a tree without leaves.
  filled = {name: t for name, t in parts.items() if jax.tree.leaves(t)}
  with _reading(path):
    # By name and not as a TrainState: an evaluation has no optimizer, whose
    # state has a tree of its own.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      found = checkpointer.restore(
        (path / 'state').resolve(),
        args=ocp.args.PyTreeRestore(
          item=filled,
          # As they are stored: what has been cast has another checksum.
          restore_args=jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), filled
          ),
          partial_restore=True,
        ),
      )
    # Trees without leaves come back as they were asked for.
    return {**parts, **jax.tree.map(np.asarray, found)}


def _placed(array: np.ndarray, wanted: jax.ShapeDtypeStruct):
  """Returns an array in the wanted type, on the wanted devices if any."""
  # A checkpoint may have another precision than is wanted.
  array = array.astype(wanted.dtype, copy=False)
  if wanted.sharding is None:
    return array
  # Not device_put: it compares the arrays between the processes first. Every
  # process has read all of it, and hands each device its part.
  return jax.make_array_from_callback(
    array.shape, wanted.sharding, lambda index: array[index]
  )


def _old(path: epath.Path) -> dict[str, tuple[int, ...]]:
  """Returns shapes of a network by path, where the record has none."""
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata((path / 'state').resolve()).tree
  # Of the optimizer's state nothing is read, so nothing of it can differ.
  parts = {name: tree.get(name) for name in (*VARIABLES, 'ema')}
  # Where there is no average, Orbax has something else in the dict's place.
  parts = {k: v for k, v in parts.items() if isinstance(v, dict)}
  return {name: leaf.shape for name, leaf in by_path(parts).items()}


# Checks.


def _refuse_other_arrays(
  found: Mapping[str, tuple],
  wanted: Mapping[str, tuple],
  path: epath.PathLike,
  *,
  last=lambda name: False,
  hint: str = '',
) -> None:
  """Refuses a checkpoint with other arrays than the settings mean.

  It comes before they are read: Orbax's own error for other shapes names none.

  Args:
    found: Shape, or type and shape, of the checkpoint's arrays by path.
    wanted: Those of the settings.
    path: The checkpoint's folder.
    last: Whether an array is named only where no other is wrong.
    hint: What the user can do.

  Raises:
    ConfigError: Names one that differs.
  """
  names = dict.fromkeys([*wanted, *found])
  wrong = [name for name in names if found.get(name) != wanted.get(name)]
  if wrong:
    name = min(wrong, key=last)
    raise ConfigError(
      f'{path}: {len(wrong)} of {len(names)} variables differ from the '
      f"model's, such as {name}: {found.get(name, 'none')}, but the "
      f'model has {wanted.get(name, "none")}{hint}'
    )


def _check_arrays(
  tree: Any, noted: Mapping[str, dict], path: epath.PathLike
) -> None:
  """Raises DamagedError where an array that was read is not what was noted."""
  with _reading(path):  # What comes back can be no array at all.
    found = _describe(tree)
  wrong = [name for name, array in found.items() if array != noted.get(name)]
  if wrong:
    raise DamagedError(
      f'{path} is damaged: {len(wrong)} of {len(found)} arrays, such as '
      f'{wrong[0]}, do not have the checksum that was noted when they were '
      'written'
    )


def _check_numbers(variables: dict, path: epath.PathLike) -> None:
  """Refuses variables that are NaN or infinite, or variances below 0."""
  for name, array in by_path(variables).items():
    if not np.isfinite(array).all():
      raise ConfigError(f'{path}: {name} holds NaN or infinite numbers')
    # Its root would be NaN, which a ReLU may hide.
    is_variance = name.startswith('batch_stats/') and name.endswith('/var')
    if is_variance and (array < 0).any():
      raise ConfigError(
        f'{path}: {name} holds variances, and some are negative'
      )


# Errors.


@contextlib.contextmanager
def _reading(path: epath.PathLike) -> Iterator[None]:
  """Makes whatever goes wrong inside a DamagedError that names a checkpoint."""
  try:
    yield
  # Of our own: they say what is wrong, and whether it is damage.
  except (ConfigError, RunError):
    raise
  # Orbax, TensorStore, JSON and the file system have many errors for this.
  except Exception as error:
    raise DamagedError(f'{path} cannot be read ({reason(error)})') from error


def reason(error: Exception) -> str:
  """Returns what an error says, without the pages that TensorStore adds."""
  line = (str(error).strip().splitlines() or [''])[0]
  for page in (' [tensorstore_spec', ' See full TensorStore details'):
    line = line.split(page)[0]
  if len(line) > 300:  # What it was about, and what was wrong with it.
    line = f'{line[:100]} ... {line[-190:]}'
  return f'{type(error).__name__}: {line}'


@functools.cache
def hush() -> None:
  """Keeps off stderr what Orbax leaves behind where it raises an error.

  The error says what was wrong. Coroutines and futures that were under way then
  print it once more, or that their loop has ended, each with a traceback, and
  some of them after the error was raised.
  """
  # Once (the cache), and for the rest of the process: nobody can say when the
  # last of them has been freed.
  previous = sys.unraisablehook

  def hook(unraisable) -> None:
    if 'Event loop is closed' in str(unraisable.exc_value):
      return
    # Only these: whatever else cannot be raised may be a bug of ours.
    if not inspect.iscoroutine(unraisable.object):
      previous(unraisable)

  sys.unraisablehook = hook
  # A write that fails is hundreds of lines from several threads.
  logging.get_absl_logger().addFilter(
    lambda record: (
      record.levelno < std_logging.ERROR
      or f'{os.sep}orbax{os.sep}' not in record.pathname
    )
  )
  std_logging.getLogger('asyncio').setLevel(std_logging.CRITICAL)
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited')
