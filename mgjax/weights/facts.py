"""What files of other programs say about fields of our config."""

from typing import Any, NamedTuple

import ml_collections


class Fact(NamedTuple):
  """What a file says about a field.

  Attributes:
    field: Of our config, such as 'model.depth'.
    value: Of that field.
    source: Where the file says so, such as 'RESNET.DEPTH'.
    origin: What says so: the 'cfg' in a file, or the 'config.json' beside it.
  """

  field: str
  value: Any
  source: str
  origin: str = 'cfg'


def apply(config: ml_collections.ConfigDict, known: list[Fact]) -> None:
  """Sets fields of a config, in place."""
  for fact in known:
    section, _, name = fact.field.rpartition('.')
    config[section][name] = fact.value
    if fact.field == 'model.depth' and 'blocks' in config.model:
      config.model.blocks = ()
