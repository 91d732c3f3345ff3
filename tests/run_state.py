"""What a run has left in its folder, and what it trained on."""

import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from mgjax.data.sources import Source


def final_state(workdir: pathlib.Path) -> dict:
  """The last checkpoint, as NumPy arrays, whatever devices it is from."""
  step = max(int(p.name) for p in (workdir / 'checkpoints').glob('[0-9]*'))
  path = workdir / 'checkpoints' / str(step) / 'state'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(tree)
    )
    return checkpointer.restore(
      path, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
    )


def of_classes(names, num_videos: int = 0, **fields) -> Source:
  """Training videos of these classes, of which only the number is read."""
  return Source('x', 'train', [None] * num_videos, tuple(names), **fields)
