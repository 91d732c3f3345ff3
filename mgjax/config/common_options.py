"""The options that every network has."""

import dataclasses
from typing import Any, ClassVar

from mgjax.config.setting import at_least, one_of, optional, setting, within


@dataclasses.dataclass(kw_only=True)
class NetworkOptions:
  """What config.model has of every network, also of one of the user's own.

  Attributes:
    has_batch_norm: Whether there is anything that config.norm is about.
    has_class_maps: Whether the classifier sees an average of positions, so
      that each has a share of a logit.
  """

  has_batch_norm: ClassVar[bool] = True
  has_class_maps: ClassVar[bool] = True

  # K, the number of logits; None: the classes of the data set.
  num_classes: int | None = setting(None, optional(at_least(2)))
  # Rate of the dropout before the classifier, in training.
  dropout: float = setting(0.5, within('[0, 1)'))
  # Compute type. Parameters, statistics and logits are float32.
  dtype: Any = setting('float32', one_of('float32', 'bfloat16'))
