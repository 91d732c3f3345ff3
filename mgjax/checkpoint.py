"""Checkpoints: written in the background, atomic, restored by step."""

import pathlib

import jax
import ml_collections
import orbax.checkpoint as ocp

from mgjax import models
from mgjax.cli import ConfigError
from mgjax.train_step import TrainState

# The parts of a state that make a network.
VARIABLES = ('params', 'batch_stats')


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


def find(folder: pathlib.Path, field: str) -> pathlib.Path:
  """Finds the newest complete checkpoint in a folder.

  Args:
    folder: Folder of a run, or of one checkpoint.
    field: Name of the setting that names the folder, for errors.

  Returns:
    The checkpoint's folder.

  Raises:
    ConfigError: There is none.
  """
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


def shapes(path: pathlib.Path) -> dict[tuple[str, ...], tuple[int, ...]]:
  """Shapes of a checkpoint's parameters and statistics, by path."""
  metadata = ocp.PyTreeCheckpointHandler().metadata((path / 'state').absolute())
  tree = {name: metadata.tree[name] for name in VARIABLES}
  return {
    tuple(key.key for key in keys): tuple(leaf.shape)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def load_variables(
  path: pathlib.Path, abstract: dict, *, head: bool = True
) -> dict:
  """Reads parameters and statistics from a checkpoint, without the rest.

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
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    return checkpointer.restore(
      (path / 'state').absolute(),
      args=ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
      ),
    )
