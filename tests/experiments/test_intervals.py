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


@pytest.mark.parametrize(
  'call,message',
  [
    (lambda: intervals.of_mean([1.0]), 'needs two values, and there is 1'),
    (
      lambda: intervals.of_paired_difference([1, 2], [1]),
      'there are 2 and 1',
    ),
    (lambda: intervals.of_paired_ratio([1, 0], [1, 1]), 'values above 0'),
  ],
)
def test_values_that_have_no_interval_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
