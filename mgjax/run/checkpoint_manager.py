"""The checkpoints of a run: written in the background, restored by step."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from mgjax import files
from mgjax.errors import ConfigError, RunError
from mgjax.hosts.peers import Peers
from mgjax.run import checkpoint_record
from mgjax.run.checkpoint_record import DamagedError
from mgjax.step.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Keep:
  """Which checkpoints of a run stay on disk.

  Attributes:
    newest: How many of the newest, 1 or more.
    best: How many of those with the best scores, 0 or more.
  """

  newest: int
  best: int


class NotWrittenError(RunError):
  """A checkpoint that could not be written."""


@dataclasses.dataclass
class _NewestAndBest(checkpoint_managers.PreservationPolicy):
  """Keeps the newest checkpoints and those with the best scores.

  Attributes:
    keep: How many of them.
    scores: Of the evaluated steps; better is larger.
  """

  keep: Keep
  scores: dict[int, float]

  def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
    del context
    steps = [info.step for info in checkpoints]
    scored = [step for step in steps if step in self.scores]
    # Of equal ones the later is kept.
    ranked = sorted(scored, key=lambda step: (self.scores[step], step))
    newest, best = self.keep.newest, self.keep.best
    kept = {*steps[-newest:], *ranked[len(ranked) - best :]}
    return [step in kept for step in steps]


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
    keep: Keep | None = None,
    peers: Peers | None = None,
  ):
    """Opens the folder.

    Args:
      workdir: The run's folder.
      keep: Which of them stay when more are written; None: they are only read,
        and nothing in the folder is changed.
      peers: The processes of the run.
    """
    checkpoint_record.hush()
    self.scores: dict[int, float] = {}
    self._peers = peers or Peers()
    self._workdir = epath.Path(workdir)
    policy = keep and _NewestAndBest(keep, self.scores)
    verbosity = logging.get_verbosity()
    if keep is None:  # Orbax warns that it will not write.
      logging.set_verbosity(logging.ERROR)
    try:
      self._manager = ocp.CheckpointManager(
        (self._workdir / 'checkpoints').resolve(),
        options=ocp.CheckpointManagerOptions(
          preservation_policy=policy or None,
          create=keep is not None,
          read_only=keep is None,
          cleanup_tmp_directories=keep is not None,
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
    # Of what is in memory now: a file that is read must be just this.
    record = checkpoint_record.sealed(
      {
        **progress,
        'scores': {str(k): v for k, v in self.scores.items()},
        'arrays': checkpoint_record.describe_arrays(state),
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
    with checkpoint_record.reading(path):
      # Before the arrays: Orbax's own error for other shapes names no array.
      progress = checkpoint_record.read_record(path)
      if 'arrays' in progress:
        _check_same_arrays(progress['arrays'], abstract, path)
      state = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      )['state']
    if 'arrays' in progress:
      checkpoint_record.check_arrays(state, progress['arrays'], path)
    elif (
      checkpoint_record.checksum(state)
      != progress[checkpoint_record.OLD_CHECKSUM]
    ):
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
      f'({checkpoint_record.reason(error)}). '
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


def _check_same_arrays(
  noted: Mapping[str, dict], abstract: Any, path: epath.PathLike
) -> None:
  """Raises ConfigError where a checkpoint has other arrays than a state."""
  found = {
    name: (array['dtype'], *array['shape']) for name, array in noted.items()
  }
  wanted = {
    name: (str(leaf.dtype), *leaf.shape)
    for name, leaf in checkpoint_record.by_path(abstract).items()
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
