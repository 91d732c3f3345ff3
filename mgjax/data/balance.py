"""Uneven classes: what their clips count, and how to make some."""

import numpy as np
from jaxtyping import Float, Int


def class_weights(
  labels: Int[np.ndarray, ' N'], num_classes: int, power: float
) -> Float[np.ndarray, ' K']:
  """How much a clip of each class counts in the loss.

  Args:
    labels: Class of every training video; -1: it is not known.
    num_classes: K.
    power: A class of n videos gets a weight in proportion to n ** -power; 0:
      all the same.

  Returns:
    float32 [K], with a mean of 1 over the videos; a class without any gets 0.
  """
  counts = np.bincount(labels[labels >= 0], minlength=num_classes)
  weights = np.where(counts, np.maximum(counts, 1.0) ** -power, 0.0)
  return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def long_tail(
  num_examples: int,
  num_classes: int,
  imbalance: float,
  rng: np.random.Generator,
) -> Int[np.ndarray, ' N']:
  """Draws labels whose numbers fall as a geometric series, for experiments.

  Args:
    num_examples: N.
    num_classes: K.
    imbalance: Examples of the most frequent class for one of the rarest.
    rng: Draws which class is how frequent, and the order.
  """
  shares = imbalance ** -np.linspace(0, 1, num_classes)
  ends = np.rint(np.cumsum(shares) / shares.sum() * num_examples)
  ranks = np.searchsorted(ends, np.arange(num_examples), side='right')
  return rng.permutation(rng.permutation(num_classes)[ranks])
