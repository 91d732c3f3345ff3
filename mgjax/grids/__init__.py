"""The grid of every step: schedules and what makes them.

`make_schedule` makes a schedule from numbers: for this package's trainer or for
a training loop of your own. Plain Python, without JAX, models and data sets.
"""

from mgjax.grids.make import MODES, make_schedule
from mgjax.grids.schedule import Grid, GridSchedule, Phase

__all__ = ['MODES', 'Grid', 'GridSchedule', 'Phase', 'make_schedule']
