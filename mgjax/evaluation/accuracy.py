"""Accuracy of scores: top-1, top-5, by class, average precision."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped


def accuracy(
  scores: Float[np.ndarray, 'N K'],
  labels: Int[np.ndarray, ' N'],
  names: Sequence[str],
) -> dict:
  """Top-1, top-5, accuracy by class and the confusion matrix.

  Args:
    scores: Of N videos, at least one.
    labels: The true class of each.
    names: K label names.

  Returns:
    'top1' and 'top5' in percent; 'per_class' (None for a class without
    videos), 'mean_class', the mean over the classes with videos, and
    'confusion' [K][K], videos of true class i taken for j.
  """
  num_classes = len(names)
  rank = ranks(scores, labels)
  confusion = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(confusion, (labels, scores.argmax(1)), 1)
  per_class = {
    name: 100 * float((rank[labels == k] < 1).mean())
    if (labels == k).any()
    else None
    for k, name in enumerate(names)
  }
  return {
    **_top_k(rank),
    'mean_class': float(np.mean(_known(per_class))),
    'per_class': per_class,
    'confusion': confusion.tolist(),
  }


def ranks(
  scores: Float[np.ndarray, 'N K'], labels: Int[np.ndarray, ' N']
) -> Int[np.ndarray, ' N']:
  """How many classes score no less than the true one: 0 is correct.

  A tie counts against the true class, so that constant scores are worth
  nothing, and so does NaN.

  Args:
    scores: Of N videos.
    labels: The true class of each.
  """
  true = np.take_along_axis(scores, labels[:, None], 1)
  others = np.arange(scores.shape[1])[None] != labels[:, None]
  return (~(scores < true) & others).sum(1)


def _top_k(rank: np.ndarray) -> dict[str, float]:
  """Percent of the videos that rank (int [N]) below 1 and 5."""
  return {f'top{k}': 100 * float((rank < k).mean()) for k in (1, 5)}


def multi_label_accuracy(
  scores: Float[np.ndarray, 'N K'],
  labels: Float[np.ndarray, 'N K'],
  names: Sequence[str],
) -> dict:
  """Mean average precision, where videos have any number of labels.

  Args:
    scores: Of N videos, at least one.
    labels: 1 for every label of a video.
    names: K label names.

  Returns:
    'map', mean average precision over the classes with videos (not there where
    no class has any), 'per_class', average precision by class (None for a class
    without videos), 'top1' and 'top5': videos one of whose labels is the
    likeliest class, or one of the five likeliest; a tie counts against them.
    All in percent.

  Source: SlowFast 287ec00, utils/meters.py get_map.
  """
  per_class = {
    name: 100 * average_precision(scores[:, k], labels[:, k])
    if labels[:, k].any()
    else None
    for k, name in enumerate(names)
  }
  # Of a video's labels the likeliest decides; others at its score are in front.
  best = np.where(labels > 0, scores, -np.inf).max(1, keepdims=True)
  rank = (~(scores < best) & (labels == 0)).sum(1)
  known = _known(per_class)
  return {
    **({'map': float(np.mean(known))} if known else {}),
    **_top_k(rank),
    'per_class': per_class,
  }


def average_precision(
  scores: Float[np.ndarray, ' N'], labels: Shaped[np.ndarray, ' N']
) -> float:
  """Precision at the score of each positive, averaged over the positives.

  Args:
    scores: The higher, the likelier is a positive.
    labels: Positive for the positives, of which there is at least one.

  Returns:
    A number in (0, 1], that of sklearn.metrics.average_precision_score.
  """
  order = np.argsort(-scores, kind='stable')
  scores, positive = scores[order], labels[order] > 0
  # Videos with equal scores are found together: the last of them counts.
  last = np.append(scores[1:] != scores[:-1], True)
  found = positive.cumsum()[last]
  precision = found / (np.flatnonzero(last) + 1)
  return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def _known(per_class: dict) -> list[float]:
  """The values that are not None."""
  return [value for value in per_class.values() if value is not None]
