"""Pictures of evaluations."""

import cv2
import numpy as np
import pytest
from matplotlib import figure

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


def texts_of(axis):
  return {(*map(int, t.get_position()), t.get_text()) for t in axis.texts}


def test_cells_have_their_videos_and_lines_between_them():
  result = accuracy.accuracy(
    np.eye(3)[[0, 0, 1, 1, 1, 2]], np.array([0, 0, 0, 1, 1, 2]), ('a', 'b', 'c')
  )
  axis = figure.Figure().subplots()
  eval_picture.draw_confusion(axis, result)
  # Column, row: what it was taken for, and what it is.
  assert texts_of(axis) == {(0, 0, '2'), (1, 0, '1'), (1, 1, '2'), (2, 2, '1')}
  assert axis.get_xticks(minor=True).tolist() == [-0.5, 0.5, 1.5, 2.5]
  axis = figure.Figure().subplots()
  eval_picture.draw_confusion(axis, random_result(21))
  assert not texts_of(axis)  # There is no room.


def test_classes_name_how_many_videos_they_have():
  result = accuracy.accuracy(
    np.eye(2)[[0, 1, 1]], np.array([0, 0, 1]), ('few', 'one')
  )
  axis = figure.Figure().subplots()
  eval_picture.draw_classes(axis, result)
  labels = [label.get_text() for label in axis.get_xticklabels()]
  assert labels == ['one (1)', 'few (2)']
  axis = figure.Figure().subplots()
  eval_picture.draw_classes(axis, random_result(3, multi_label=True))
  assert '(' not in axis.get_xticklabels()[0].get_text()
