"""A training, from its settings: the one place where all parts meet.

`make_job` is what `train` builds on. What takes steps of a training without
being one, such as `replay`, builds on `compose`; what has no data, on
`network.compose` and `programs.lower_programs`.
"""

import dataclasses
import json
import zlib
from collections.abc import Sequence

import jax
import ml_collections
from etils import epath

from mgjax.config import rules
from mgjax.data.eval_stream import EvalStream
from mgjax.data.stream import TrainStream
from mgjax.errors import ConfigError
from mgjax.grids import GridSchedule
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.run import checkpoint, disk_space
from mgjax.setup import (
  data,
  evaluation,
  grids,
  network,
  planning,
  run_checks,
  run_settings,
  wall_time,
)
from mgjax.setup.initial_weights import initial_variables
from mgjax.setup.network import Trainable
from mgjax.step.programs import evaluation_steps


@dataclasses.dataclass(frozen=True)
class Composition:
  """What the steps of a training are made of.

  Attributes:
    config: The settings.
    mesh: The devices.
    schedule: Grids and learning rate of every step.
    train_stream: The training batches.
    network: Network, optimizer and state.
    class_weights: What a clip of each class counts in the loss; None: all
      count alike.
  """

  config: ml_collections.ConfigDict
  mesh: jax.sharding.Mesh
  schedule: GridSchedule
  train_stream: TrainStream
  network: Trainable
  class_weights: Sequence[float] | None


def compose(
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
  peers: Peers | None = None,
) -> Composition:
  """Opens the training videos and makes what the steps are made of.

  Args:
    config: The settings.
    mesh: The devices.
    peers: The processes that share every batch; None: this one alone.

  Raises:
    ConfigError: The data set is not there, or the settings cannot work.
  """
  peers = peers or Peers()
  source = data.source(config, 'train')
  schedule = grids.schedule(config, len(source), num_devices=mesh.size)
  return Composition(
    config=config,
    mesh=mesh,
    schedule=schedule,
    train_stream=data.train_stream(
      config, schedule, source, shard=peers.index, num_shards=peers.count
    ),
    network=network.compose(config, mesh),
    class_weights=data.class_weights(config, source),
  )


@dataclasses.dataclass(frozen=True)
class Job(Composition):
  """A run that can work: its settings and what they describe.

  Attributes:
    workdir: The run's folder.
    peers: Its processes.
    eval_stream: The batches that it is evaluated on.
    eval_steps: Steps done at each evaluation.
    plan: The schedule as plan.json has it.
    initial: Weights to start from, {} for random ones.
    changes: Settings that have changed since the folder's run began.
  """

  workdir: epath.Path
  peers: Peers
  eval_stream: EvalStream
  eval_steps: set[int]
  plan: dict
  initial: dict
  changes: list[str]


def _check_same(peers: Peers, plan: dict, initial: dict) -> None:
  """Refuses processes that would train something else than the others.

  Their settings are equal as texts by now; the files that those name need not
  be.

  Raises:
    ConfigError: Some have other videos, schedules or weights.
  """
  if peers.count == 1:
    return
  ours = {
    'training videos': plan['videos'],
    'schedule': zlib.crc32(json.dumps(plan, sort_keys=True).encode()),
    'weights to start from': checkpoint.checksum(initial),
  }
  first, *others = peers.exchange(ours)
  for number, theirs in enumerate(others, 1):
    for what, value in first.items():
      if theirs[what] != value:
        raise ConfigError(
          f'process {number} has other {what} than process 0; all need the '
          'same files'
        )


def make_job(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  peers: Peers,
  allow_config_change: bool,
) -> Job:
  """Checks everything that can be refused; writes nothing.

  Args:
    config: The settings.
    workdir: The run's folder, which need not exist.
    peers: The processes of the run.
    allow_config_change: Go on with a folder's run also where the config has
      changed since.

  Raises:
    ConfigError: The run cannot work.
  """
  # A command has done so; who calls `run_training` from Python has not.
  rules.check(config)
  # In the order of what it costs: seconds of tracing, then data, then weights.
  config = grids.with_table(data.with_classes(config))
  mesh = parallel.make_mesh()
  _check_settings(config, mesh)
  if (workdir / 'import.txt').exists():
    raise ConfigError(
      f'--workdir={workdir} holds imported weights, not a run; use another '
      f'folder, and --config.init_from={workdir} to start from them'
    )
  parts = compose(config, mesh, peers)
  # Opened now, or else what is wrong with it shows at the first evaluation.
  eval_source = data.source(config, config.eval.split)
  eval_stream = data.eval_stream(
    config, eval_source, shard=peers.index, num_shards=peers.count
  )
  # Refused now, or else in the thread that compiles.
  evaluation.head_window(config, parts.network.model)
  eval_steps = evaluation_steps(parts.schedule, config.eval.every)
  if peers.is_first:
    _check_disk(parts, workdir, len(eval_steps))
  initial = {}
  # A run that has checkpoints goes on from those; one that was killed while it
  # wrote its first has none.
  goes_on = bool(checkpoint.steps(workdir))
  if not goes_on:
    initial = initial_variables(config, parts.network.abstract)
  changes = run_settings.check(
    config,
    workdir,
    allow_config_change,
    parts.train_stream.source,
  )
  plan = planning.make_plan(config, parts.schedule, num_devices=mesh.size)
  plan['videos'] = run_settings.data_of(config, parts.train_stream.source)
  # All have looked before the first one writes.
  _check_same(peers, plan, initial)
  if peers.is_first:  # Last: what is refused is refused in one line.
    plan |= wall_time.foresee(
      config, parts.schedule, mesh, workdir, goes_on=goes_on
    )
  return Job(
    **vars(parts),
    workdir=workdir,
    peers=peers,
    eval_stream=eval_stream,
    eval_steps=eval_steps,
    plan=plan,
    initial=initial,
    changes=changes,
  )


def _check_settings(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> None:
  """Refuses what can be refused before data is opened."""
  # The size of the data set is enough for batches.
  planned = grids.schedule(
    config, grids.dataset_size(config)[0], num_devices=mesh.size
  )
  run_checks.check(config, data.describe(config), mesh.size)
  planning.check_network(config, planned.grids, planned.phases)
  planning.check_network(config, [grids.eval_grid(config)])


def _check_disk(
  parts: Composition, workdir: epath.Path, num_evaluations: int
) -> None:
  """Refuses a run that the disk of its folder has no room for."""
  settings, num_steps = parts.config.train, parts.schedule.total_steps
  # A new checkpoint is complete before an old one is removed.
  most = settings.keep_checkpoints + settings.keep_best + 1
  disk_space.check(
    workdir,
    parts.network.abstract,
    num_checkpoints=min(most, num_steps),
    num_lines=num_steps // settings.log_every_steps,
    num_evaluations=num_evaluations,
  )
