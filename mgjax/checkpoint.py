"""Checkpoints: written in the background, atomic, restored by step."""

import pathlib

import jax
import ml_collections
import orbax.checkpoint as ocp

from mgjax.train_step import TrainState


class Checkpoints:
  """The checkpoints of a run, in `workdir/checkpoints`.

  A checkpoint is the state and a small JSON record of the run's counters. It
  appears under its name only when it is complete: a process that dies while
  writing leaves the checkpoint before as the newest.
  """

  def __init__(
    self, workdir: pathlib.Path, train: ml_collections.ConfigDict | None = None
  ):
    """Opens the folder.

    Args:
      workdir: The run's folder.
      train: config.train; None to read only.
    """
    self._manager = ocp.CheckpointManager(
      (workdir / 'checkpoints').absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=train.keep_checkpoints if train else None,
        create=train is not None,
        read_only=train is None,
        cleanup_tmp_directories=train is not None,
      ),
    )

  @property
  def directory(self) -> pathlib.Path:
    return pathlib.Path(self._manager.directory)

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(self, state: TrainState, step: int, progress: dict) -> None:
    """Starts to write a checkpoint; returns once the state is copied.

    Args:
      state: The state after `step` steps.
      step: Its name.
      progress: JSON record of counters that the state does not hold.
    """
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        progress=ocp.args.JsonSave(progress),
      ),
    )

  def restore(self, abstract: TrainState, step: int) -> tuple[TrainState, dict]:
    """Reads a checkpoint.

    Args:
      abstract: Tree of jax.ShapeDtypeStruct with the wanted shardings; the
        checkpoint may come from any number of devices.
      step: Its name.

    Returns:
      The state and the record of counters.
    """
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract),
        progress=ocp.args.JsonRestore(),
      ),
    )
    return restored['state'], restored['progress']

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def abstract_state(make_state, sharding) -> TrainState:
  """Shapes, dtypes and shardings of a state, without making one."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    jax.eval_shape(make_state),
  )
