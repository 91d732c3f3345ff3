"""Checkpoints: written in the background, atomic, checked, restored by step."""

import contextlib
import dataclasses
import functools
import inspect
import json
import logging as std_logging
import os
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from mgjax import files, models
from mgjax.cli import ConfigError, RunError
from mgjax.hosts.peers import Peers
from mgjax.step.train_step import TrainState

# The parts of a state that make a network.
VARIABLES = ('params', 'batch_stats')

# What a record has that was written before every array had a checksum.
_OLD_CHECKSUM = 'crc32'


class DamagedError(RunError):
  """A checkpoint that cannot be read, or does not hold what was written."""


@dataclasses.dataclass
class _NewestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps the newest checkpoints and those with the best scores.

  Attributes:
    newest: How many of the newest.
    best: How many of the best.
    scores: Of the evaluated steps; better is larger.
  """

  newest: int
  best: int
  scores: dict[int, float]

  def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
    del context
    steps = [info.step for info in checkpoints]
    scored = [step for step in steps if step in self.scores]
    # Of equal ones the later is kept.
    ranked = sorted(scored, key=lambda step: (self.scores[step], step))
    kept = {*steps[-self.newest :], *ranked[len(ranked) - self.best :]}
    return [step in kept for step in steps]


class NotWrittenError(RunError):
  """A checkpoint that could not be written."""


class Checkpoints:
  """The checkpoints of a run, in `workdir/checkpoints`.

  A checkpoint is the state and a small JSON record of the run's counters. It
  appears under its name only when it is complete: a process that dies while
  writing leaves the checkpoint before as the newest. The record holds a
  checksum of every array of the state and one of itself, so that whoever reads
  any part of a damaged checkpoint notices.

  Attributes:
    scores: Of the evaluated steps; better is larger. Whoever evaluates adds
      to it; it is saved with every later checkpoint.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    train: ml_collections.ConfigDict | None = None,
    peers: Peers | None = None,
  ):
    """Opens the folder.

    Args:
      workdir: The run's folder.
      train: config.train; None to read only.
      peers: The processes of the run.
    """
    _hush()
    self.scores: dict[int, float] = {}
    self._peers = peers or Peers()
    self._workdir = epath.Path(workdir)
    policy = train and _NewestAndBest(
      train.keep_checkpoints, train.keep_best, self.scores
    )
    verbosity = logging.get_verbosity()
    if train is None:  # Orbax warns that it will not write.
      logging.set_verbosity(logging.ERROR)
    try:
      self._manager = ocp.CheckpointManager(
        (self._workdir / 'checkpoints').resolve(),
        options=ocp.CheckpointManagerOptions(
          preservation_policy=policy or None,
          create=train is not None,
          read_only=train is None,
          cleanup_tmp_directories=train is not None,
        ),
      )
    finally:
      logging.set_verbosity(verbosity)

  @property
  def directory(self) -> epath.Path:
    return epath.Path(self._manager.directory)

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(
    self, state: TrainState, step: int, progress: dict, *, replace: bool = False
  ) -> None:
    """Starts to write a checkpoint; returns once the state is copied.

    Args:
      state: The state after `step` steps.
      step: Its name.
      progress: JSON record of counters that the state does not hold.
      replace: What happens to a checkpoint of the same step: it is replaced,
        or else stays and nothing is written.

    Raises:
      RunError: This checkpoint or the one before could not be written.
    """
    exists = step in self._manager.all_steps()
    if exists and not replace:
      return
    record = sealed(
      {
        **progress,
        'scores': {str(k): v for k, v in self.scores.items()},
        'arrays': describe_arrays(state),
      }
    )
    try:
      if exists:
        self._manager.delete(step)
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          progress=ocp.args.JsonSave(record),
        ),
      )
    except Exception as error:
      raise self._not_written(error) from error

  def check(self) -> None:
    """Raises RunError where a write in the background has failed."""
    try:
      self._manager.check_for_errors()
    except Exception as error:
      raise self._not_written(error) from error

  def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, dict]:
    """Reads a checkpoint.

    Args:
      abstract: Tree of jax.ShapeDtypeStruct with the wanted shardings; the
        checkpoint may come from any number of devices.
      step: Its name.

    Returns:
      The state and the record of counters.

    Raises:
      ConfigError: It is of another network or optimizer.
      DamagedError: It is damaged.
    """
    path = self.directory / str(step)
    with _reading(path):
      progress = read_record(path)
      if 'arrays' in progress:
        _check_same_arrays(progress['arrays'], abstract, path)
      state = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      )['state']
    if 'arrays' in progress:
      _check_arrays(state, progress['arrays'], path)
    elif checksum(state) != progress[_OLD_CHECKSUM]:
      raise DamagedError(
        f'{path} is damaged: its contents do not have the checksum that was '
        'noted when they were written'
      )
    return state, progress

  def restore_newest(
    self, abstract: TrainState
  ) -> tuple[TrainState, dict, int] | None:
    """Reads the newest checkpoint that is not damaged.

    Damaged ones are moved to `workdir/damaged`, and named on stderr.

    Args:
      abstract: As for `restore`.

    Returns:
      The state, the record of counters and the step; None without checkpoints.

    Raises:
      RunError: There are checkpoints, and none of them can be read. They stay
        where they are.
    """
    damaged: dict[int, str] = {}
    for step in reversed(self.steps()):
      try:
        state, progress = self.restore(abstract, step)
        problem = ''
      except RunError as error:
        problem = str(error)
      # A file that one process cannot read is of no use to the others.
      problems = [text for text in self._peers.exchange(problem) if text]
      if not problems:
        self._put_aside(damaged)
        scores = progress['scores'].items()
        self.scores.update({int(k): v for k, v in scores})
        return state, progress, step
      damaged[step] = problems[0]
    if damaged:
      raise RunError(
        f'{"; ".join(damaged.values())}. No other checkpoint is left; use '
        'another --workdir to start from the beginning'
      )
    return None

  def _put_aside(self, damaged: dict[int, str]) -> None:
    if not damaged:
      return
    folder = self._workdir / 'damaged'
    if self._peers.is_first:
      folder.mkdir(parents=True, exist_ok=True)
      for step, problem in damaged.items():
        print(
          f'{problem}. Moved to {folder}; going on from the checkpoint before.',
          file=sys.stderr,
        )
        number = len(list(folder.iterdir()))
        (self.directory / str(step)).rename(folder / f'{number}-step-{step}')
    self._peers.exchange(None)  # Moved before anyone looks again.
    self._manager.reload()

  def _not_written(self, error: Exception) -> RunError:
    kept = [f'step {step}' for step in self.steps()[-1:]] or ['the beginning']
    return NotWrittenError(
      f'a checkpoint could not be written to {self.directory} '
      f'({_reason(error)}). '
      f'Complete checkpoints are kept: the same command goes on from {kept[0]}'
    )

  def wait(self) -> None:
    """Waits until everything is on disk.

    Raises:
      RunError: It did not get there.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._not_written(error) from error

  def close(self) -> None:
    """Waits until everything is on disk.

    Raises:
      RunError: It did not get there.
    """
    try:
      self._manager.wait_until_finished()
      self._manager.close()
    except Exception as error:
      raise self._not_written(error) from error

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, exc_type, exc_value, traceback) -> None:
    try:
      self.close()
    except RunError as error:
      if exc_type is None or exc_type is SystemExit:
        raise
      # What ended the run is the news. This came on top of it, if it is not the
      # same: a disk that is full.
      if not (
        isinstance(exc_value, NotWrittenError) or files.is_of_disk(exc_value)
      ):
        print(error, file=sys.stderr)


def describe_arrays(tree: Any) -> dict[str, dict]:
  """Type, shape and checksum of every array of a tree.

  Args:
    tree: A state or a part of one. Every process holds its arrays whole.

  Returns:
    By the path of the array, such as 'params/head/kernel': {'dtype', 'shape',
    'crc32' of its bytes in C order}.
  """
  return {
    path: {
      'dtype': str(leaf.dtype),
      'shape': list(leaf.shape),
      'crc32': _crc32(leaf),
    }
    for path, leaf in _by_path(tree).items()
  }


def sealed(record: dict) -> dict:
  """A JSON record with a checksum of its own."""
  record = json.loads(json.dumps(record))
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


def checksum(state: TrainState) -> int:
  """CRC-32 of all bytes of a state: what older checkpoints have of it."""
  crc = 0
  for leaf in jax.tree.leaves(state):
    crc = _crc32(leaf, crc)
  return crc


def _crc32(array, crc: int = 0) -> int:
  return zlib.crc32(np.ascontiguousarray(array).view(np.uint8), crc)


def _record_crc32(record: dict) -> int:
  rest = {k: v for k, v in record.items() if k != 'record_crc32'}
  return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their paths, such as 'params/head/kernel'."""
  return {
    jax.tree_util.keystr(keys, simple=True, separator='/'): leaf
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@contextlib.contextmanager
def _reading(path: epath.PathLike) -> Iterator[None]:
  """Whatever goes wrong inside is a DamagedError that names the checkpoint."""
  try:
    yield
  except (ConfigError, RunError):
    raise
  # Orbax, TensorStore, JSON and the file system have many errors for this.
  except Exception as error:
    raise DamagedError(f'{path} cannot be read ({_reason(error)})') from error


def _reason(error: Exception) -> str:
  """What an error says, without the pages that TensorStore adds."""
  line = (str(error).strip().splitlines() or [''])[0]
  for page in (' [tensorstore_spec', ' See full TensorStore details'):
    line = line.split(page)[0]
  if len(line) > 300:  # What it was about, and what was wrong with it.
    line = f'{line[:100]} ... {line[-190:]}'
  return f'{type(error).__name__}: {line}'


@functools.cache
def _hush() -> None:
  """Keeps off stderr what Orbax leaves behind where it raises an error.

  The error says what was wrong. Coroutines and futures that were under way then
  print it once more, or that their loop has ended, each with a traceback, and
  some of them after the error was raised.
  """
  previous = sys.unraisablehook

  def hook(unraisable) -> None:
    if 'Event loop is closed' in str(unraisable.exc_value):
      return
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


def _check_arrays(
  tree: Any, noted: Mapping[str, dict], path: epath.PathLike
) -> None:
  """Raises DamagedError where an array that was read is not what was noted."""
  with _reading(path):  # What comes back can be no array at all.
    found = describe_arrays(tree)
  wrong = [name for name, array in found.items() if array != noted.get(name)]
  if wrong:
    raise DamagedError(
      f'{path} is damaged: {len(wrong)} of {len(found)} arrays, such as '
      f'{wrong[0]}, do not have the checksum that was noted when they were '
      'written'
    )


def _check_same_arrays(
  noted: Mapping[str, dict], abstract: Any, path: epath.PathLike
) -> None:
  """Raises ConfigError where a checkpoint has other arrays than a state."""
  found = {
    name: (array['dtype'], *array['shape']) for name, array in noted.items()
  }
  wanted = {
    name: (str(leaf.dtype), *leaf.shape)
    for name, leaf in _by_path(abstract).items()
  }
  names = dict.fromkeys([*wanted, *found])
  wrong = [name for name in names if found.get(name) != wanted.get(name)]
  if wrong:
    raise ConfigError(
      f'{path}: {len(wrong)} of {len(names)} arrays differ from those of these '
      f'settings, such as {wrong[0]}: {found.get(wrong[0], "none")}, but the '
      f'run has {wanted.get(wrong[0], "none")}; use another --workdir, or the '
      'settings that the run began with'
    )


def abstract_state(make_state, sharding) -> TrainState:
  """Shapes, dtypes and shardings of a state, without making one."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    jax.eval_shape(make_state),
  )


def find(folder: epath.PathLike, field: str) -> epath.Path:
  """Finds the newest complete checkpoint in a folder.

  Args:
    folder: Folder of a run, or of one checkpoint.
    field: Name of the setting that names the folder, for errors.

  Returns:
    The checkpoint's folder.

  Raises:
    ConfigError: There is none.
  """
  folder = epath.Path(folder)
  if (folder / 'state').is_dir():
    return folder
  steps = [
    int(path.parent.name)
    for path in (folder / 'checkpoints').glob('*/state')
    if path.parent.name.isdigit()
  ]
  if not steps:
    raise ConfigError(
      f'{field}={folder} holds no checkpoint; give the folder of a run, or '
      'one that mgjax.import_weights has written'
    )
  return folder / 'checkpoints' / str(max(steps))


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
    ConfigError: The checkpoint is of another network.
    DamagedError: It is damaged; the message names one before it that is not.
  """
  path = epath.Path(path)
  try:
    return _load_variables(path, abstract, head)
  except DamagedError as error:
    other = _newest_usable(_before(path), abstract, head)
    if other is None:
      raise DamagedError(
        f'{error}. There is none before it that can be used'
      ) from error
    how = instead.format(step=other.name, path=other)
    raise DamagedError(
      f'{error}. The one before, {other}, can be used: {how}'
    ) from error


def _newest_usable(
  paths: Sequence[epath.Path], abstract: dict, head: bool
) -> epath.Path | None:
  """The first of some checkpoints that can be read, if any."""
  for path in paths:
    with contextlib.suppress(DamagedError, ConfigError):
      _load_variables(path, abstract, head)
      return path
  return None


def _before(path: epath.Path) -> list[epath.Path]:
  """The checkpoints of the same run that are older, the newest first."""
  if not path.name.isdigit():
    return []
  steps = [
    int(other.parent.name)
    for other in path.parent.glob('*/state')
    if other.parent.name.isdigit()
  ]
  older = [step for step in steps if step < int(path.name)]
  return [path.parent / str(step) for step in sorted(older, reverse=True)]


def _load_variables(path: epath.Path, abstract: dict, head: bool) -> dict:
  """`load_variables` without looking for another checkpoint."""
  _hush()
  if not head:
    params = {k: v for k, v in abstract['params'].items() if k != models.HEAD}
    abstract = abstract | {'params': params}
  record = read_record(path)
  with _reading(path):
    # The record is checked by now, what Orbax notes of its arrays is not.
    if 'arrays' in record:
      shapes = {
        name: tuple(array['shape']) for name, array in record['arrays'].items()
      }
    else:
      shapes = _stored_shapes(path)
  _check_same_network(shapes, abstract, head, path)
  tree = dict(abstract)
  if any(name.startswith('ema/') for name in shapes):
    tree['ema'] = tree.pop('params')
  with _reading(path):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      found = checkpointer.restore(
        (path / 'state').resolve(),
        args=ocp.args.PyTreeRestore(
          item=tree,
          # As they are stored: what has been cast has another checksum.
          restore_args=jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
          ),
          partial_restore=True,
        ),
      )
  if 'arrays' in record:
    _check_arrays(found, record['arrays'], path)
  elif jax.process_index() == 0:
    print(
      f'{path} was written before every array had a checksum: what is read of '
      'it is not checked',
      file=sys.stderr,
    )
  found = {
    'params': found['ema' if 'ema' in tree else 'params'],
    'batch_stats': found['batch_stats'],
  }
  return jax.tree.map(_placed, found, abstract)


