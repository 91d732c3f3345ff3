"""Accuracy by hand; the two heads."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import default
from mgjax import evaluate, models, train_step
from mgjax.cli import ConfigError

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


# Heads.


def small_config(head):
  config = default.base()
  config.model.name = 'slow'
  config.model.blocks = (1,)  # One position is 4 x 4 pixels.
  config.model.width = 8
  config.model.num_classes = 3
  config.data.num_frames = 2
  config.data.crop_px = 8
  config.eval.crop_px = 12
  config.eval.head = head
  return config


class ColourClassifier(nn.Module):
  """Its logits are the mean colour, of the clip or of windows of it."""

  def __call__(self, video, pool=None, *, window=None):
    return nn.avg_pool(video, window) if window else video.mean((1, 2, 3))


def test_the_heads_score_as_their_names_say():
  video = np.random.default_rng(0).integers(
    0, 256, (2, 2, 10, 9, 3), dtype=np.uint8
  )
  scores = {}
  for head in ('global', 'fully_conv'):
    step = train_step.make_eval_step(
      ColourClassifier(),
      mean=(0.0, 0.0, 0.0),
      std=(0.01, 0.01, 0.01),  # Windows differ in what they take for likely.
      window=evaluate.head_window(small_config(head), ColourClassifier()),
    )
    scores[head] = jax.jit(step)({}, {}, video)

  def softmax(logits):
    exp = np.exp(logits)
    return exp / exp.sum(-1, keepdims=True)

  colours = video / 255 / 0.01
  windows = [  # 8 x 8 pixels.
    colours[:, :, i : i + 8, j : j + 8].mean((1, 2, 3))
    for i in range(3)
    for j in range(2)
  ]
  # float32.
  np.testing.assert_allclose(
    scores['fully_conv'], np.mean([softmax(w) for w in windows], 0), rtol=1e-4
  )
  np.testing.assert_allclose(
    scores['global'], softmax(colours.mean((1, 2, 3))), rtol=1e-4
  )
  assert np.abs(scores['global'] - scores['fully_conv']).max() > 1e-3


def test_a_fully_convolutional_head_on_a_smaller_crop_is_refused():
  config = small_config('fully_conv')
  config.eval.crop_px = 4
  with pytest.raises(ConfigError, match=r'\(4, 4\).*smaller.*\(8, 8\)'):
    evaluate.head_window(config, models.from_config(config.model, config.norm))


def test_a_model_without_a_fully_convolutional_head_is_refused():
  with pytest.raises(ConfigError, match="'slow' has no such head"):
    evaluate.head_window(small_config('fully_conv'), nn.Dense(3))
