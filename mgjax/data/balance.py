"""Uneven classes: weights of their clips, and an order that evens them out.

Both are functions of the labels alone, and the order of the clip's number
besides: a run resumes exactly.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from mgjax.data.order import Order


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


@dataclasses.dataclass(frozen=True)
class BalancedOrder(Order):
  """An order in which rare classes are shown more often than once per epoch.

  An epoch has as many clips as ever. Each class has a fixed number of them,
  its quota, at positions that every epoch shuffles anew. The examples of a
  class take turns in its clips, from one epoch to the next, so that each is
  shown as often as any other of the class, give or take one.

  Attributes:
    labels: Class of every example; -1: it is not known, and not shown.
    power: A class of n examples has a quota in proportion to
      n ** (1 - power): 1 shows all classes equally often; above 0.
  """

  labels: tuple[int, ...] = ()
  power: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if len(self.labels) != self.num_examples:
      raise ValueError(
        f'{len(self.labels)} labels cannot be those of {self.num_examples} '
        'examples'
      )
    if not any(label >= 0 for label in self.labels):
      raise ValueError('labels: no example has a class')

  @functools.cached_property
  def _classes(self) -> list[np.ndarray]:
    """Examples of each class that has some."""
    labels = np.array(self.labels)
    return [np.flatnonzero(labels == k) for k in np.unique(labels[labels >= 0])]

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """Quotas of these classes, added up."""
    counts = np.array([len(members) for members in self._classes])
    shares = counts ** (1.0 - self.power)
    # Added up before they are rounded: together they are the clips of an epoch.
    # A class has one at least, as the rarest gets more than its share.
    ends = np.cumsum(shares) / shares.sum() * self.num_examples
    return np.floor(ends.round(6) + 0.5).astype(np.int64)

  def example(self, clip: int | np.integer) -> int:
    epoch = int(clip) // self.clips_per_example // self.num_examples
    place = super().example(clip)  # Shuffled: in [0, N), each once per epoch.
    number = int(np.searchsorted(self._ends, place, side='right'))
    first = int(self._ends[number - 1]) if number else 0
    quota = int(self._ends[number]) - first
    members = self._classes[number]
    # After the clips that the class had in earlier epochs.
    turn, position = divmod(epoch * quota + place - first, len(members))
    # Every turn of all members has an order of its own.
    chosen = self._shuffled(position, len(members), number, turn)
    return int(members[chosen])


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
