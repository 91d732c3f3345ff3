"""Sizes, batches and ranges of the grids that a schedule is made of."""

from mgjax.grids.checks import Arguments
from mgjax.grids.learning_rate import Real
from mgjax.grids.schedule import Grid


def scaled(length: int, factor: Real, multiple: int) -> int:
  """A factor of a length, rounded to a multiple, half to even."""
  return round(length * factor / multiple) * multiple


def batch_factor(full: Grid, t: int, h: Real, w: Real) -> int:
  """Returns how many times the full grid's batch costs the same at t x h x w.

  Source: section 3 of the paper: b t h w = B T H W.
  """
  return round(float(full.T * full.H * full.W) / (t * h * w))


def multiple_near(number: float, divisor: int) -> int:
  """The multiple of a divisor that is nearest to a number; at least one."""
  return max(round(number / divisor), 1) * divisor


def jitter_range(s: Arguments, height: int, width: int) -> tuple[int, int]:
  """Returns the range of resized short sides for a crop.

  The least is scaled with the crop and the greatest is kept, so a small crop
  shows anything from the full grid's view to a detail of it.

  Source: PySlowFast 287ec00, slowfast/datasets/kinetics.py.
  """
  low, high = s.jitter_px
  short_side, full_side = min(height, width), min(s.full.H, s.full.W)
  return round(float(low) * short_side / full_side), high
