"""Intervals are those of SciPy's tests and of tables of Student's t."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments import intervals

OURS = (96.1, 97.0, 95.2, 96.6)
THEIRS = (96.9, 97.3, 96.4, 96.8)


def test_the_interval_of_a_mean_by_hand():
  # Variance 8 / 3 of four values; Student's t of three degrees of freedom.
  half = 3.182446 * math.sqrt(8 / 3 / 4)
  found = intervals.of_mean([8.0, 10.0, 12.0, 10.0])
  assert found == pytest.approx((10.0, 10.0 - half, 10.0 + half), abs=1e-5)


def test_a_paired_difference_is_that_of_the_paired_t_test():
  found = intervals.of_paired_difference(OURS, THEIRS)
  test = stats.ttest_rel(OURS, THEIRS)
  expected = test.confidence_interval(0.95)
  assert found.estimate == pytest.approx(np.mean(OURS) - np.mean(THEIRS))
  assert found[1:] == pytest.approx((expected.low, expected.high))


def test_pairs_are_worth_more_than_the_same_values_without():
  paired = intervals.of_paired_difference(OURS, THEIRS)
  unpaired = intervals.of_unpaired_difference(OURS, THEIRS)
  assert paired.estimate == pytest.approx(unpaired.estimate)
  assert paired.high - paired.low < unpaired.high - unpaired.low


def test_an_unpaired_difference_is_welchs():
  theirs = (*THEIRS, 93.0)
  found = intervals.of_unpaired_difference(OURS, theirs)
  test = stats.ttest_ind(OURS, theirs, equal_var=False)
  expected = test.confidence_interval(0.95)
  assert found[1:] == pytest.approx((expected.low, expected.high))
  assert intervals.of_unpaired_difference((2, 2), (1, 1)) == (1, 1, 1)


def test_a_ratio_is_the_same_in_any_unit_and_inverts():
  seconds, shorter = (400.0, 440.0, 420.0), (200.0, 210.0, 190.0)
  found = intervals.of_paired_ratio(seconds, shorter)
  logs = np.log(seconds) - np.log(shorter)
  half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)  # t of two degrees.
  mean = logs.mean()
  assert found == pytest.approx(np.exp([mean, mean - half, mean + half]))
  hours = [s / 3600 for s in seconds], [s / 3600 for s in shorter]
  assert intervals.of_paired_ratio(*hours) == pytest.approx(found)
  inverse = intervals.of_paired_ratio(shorter, seconds)
  assert inverse == pytest.approx((1 / found[0], 1 / found[2], 1 / found[1]))


@pytest.mark.parametrize('margin', [0.2, 0.5, 1.0, 1.5])
def test_non_inferiority_is_a_one_sided_t_test_against_the_margin(margin):
  found = intervals.non_inferiority(OURS, THEIRS, margin)
  moved = np.subtract(OURS, THEIRS) + margin
  test = stats.ttest_1samp(moved, 0, alternative='greater')
  assert found.p == pytest.approx(test.pvalue)
  assert found.holds == (test.pvalue < 0.05)
  low = test.confidence_interval(0.95).low - margin
  assert found.low == pytest.approx(low)


def test_pairs_without_any_deviation_decide_by_their_difference():
  assert intervals.non_inferiority((1, 2), (1.4, 2.4), 0.5) == (
    True,
    pytest.approx(-0.4),
    0.0,
  )
  for theirs in ((2, 3), (1.5, 2.5)):  # The margin itself is too much.
    found = intervals.non_inferiority((1, 2), theirs, 0.5)
    assert found == (False, 1 - theirs[0], 1.0)


@pytest.mark.parametrize(
  'margin,deviation', [(0.5, 0.55 * 2**0.5), (1.0, 0.55 * 2**0.5), (0.5, 0.3)]
)
def test_the_number_of_pairs_has_the_power_and_one_less_has_not(
  margin, deviation
):
  """By drawing trainings; the power has a deviation of 0.002."""

  def power(pairs):
    draws = np.random.default_rng(0).normal(0, deviation, (40_000, pairs))
    test = stats.ttest_1samp(draws + margin, 0, axis=1, alternative='greater')
    return (test.pvalue < 0.05).mean()

  pairs = intervals.num_pairs(margin, deviation)
  assert power(pairs) > 0.8 - 0.008
  assert power(pairs - 1) < 0.8 + 0.008


def test_many_pairs_are_the_normal_distributions_number():
  # (1.64485 + 0.84162)² = 6.18256 squared deviations over squared margins.
  assert intervals.num_pairs(0.1, 2.0) == pytest.approx(
    6.18256 * 20**2, abs=2.5
  )
  assert intervals.num_pairs(0.5, 0.0) == 2


@pytest.mark.parametrize(
  'call,message',
  [
    (lambda: intervals.of_mean([1.0]), 'needs two values, and there is 1'),
    (
      lambda: intervals.of_paired_difference([1, 2], [1]),
      'there are 2 and 1',
    ),
    (lambda: intervals.of_paired_ratio([1, 0], [1, 1]), 'values above 0'),
    (
      lambda: intervals.of_unpaired_difference([1, 2], [1]),
      'two values of each',
    ),
    (
      lambda: intervals.non_inferiority([1, 2], [1, 2], -0.5),
      'at least 0, and this is -0.5',
    ),
    (lambda: intervals.num_pairs(0.0, 1.0), 'above 0'),
  ],
)
def test_values_that_have_no_interval_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
