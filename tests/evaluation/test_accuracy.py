"""Accuracy by hand; mAP against scikit-learn."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from mgjax.evaluation import accuracy, results

NAMES = ('a', 'b', 'c')


def test_accuracy_by_hand():
  scores = np.array([[3.0, 2, 1], [3, 2, 1], [1, 2, 3], [1, 3, 2]])
  labels = np.array([0, 1, 2, 0])
  result = accuracy.accuracy(scores, labels, NAMES)
  assert result['top1'] == 50.0
  assert result['top5'] == 100.0
  assert result['per_class'] == {'a': 50.0, 'b': 0.0, 'c': 100.0}
  assert result['confusion'] == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_the_mean_over_classes_counts_every_class_alike():
  scores = np.eye(3)[[0, 0, 0, 0, 2]]
  result = accuracy.accuracy(scores, np.array([0, 0, 0, 1, 1]), NAMES)
  assert result['top1'] == 60.0
  assert result['mean_class'] == 50.0  # 'c' has no videos.


@pytest.mark.parametrize('value', [0.0, np.nan])
def test_constant_scores_are_worth_nothing(value):
  scores = np.full((4, 3), value)
  result = accuracy.accuracy(scores, np.zeros(4, int), NAMES)
  assert result['top1'] == 0.0
  result = accuracy.multi_label_accuracy(scores, np.eye(3)[[0, 1, 2, 0]], NAMES)
  assert result['top1'] == 0.0


def test_top5_is_not_top1():
  scores = np.tile(np.arange(10.0), (10, 1))
  result = accuracy.accuracy(scores, np.arange(10), tuple('abcdefghij'))
  assert (result['top1'], result['top5']) == (10.0, 50.0)


def test_a_class_without_videos_has_no_accuracy():
  result = accuracy.accuracy(np.eye(3)[:1], np.array([0]), NAMES)
  assert result['per_class'] == {'a': 100.0, 'b': None, 'c': None}


# Any number of labels.


@pytest.mark.parametrize('num_values', [3, 1000])
def test_average_precision_is_that_of_scikit_learn(num_values):
  """Also where many scores are equal."""
  rng = np.random.default_rng(num_values)
  for share in (0.02, 0.5, 1.0):
    scores = rng.integers(0, num_values, 200) / num_values
    labels = rng.random(200) < share
    labels[7] = True
    got = accuracy.average_precision(scores, labels)
    want = sklearn_metrics.average_precision_score(labels, scores)
    assert got == pytest.approx(want, abs=1e-12)


def test_map_leaves_out_classes_without_videos():
  rng = np.random.default_rng(0)
  scores, labels = rng.random((30, 3)), rng.random((30, 3)) < 0.3
  labels[:, 1] = False
  result = accuracy.multi_label_accuracy(scores, labels.astype('f4'), NAMES)
  want = 100 * sklearn_metrics.average_precision_score(
    labels[:, [0, 2]], scores[:, [0, 2]], average='macro'
  )
  assert result['map'] == pytest.approx(want)
  assert result['per_class']['b'] is None


def test_top1_of_several_labels_by_hand():
  scores = np.array([[3.0, 2, 1], [3, 2, 1], [1, 1, 1], [3, 2, 1]])
  labels = np.array([[1.0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
  result = accuracy.multi_label_accuracy(scores, labels, NAMES)
  # A video with no label counts as missed at 1 and, of 3 classes, found at 5.
  assert result['top1'] == 25.0


def test_without_any_label_there_is_no_map():
  result = accuracy.multi_label_accuracy(np.eye(3), np.zeros((3, 3)), NAMES)
  assert 'map' not in result and result['top1'] == 0.0


def test_numbers_need_no_jax():
  program = (
    'import sys, mgjax.evaluation.accuracy; sys.exit("jax" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def test_the_best_checkpoint_is_that_by_what_the_training_is_for():
  result = {'top1': 60.0, 'mean_class': 40.0}
  assert results.score(result, evens_classes=False) == 60.0
  assert results.score(result, evens_classes=True) == 40.0
  assert results.score({**result, 'map': 20.0}, evens_classes=False) == 20.0
