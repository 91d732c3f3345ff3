"""From the settings to what clips cost the network.

It imports JAX when it is called: a plan that is refused does not wait for it.
"""

from collections.abc import Collection, Sequence

import ml_collections

from mgjax.grids import Grid, Phase


def gmacs_per_clip(
  config: ml_collections.ConfigDict,
  grids: Collection[Grid],
  phases: Sequence[Phase] = (),
) -> dict[Grid, float]:
  """Returns 1e9 multiply-adds of one clip's forward pass for each grid.

  Args:
    config: See mgjax/config/fields.py; only the model is read.
    grids: Any.
    phases: Where the grids come from, for the message of an error.

  Raises:
    ConfigError: If the model cannot be built, or a grid is too small for it.
      The message names the first phase that has the grid.
  """
  from mgjax.planning import macs
  from mgjax.setup import network

  return macs.gmacs_per_clip(network.model(config), grids, phases)
