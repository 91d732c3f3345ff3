"""Reads the network of a checkpoint for the clips that are to be scored."""

import functools
import pathlib
from collections.abc import Callable

import ml_collections
from etils import epath

from mgjax.hosts import parallel
from mgjax.run import checkpoint
from mgjax.setup import evaluation, grids, planning
from mgjax.step import compilation


def find(config: ml_collections.ConfigDict, folder: pathlib.Path) -> epath.Path:
  """The checkpoint of a folder, which is of one or of a run.

  Raises:
    ConfigError: There is none, or the network cannot work.
  """
  planning.check_network(config, [grids.eval_grid(config)])
  return checkpoint.find(folder, 'checkpoint')


class Network:
  """The network of a checkpoint, and its program for batches of clips.

  Attributes:
    config: The settings, with the batch size of the program.
    mesh: Devices.
    model: The network.
    state: Its weights.
  """

  def __init__(
    self, config: ml_collections.ConfigDict, path: epath.Path, num_clips: int
  ):
    """Reads the weights.

    Args:
      config: Of the run.
      path: Of the checkpoint.
      num_clips: To be scored: fewer than the batch of an evaluation need none
        of that size, nor all devices.

    Raises:
      ConfigError: The checkpoint is of another network.
      checkpoint.DamagedError: It is damaged.
    """
    batch = min(config.eval.batch_size, num_clips)
    self.mesh = parallel.make_mesh(batch)
    self.config = config.copy_and_resolve_references()
    self.config.eval.batch_size = -(-batch // self.mesh.size) * self.mesh.size
    self.model, self.state = evaluation.load(
      self.config, self.mesh, path, instead='--checkpoint={path}'
    )

  @functools.cached_property
  def program(self) -> Callable:
    """The evaluation step, compiled when it is first needed."""
    return compilation.compile_program(
      evaluation.lower_eval_step(
        self.config, self.model, self.mesh, self.state
      ),
      parallel.platform(self.mesh),
    )