def _placed(array: np.ndarray, wanted: jax.ShapeDtypeStruct):
  """An array in the wanted type, on the wanted devices if any."""
  array = np.asarray(array).astype(wanted.dtype, copy=False)
  if wanted.sharding is None:
    return array
  return jax.make_array_from_callback(
    array.shape, wanted.sharding, lambda index: array[index]
  )


def _stored_shapes(path: epath.Path) -> dict[str, tuple[int, ...]]:
  """Shapes of what evaluation may need, by path, as Orbax notes them."""
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata((path / 'state').resolve()).tree
  parts = {name: tree.get(name) for name in (*VARIABLES, 'ema')}
  # Where there is no average, Orbax has something else in the dict's place.
  parts = {k: v for k, v in parts.items() if isinstance(v, dict)}
  return {name: tuple(leaf.shape) for name, leaf in _by_path(parts).items()}


def _check_same_network(
  shapes: Mapping[str, tuple[int, ...]],
  abstract: dict,
  head: bool,
  path: epath.Path,
) -> None:
  """Raises ConfigError where variables are not those of a network.

  Args:
    shapes: Of the arrays of the checkpoint, by path.
    abstract: Variables of the network, without the classifier where `head` is
      False.
    head: Whether the classifier counts.
    path: Of the checkpoint, for the error.
  """
  is_head = lambda name: name.split('/')[1] == models.HEAD
  wanted = {name: tuple(x.shape) for name, x in _by_path(abstract).items()}
  found = {
    name: shape
    for name, shape in shapes.items()
    if name.split('/')[0] in VARIABLES and (head or not is_head(name))
  }
  names = dict.fromkeys([*wanted, *found])
  wrong = [name for name in names if found.get(name) != wanted.get(name)]
  if wrong:
    # The classifier is named only where nothing else is wrong.
    name = min(wrong, key=is_head)
    raise ConfigError(
      f'{path}: {len(wrong)} of {len(names)} variables differ from the '
      f"model's, such as {name}: {found.get(name, 'none')}, but the "
      f'model has {wanted.get(name, "none")}'
    )
