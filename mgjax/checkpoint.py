"""Checkpoints: written in the background, atomic, checked, restored by step."""

import dataclasses
import sys
import zlib
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from mgjax import models
from mgjax.cli import ConfigError, RunError
from mgjax.peers import Peers
from mgjax.train_step import TrainState

# The parts of a state that make a network.
VARIABLES = ('params', 'batch_stats')


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


class Checkpoints:
  """The checkpoints of a run, in `workdir/checkpoints`.

  A checkpoint is the state and a small JSON record of the run's counters. It
  appears under its name only when it is complete: a process that dies while
  writing leaves the checkpoint before as the newest. The record holds a
  checksum of the state, so that a damaged file is noticed.

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
    record = {
      **progress,
      'scores': {str(k): v for k, v in self.scores.items()},
      'crc32': checksum(state),
    }
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
      RunError: It is damaged.
    """
    try:
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          progress=ocp.args.JsonRestore(),
        ),
      )
    except Exception as error:
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise RunError(
        f'{self.directory / str(step)} cannot be read: {reason[:300]}'
      ) from error
    state, progress = restored['state'], restored['progress']
    if checksum(state) != progress['crc32']:
      raise RunError(
        f'{self.directory / str(step)} is damaged: its contents do not have '
        'the checksum that was noted when they were written'
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
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return RunError(
      f'a checkpoint could not be written to {self.directory}: {reason[:300]}. '
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
      # What ended the run is the news; this came on top of it.
      print(error, file=sys.stderr)


def checksum(state: TrainState) -> int:
  """CRC-32 of all bytes of a state, which every process holds whole."""
  crc = 0
  for leaf in jax.tree.leaves(state):
    crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8), crc)
  return crc


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


def shapes(path: epath.PathLike) -> dict[tuple[str, ...], tuple[int, ...]]:
  """Shapes of a checkpoint's parameters and statistics, by path."""
  tree = {name: _metadata(path)[name] for name in VARIABLES}
  return {
    tuple(key.key for key in keys): tuple(leaf.shape)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _metadata(path: epath.PathLike) -> dict:
  """Shapes and types in a checkpoint: a tree like the state."""
  folder = (epath.Path(path) / 'state').resolve()
  return ocp.PyTreeCheckpointHandler().metadata(folder).tree


def load_variables(
  path: epath.PathLike, abstract: dict, *, head: bool = True
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

  Raises:
    ConfigError: The checkpoint is of another network.
  """
  if not head:
    params = {k: v for k, v in abstract['params'].items() if k != models.HEAD}
    abstract = abstract | {'params': params}
  wanted = {
    tuple(key.key for key in keys): tuple(leaf.shape)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(abstract)
  }
  found = {
    name: shape
    for name, shape in shapes(path).items()
    if head or name[1] != models.HEAD
  }
  names = dict.fromkeys([*wanted, *found])
  wrong = [name for name in names if found.get(name) != wanted.get(name)]
  if wrong:
    # The classifier is named only where nothing else is wrong.
    name = min(wrong, key=lambda name: name[1] == models.HEAD)
    raise ConfigError(
      f'{path}: {len(wrong)} of {len(names)} variables differ from the '
      f"model's, such as {'/'.join(name)}: {found.get(name, 'none')}, but the "
      f'model has {wanted.get(name, "none")}'
    )
  average = _metadata(path).get('ema')
  if isinstance(average, dict) and average:
    abstract = {
      'ema': abstract['params'],
      'batch_stats': abstract['batch_stats'],
    }
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    found = checkpointer.restore(
      (epath.Path(path) / 'state').resolve(),
      args=ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
      ),
    )
  return {
    'params': found['ema' if 'ema' in abstract else 'params'],
    'batch_stats': found['batch_stats'],
  }
