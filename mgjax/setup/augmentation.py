"""From settings to what changes training clips on the device."""

from collections.abc import Callable

import ml_collections

from mgjax.step.augment import Augmentation, make_augment


def augment(config: ml_collections.ConfigDict) -> Callable | None:
  """Returns `mgjax.step.augment.make_augment` of config.augment."""
  return make_augment(
    Augmentation(**config.augment),
    # Holes have the colour that becomes 0 once data.mean is subtracted.
    fill=tuple(255 * value for value in config.data.mean),
    num_classes=config.model.num_classes,
  )
