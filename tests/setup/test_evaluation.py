"""The head of an evaluation; what its unfinished scores depend on."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.config import fields
from mgjax.errors import ConfigError
from mgjax.setup import data as data_setup
from mgjax.setup import evaluation, network
from mgjax.step import eval_step
from mgjax.step.train_state import TrainState
from tests.data.fake_sources import Few


def small_config(head):
  config = fields.base()
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

  dtype: Any = jnp.float32

  def __call__(self, video, same_group=None, *, window=None):
    return nn.avg_pool(video, window) if window else video.mean((1, 2, 3))


def test_the_heads_score_as_their_names_say():
  video = np.random.default_rng(0).integers(
    0, 256, (2, 2, 10, 9, 3), dtype=np.uint8
  )
  scores = {}
  for head in ('global', 'fully_conv'):
    step = eval_step.make_eval_step(
      ColourClassifier(),
      mean=(0.0, 0.0, 0.0),
      std=(0.01, 0.01, 0.01),  # Windows differ in what they take for likely.
      window=evaluation.head_window(small_config(head), ColourClassifier()),
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
    evaluation.head_window(config, network.model(config))


def test_a_model_without_a_fully_convolutional_head_is_refused():
  with pytest.raises(ConfigError, match="'slow' has no such head"):
    evaluation.head_window(small_config('fully_conv'), nn.Dense(3))


def test_the_key_of_an_evaluation_knows_its_views_weights_and_videos(
  tiny_config,
):
  config = tiny_config
  source = Few(data_setup.source(config, 'validation'), 5)
  source.manifest_sha256 = 'abc'
  source.name, source.split = 'digits', 'validation'
  state = TrainState(
    step=3, params={'w': np.ones(3)}, batch_stats={}, opt_state=(), ema={}
  )
  key = evaluation.partial_key(config, state, source)
  assert key == evaluation.partial_key(config, state, source)
  config.data.num_workers += 1
  assert key == evaluation.partial_key(config, state, source)
  weights = state.replace(params={'w': np.array([1, 1, 1.5])})
  assert key != evaluation.partial_key(config, weights, source)
  config.eval.num_views = 2
  assert key != evaluation.partial_key(config, state, source)
