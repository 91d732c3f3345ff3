"""What a difference between trainings is worth: intervals, verdicts, pairs.

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
  return _around(float(sample.mean()), error, len(sample) - 1, level)


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


def of_unpaired_difference(
  ours: Sequence[float], theirs: Sequence[float], level: float = 0.95
) -> Interval:
  """The mean of `ours` minus that of `theirs`, where no seed is shared.

  Args:
    ours: At least two values.
    theirs: At least two values, any number.
    level: Of confidence, between 0 and 1.

  Raises:
    ValueError: One of them has fewer than two values.

  Source: Welch 1947, "The generalization of Student's problem when several
    different population variances are involved": variances may differ.
  """
  samples = [np.asarray(values, float) for values in (ours, theirs)]
  if min(map(len, samples)) < 2:
    raise ValueError('An interval needs two values of each.')
  squares = [sample.var(ddof=1) / len(sample) for sample in samples]
  difference = float(samples[0].mean() - samples[1].mean())
  if not sum(squares):
    return Interval(difference, difference, difference)
  freedom = sum(squares) ** 2 / sum(
    square**2 / (len(sample) - 1)
    for square, sample in zip(squares, samples, strict=True)
  )
  return _around(difference, math.sqrt(sum(squares)), freedom, level)


class Verdict(NamedTuple):
  """Whether one training is not worse than another by more than a margin.

  Attributes:
    holds: It is not, at the level that was asked for.
    low: Bound of the difference that it is above, one-sided.
    p: Probability of a difference at least as good where it is worse by
      exactly the margin.
  """

  holds: bool
  low: float
  p: float


def non_inferiority(
  ours: Sequence[float],
  theirs: Sequence[float],
  margin: float,
  level: float = 0.95,
) -> Verdict:
  """Whether `ours` are not worse than `theirs` by `margin` (one-sided t test).

  Args:
    ours: One value of each seed, at least two; more is better.
    theirs: Those of the same seeds in the same order.
    margin: That they may be worse by, at least 0, in the values' unit.
    level: Of confidence, between 0 and 1.

  Raises:
    ValueError: The margin is below 0, there are fewer than two pairs, or values
      without a pair.
  """
  if margin < 0:
    raise ValueError(f'A margin is at least 0, and this is {margin}.')
  # The lower end of a two-sided interval at 90 % is one-sided at 95 %.
  mean, low, _ = of_paired_difference(ours, theirs, 2 * level - 1)
  differences = np.subtract(*_pairs(ours, theirs))
  error = differences.std(ddof=1) / math.sqrt(len(differences))
  if error:
    p = float(stats.t.sf((mean + margin) / error, len(differences) - 1))
  else:
    p = float(mean <= -margin)
  return Verdict(low > -margin, low, p)


def num_pairs(
  margin: float, deviation: float, power: float = 0.8, level: float = 0.95
) -> int:
  """Pairs with which `non_inferiority` holds, where the true means are equal.

  Args:
    margin: Above 0, in the unit of the values.
    deviation: Standard deviation of the differences of pairs, at least 0.
    power: Probability that it holds, at least, between 0 and 1.
    level: Of confidence, between 0 and 1.

  Returns:
    The smallest number, at least two.

  Raises:
    ValueError: The margin is not above 0, or the deviation is below 0.
  """
  if margin <= 0 or deviation < 0:
    raise ValueError(
      f'A margin is above 0 and a deviation at least 0, and these are {margin} '
      f'and {deviation}.'
    )
  pairs = 2
  while deviation:
    # Exactly: the statistic of the test has a noncentral t distribution.
    critical = stats.t.ppf(level, pairs - 1)
    shift = math.sqrt(pairs) * margin / deviation
    if stats.nct.sf(critical, pairs - 1, shift) >= power:
      break
    pairs += 1
  return pairs


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


def _around(
  estimate: float, error: float, freedom: float, level: float
) -> Interval:
  """Student's interval.

  Args:
    estimate: Its centre.
    error: Standard error of that.
    freedom: Degrees of freedom.
    level: Of confidence.
  """
  half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
  return Interval(estimate, estimate - half, estimate + half)
