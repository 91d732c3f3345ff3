"""Smooths the scores of windows that follow each other."""

import collections
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Smoothing = Callable[[Float[np.ndarray, ' K']], Float[np.ndarray, ' K']]


def exponential_moving_average(alpha: float) -> Smoothing:
  """Returns a function from the newest scores to their average.

  Args:
    alpha: Weight of the newest scores, in (0, 1]; the average so far has the
      rest. The first scores are the average.
  """
  average = None

  def smooth(scores: Float[np.ndarray, ' K']) -> Float[np.ndarray, ' K']:
    nonlocal average
    if average is None:
      average = scores
    average = alpha * scores + (1 - alpha) * average
    return average

  return smooth


def moving_average(count: int) -> Smoothing:
  """Returns a function from the newest scores to the mean of the last `count`.

  The first windows have the mean of those that there are.
  """
  last = collections.deque(maxlen=count)

  def smooth(scores: Float[np.ndarray, ' K']) -> Float[np.ndarray, ' K']:
    last.append(scores)
    return np.mean(last, axis=0)

  return smooth
