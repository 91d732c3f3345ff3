"""From settings to what changes training clips on the device."""

import dataclasses
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from mgjax.grids import GridSchedule
from mgjax.hosts import parallel
from mgjax.step.augment import Augmentation, make_augment


def augment(
  config: ml_collections.ConfigDict, schedule: GridSchedule | None = None
) -> Callable | None:
  """Returns `mgjax.step.augment.make_augment` of config.augment.

  Args:
    config: The settings.
    schedule: Its phases may have strengths of their own; None: they do not.
  """
  options = Augmentation(**config.augment)
  greatest = {
    name: max(
      dict(phase.augment).get(name, config.augment[name])
      for phase in schedule.phases
    )
    for name in (schedule.strengths if schedule else ())
  }
  return make_augment(
    # The greatest: what is on in one phase is on in the program of all.
    dataclasses.replace(options, **greatest),
    # Holes have the colour that becomes 0 once data.mean is subtracted.
    fill=tuple(255 * value for value in config.data.mean),
    num_classes=config.model.num_classes,
    clips_per_video=config.data.samples_per_video,
  )


def put_strengths(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  mesh: jax.sharding.Mesh,
  step: int,
) -> dict[str, jax.Array]:
  """Moves the strengths of a step to the devices: those that some phase sets.

  Returns:
    float32 [] by name; {} where no phase has strengths of its own.
  """
  own = dict(schedule.phase(step).augment)
  values = {
    name: np.float32(own.get(name, config.augment[name]))
    for name in schedule.strengths
  }
  return parallel.put_replicated(mesh, values) if values else {}
