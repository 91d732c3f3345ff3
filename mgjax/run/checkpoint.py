"""One checkpoint: where it is, and the network's variables in it."""

import contextlib
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mgjax import models
from mgjax.errors import ConfigError
from mgjax.run import checkpoint_record
from mgjax.run.checkpoint_record import DamagedError

# The parts of a state that make a network.
VARIABLES = ('params', 'batch_stats')


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
  steps = _steps(folder / 'checkpoints')
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


def _steps(folder: epath.Path) -> list[int]:
  """Steps of the checkpoints in a folder, in no order."""
  return [
    int(path.parent.name)
    for path in folder.glob('*/state')
    if path.parent.name.isdigit()
  ]


def _before(path: epath.Path) -> list[epath.Path]:
  """The checkpoints of the same run that are older, the newest first."""
  if not path.name.isdigit():
    return []
  older = [step for step in _steps(path.parent) if step < int(path.name)]
  return [path.parent / str(step) for step in sorted(older, reverse=True)]


def _load_variables(path: epath.Path, abstract: dict, head: bool) -> dict:
  """`load_variables` without looking for another checkpoint."""
  checkpoint_record.hush()
  if not head:
    params = {k: v for k, v in abstract['params'].items() if k != models.HEAD}
    abstract = abstract | {'params': params}
  record = checkpoint_record.read_record(path)
  with checkpoint_record.reading(path):
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
  with checkpoint_record.reading(path):
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
    checkpoint_record.check_arrays(found, record['arrays'], path)
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
  return {
    name: tuple(leaf.shape)
    for name, leaf in checkpoint_record.by_path(parts).items()
  }


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
  wanted = {
    name: tuple(x.shape)
    for name, x in checkpoint_record.by_path(abstract).items()
  }
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
