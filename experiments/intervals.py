"""What a difference between trainings is worth: intervals over seeds.

Runs of one seed are a pair: they begin at the same weights and see videos in
the same order, so that part of what the seed does to both cancels. Every
interval is two-sided and at 95 % unless an argument says another level; what
the values are means of is taken to be normally distributed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
  """An estimate and the interval around it, in the unit of its values."""

  estimate: float
  low: float
  high: float


def of_mean(values: Sequence[float], level: float = 0.95) -> Interval:
  """The mean of values of several seeds (Student's t).

  Args:
    values: One of each seed, at least two.
    level: Of confidence, between 0 and 1.

  Raises:
    ValueError: There are fewer than two values.
  """
  sample = np.asarray(values, float)
  if len(sample) < 2:
    raise ValueError(
      f'An interval needs two values, and there is {len(sample)}.'
    )
  error = sample.std(ddof=1) / math.sqrt(len(sample))
  half = float(stats.t.ppf((1 + level) / 2, len(sample) - 1) * error)
  mean = float(sample.mean())
  return Interval(mean, mean - half, mean + half)


def of_paired_difference(
  ours: Sequence[float], theirs: Sequence[float], level: float = 0.95
) -> Interval:
  """The mean of `ours` minus `theirs`, seed by seed (Student's t).

  Args:
    ours: One value of each seed, at least two.
    theirs: Those of the same seeds in the same order.
    level: Of confidence, between 0 and 1.

  Raises:
    ValueError: There are fewer than two pairs, or values without a pair.
  """
  return of_mean(np.subtract(*_pairs(ours, theirs)), level)


def of_paired_ratio(
  ours: Sequence[float], theirs: Sequence[float], level: float = 0.95
) -> Interval:
  """How many times `ours` are `theirs`: the exponential of the mean log ratio.

  For seconds: `of_paired_ratio(baseline_s, multigrid_s)` is a speed-up.

  Args:
    ours: One value above 0 of each seed, at least two.
    theirs: Those of the same seeds in the same order.
    level: Of confidence, between 0 and 1.

  Raises:
    ValueError: There are fewer than two pairs, values without a pair, or some
      that are not above 0.
  """
  pairs = _pairs(ours, theirs)
  if not (np.concatenate(pairs) > 0).all():
    raise ValueError(f'Ratios need values above 0: {ours}, {theirs}.')
  found = of_mean(np.subtract(*np.log(pairs)), level)
  return Interval(*map(math.exp, found))


def _pairs(
  ours: Sequence[float], theirs: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Both as arrays.

  Raises:
    ValueError: One has more than the other.
  """
  if len(ours) != len(theirs):
    raise ValueError(
      f'Pairs need as many values of each, and there are {len(ours)} and '
      f'{len(theirs)}.'
    )
  return np.asarray(ours, float), np.asarray(theirs, float)
