"""Accuracy by hand."""

import numpy as np

from mgjax import evaluate

NAMES = ('a', 'b', 'c')


def test_accuracy_by_hand():
  scores = np.array([[3.0, 2, 1], [3, 2, 1], [1, 2, 3], [1, 3, 2]])
  labels = np.array([0, 1, 2, 0])
  result = evaluate.accuracy(scores, labels, NAMES)
  assert result['top1'] == 50.0
  assert result['top5'] == 100.0
  assert result['per_class'] == {'a': 50.0, 'b': 0.0, 'c': 100.0}
  assert result['confusion'] == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_constant_scores_are_worth_nothing():
  result = evaluate.accuracy(np.zeros((4, 3)), np.zeros(4, int), NAMES)
  assert result['top1'] == 0.0


def test_top5_is_not_top1():
  scores = np.tile(np.arange(10.0), (10, 1))
  result = evaluate.accuracy(scores, np.arange(10), tuple('abcdefghij'))
  assert (result['top1'], result['top5']) == (10.0, 50.0)


def test_a_class_without_videos_has_no_accuracy():
  result = evaluate.accuracy(np.eye(3)[:1], np.array([0]), NAMES)
  assert result['per_class'] == {'a': 100.0, 'b': None, 'c': None}
