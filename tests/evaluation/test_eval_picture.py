"""Pictures of evaluations."""

import cv2
import numpy as np
import pytest

from mgjax.evaluation import accuracy, eval_picture


def random_result(num_classes, *, multi_label=False):
  rng = np.random.default_rng(0)
  # Names that are no formulas, and that the font lacks.
  names = tuple(f'$_{{ 東 class number {k}' for k in range(num_classes))
  n = 20 * num_classes
  labels = rng.integers(0, num_classes, n)
  scores = rng.normal(size=(n, num_classes))
  scores[np.arange(n), labels] += rng.normal(3, 1, num_classes)[labels]
  scores[np.arange(n), (labels + 1) % num_classes] += 1.5
  if multi_label:
    vectors = np.eye(num_classes)[labels]
    result = accuracy.multi_label_accuracy(scores, vectors, names)
  else:
    result = accuracy.accuracy(scores, labels, names)
  return result | {'num_scored': n, 'num_videos': n}


@pytest.mark.parametrize(
  'num_classes,multi_label', [(16, False), (400, False), (157, True)]
)
def test_pictures_are_drawn(tmp_path, num_classes, multi_label):
  result = random_result(num_classes, multi_label=multi_label)
  path = tmp_path / 'eval.png'
  eval_picture.draw(path, result, title=r'run $\frac{$')
  height, width = cv2.imread(str(path)).shape[:2]
  assert (height, width) == (1000, 1700)
