"""The checkpoints of a run: written in the background, restored by step."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from mgjax import files
from mgjax.errors import ConfigError, RunError
from mgjax.hosts.peers import Peers
from mgjax.run import checkpoint
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
    # Asked before each save. The scores are those of `Checkpoints`, which grow
    # with every evaluation.
    del context
    steps = [info.step for info in checkpoints]
    scored = [step for step in steps if step in self.scores]
    # Of equal ones the later is kept.
    ranked = sorted(scored, key=lambda step: (self.scores[step], step))
    newest, best = self.keep.newest, self.keep.best
    # Not ranked[-best:], which with best=0 would be all of them.
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
    keep: Keep,
    peers: Peers | None = None,
  ):
    """Opens the folder.

    Args:
      workdir: The run's folder.
      keep: Which of them stay when more are written.
      peers: The processes of the run.
    """
    # Before Orbax starts its threads, which may fail at any time.
    checkpoint.hush()
    self.scores: dict[int, float] = {}
    self._peers = peers or Peers()
    self._workdir = epath.Path(workdir)
    # Before Orbax lists what there is.
    self._take_back()
    self._manager = ocp.CheckpointManager(
      (self._workdir / 'checkpoints').resolve(),
      options=ocp.CheckpointManagerOptions(
        # Not Orbax's own: it wants the score when the checkpoint is written,
        # and the evaluation comes after that.
        preservation_policy=_NewestAndBest(keep, self.scores),
        # What a killed process has left half-written. Nobody else writes here:
        # the run's lock sees to that.
        cleanup_tmp_directories=True,
      ),
    )

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
    # A resumed run comes by steps that it has written before. A run is a
    # function of its step, so the one that is there will do.
    exists = step in self._manager.all_steps()
    if exists and not replace:
      return
    # Of what is in memory now: a file that is read must be just this.
    # Scores too: the next launch must know which of them are the best.
    record = checkpoint.make_record(
      state,
      {**progress, 'scores': {str(k): v for k, v in self.scores.items()}},
    )
    # Not at the same time as the one before: Orbax waits for that here, so an
    # error of its write comes up here, too.
    with self._writing():
      # Orbax writes no step twice.
      if exists:
        self._set_aside(step)
      # Returns once the state is copied: the next step may donate it.
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          progress=ocp.args.JsonSave(record),
        ),
      )
      if exists:
        self._manager.wait_until_finished()
        self._take_back()

  @property
  def _aside(self) -> epath.Path:
    return self._workdir / 'replaced'

  def _set_aside(self, step: int) -> None:
    """Moves a checkpoint away whose successor is about to be written.

    Not deleted: it may be the only one, and a kill may come in between.
    """
    self._manager.wait_until_finished()  # It may be under way itself.
    if self._peers.is_first:
      self._aside.mkdir(parents=True, exist_ok=True)
      (self.directory / str(step)).rename(self._aside / str(step))
    self._peers.exchange(None)  # Moved before anyone looks again.
    self._manager.reload()  # Orbax has listed them when it was opened.

  def _take_back(self) -> None:
    """Ends a replacement: the new checkpoint stays, or else the old one."""
    if self._peers.is_first and self._aside.exists():
      for old in self._aside.iterdir():
        # Complete ones alone have this name.
        if not (self._workdir / 'checkpoints' / old.name).exists():
          old.rename(self._workdir / 'checkpoints' / old.name)
      self._aside.rmtree()
    self._peers.exchange(None)

  def check(self) -> None:
    """Raises RunError where a write in the background has failed."""
    # Orbax keeps the error of its thread until somebody asks.
    with self._writing():
      self._manager.check_for_errors()

  def wait(self) -> None:
    """Waits until everything is on disk.

    Raises:
      RunError: It did not get there.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits as `wait` does, and lets go of the folder."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Makes whatever fails inside a NotWrittenError."""
    try:
      yield
    # Disks, object stores, TensorStore and Orbax have an error each.
    except Exception as error:
      # What the user can count on, now that this one is lost.
      kept = [f'step {step}' for step in self.steps()[-1:]] or ['the beginning']
      raise NotWrittenError(
        f'a checkpoint could not be written to {self.directory} '
        f'({checkpoint.reason(error)}). Complete checkpoints are kept: the '
        f'same command goes on from {kept[0]}'
      ) from error

  def restore_newest(
    self, abstract: TrainState
  ) -> tuple[TrainState, dict, int] | None:
    """Reads the newest checkpoint that is not damaged.

    Damaged ones are moved to `workdir/damaged`, and named on stderr.

    Args:
      abstract: As for `checkpoint.restore`.

    Returns:
      The state, the record of counters and the step; None without checkpoints.

    Raises:
      RunError: There are checkpoints, and none of them can be read. They stay
        where they are.
    """
    # From the newest on: one that is damaged costs the steps since the one
    # before, and no more. Moved only once a good one is found: where all are
    # damaged, as with a disk that cannot be read, nothing is touched.
    damaged: dict[int, str] = {}
    for step in reversed(self.steps()):
      try:
        state, progress = checkpoint.restore(
          self.directory / str(step), abstract
        )
        problem = ''
      except RunError as error:
        problem = str(error)
      # A file that one process cannot read is of no use to the others.
      problems = [text for text in self._peers.exchange(problem) if text]
      if not problems:
        self._put_aside(damaged)
        # Of this checkpoint: those of later ones, which are lost, are not
        # known.
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
    # Or else the run would find it when it comes to the same step, and not
    # write a good one.
    folder = self._workdir / 'damaged'
    if self._peers.is_first:
      folder.mkdir(parents=True, exist_ok=True)
      for step, problem in damaged.items():
        print(
          f'{problem}. Moved to {folder}; going on from the checkpoint before.',
          file=sys.stderr,
        )
        # The same step may be damaged twice.
        number = len(list(folder.iterdir()))
        (self.directory / str(step)).rename(folder / f'{number}-step-{step}')
    self._peers.exchange(None)  # Moved before anyone looks again.
    self._manager.reload()  # Orbax has listed them when it was opened.

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, exc_type, exc_value, traceback) -> None:
    try:
      self.close()
    except RunError as error:
      # The run is done, or was stopped by a signal: it must not end as if its
      # last checkpoint were there.
      if exc_type is None or exc_type is SystemExit:
        raise
      # What ended the run is the news. This came on top of it, if it is not the
      # same: a disk that is full.
      if not (
        isinstance(exc_value, NotWrittenError) or files.is_of_disk(exc_value)
      ):
        print(error, file=sys.stderr)


def check_resumable(
  workdir: epath.PathLike, abstract: TrainState, total_steps: int
) -> None:
  """Refuses a folder whose run these settings cannot go on with.

  It reads records alone, so that nothing is lost yet where it raises.

  Args:
    workdir: Folder of a run, which need not exist.
    abstract: As for `checkpoint.restore`.
    total_steps: Of the run.

  Raises:
    ConfigError: The newest checkpoint is of another network or optimizer, or
      has more steps than the run.
  """
  for step in reversed(checkpoint.steps(workdir)):
    path = epath.Path(workdir) / 'checkpoints' / str(step)
    try:
      checkpoint.record_of(path, abstract)
    except checkpoint.DamagedError:
      continue  # The run goes on from the one before.
    if step > total_steps:
      raise ConfigError(
        f'{path.parent} has a checkpoint of step {step}, but with these '
        f'settings the run ends at step {total_steps}'
      )
    return
