"""From the settings to what a plan is made from: costs of grids.

Functions import JAX when they are called: planning's commands refuse bad flags
before that takes its second.
"""

from collections.abc import Collection, Sequence
from typing import Any

import ml_collections

from mgjax.config import network_options, own
from mgjax.errors import ConfigError
from mgjax.grids import Grid, GridSchedule, Phase
from mgjax.planning import plan, schedule_warnings
from mgjax.setup import clip_costs
from mgjax.setup import grids as grids_setup


def make_plan(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  *,
  size_source: str = 'data set',
  num_devices: int = 1,
) -> dict[str, Any]:
  """Returns all that is known about a run before its launch, as JSON data.

  Args:
    config: See mgjax/config/fields.py.
    schedule: Its schedule.
    size_source: Where the number of training videos is known from.
    num_devices: Devices that share each batch.

  Raises:
    ConfigError: If the model cannot be built, or a grid is too small for it.
  """
  full = grids_setup.full_grid(config)
  return plan.make_plan(
    schedule,
    clip_costs.gmacs_per_clip(config, {full, *schedule.grids}, schedule.phases),
    full=full,
    baseline_epochs=schedule.baseline_epochs,
    names={
      'mode': config.grid.mode,
      'model': config.model.name,
      'data': config.data.name,
    },
    memory=plan.memory(
      schedule.grids, num_devices, int(config.train.device_memory_gib * 2**30)
    ),
    size_source=size_source,
    samples_per_video=config.data.samples_per_video,
    has_batch_norm=network_options.options_of(config.model.name).has_batch_norm,
  )


def check_network(
  config: ml_collections.ConfigDict,
  grids: Collection[Grid],
  phases: Sequence[Phase] = (),
) -> None:
  """Refuses a network that cannot be built, or grids too small for it.

  Of a network of the user's own, all that it will be asked is traced.

  Commands call it before they open any data. What it traces is kept, so
  that a plan traces no grid again.

  Args:
    config: See mgjax/config/fields.py; `model`, `norm` and `train` are read.
    grids: What the network is to take.
    phases: Of the training that the grids come from; (): there is none.

  Raises:
    ConfigError: Says what is wrong with the network, and names the grid.
  """
  check_own_network(config, grids, trains=bool(phases), phases=phases)
  if phases:
    check_parameters(config)
  clip_costs.gmacs_per_clip(config, grids, phases)


def check_parameters(config: ml_collections.ConfigDict) -> None:
  """Refuses settings of parameters that the network does not have.

  Args:
    config: See mgjax/config/fields.py; `model` and `optim` are read.

  Raises:
    ConfigError: Names the setting.
  """
  from mgjax.setup import network

  network.check_parameters(config, network.model(config))


def check_own_network(
  config: ml_collections.ConfigDict,
  grids: Collection[Grid],
  *,
  trains: bool,
  phases: Sequence[Phase] = (),
) -> None:
  """Refuses a network of the user's own that could not be used.

  Args:
    config: Says which network; the others, which tests know, are not traced.
    grids: What it is to take.
    trains: Whether it is trained at these grids; else it is evaluated only.
    phases: Of the training that the grids come from; (): there is none.

  Raises:
    ConfigError: Names the step that fails, how, and the phase of its grid.
  """
  if not own.is_own(config.model.name):
    return
  from mgjax.models import own_network
  from mgjax.setup import network

  try:
    own_network.check(
      network.model(config),
      sorted({(grid.T, grid.H, grid.W) for grid in grids}),
      num_classes=config.model.num_classes,
      trains=trains,
      estimates=config.norm.precise_batches > 0,
      averages=config.optim.ema_decay > 0,
      in_parts=config.train.micro_batches > 1,
      takes_groups=config.norm.group_clips > 0,
    )
  except ConfigError:
    raise
  except ValueError as error:
    named = {
      str((grid.T, grid.H, grid.W)): phase.name
      for phase in reversed(phases)
      for grid in phase.cycle
    }
    where = next((f'{v}: ' for k, v in named.items() if k in str(error)), '')
    raise ConfigError(
      f'{where}model.name={config.model.name!r}: {error}'
    ) from error


def warnings_of_schedule(
  config: ml_collections.ConfigDict, schedule: GridSchedule
) -> list[str]:
  """Why a schedule may not work, a line each.

  Args:
    config: See mgjax/config/fields.py.
    schedule: Its schedule.
  """
  full = grids_setup.full_grid(config)
  return schedule_warnings.find(schedule, full, optimizer=config.optim.name)
