"""A position's share of a logit, and the pictures that show it."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.predicting import class_maps, contact_sheet
from mgjax.step import train_step

# Compiling takes longer than all else here.
fast = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


@pytest.mark.parametrize(
  'name,options',
  [
    ('slowfast', {'alpha': 4, 'beta_inv': 2}),
    ('blvnet_tam', {}),
  ],
)
def test_the_mean_of_the_heat_is_the_logit_without_its_bias(name, options):
  model = models.build(
    name,
    num_classes=5,
    dropout=0.5,
    dtype='float32',
    width=8,
    blocks=(1, 1),
    **options,
  )
  rng = np.random.default_rng(0)
  video = rng.integers(0, 255, (3, 8, 32, 32, 3), np.uint8)
  pixels = {'mean': (0.45,) * 3, 'std': (0.225,) * 3}
  clip = train_step.normalize(jnp.asarray(video), **pixels)
  variables = fast(model.init)(jax.random.key(0), clip)
  label = np.array([0, 3, 4], np.int32)
  step = class_maps.make_feature_step(model, **pixels)
  got = fast(step)(variables['params'], variables['batch_stats'], video, label)
  logits = np.asarray(fast(model.apply)(variables, clip))
  classifier = variables['params'][models.HEAD]['classifier']
  # float32 sums over some hundred terms.
  np.testing.assert_allclose(
    got.heat.mean((1, 2, 3)) + classifier['bias'][label],
    logits[np.arange(3), label],
    atol=1e-5,
    rtol=1e-4,
  )
  np.testing.assert_allclose(
    got.pooled @ classifier['kernel'] + classifier['bias'],
    logits,
    atol=1e-5,
    rtol=1e-4,
  )


def test_the_hottest_place_is_red_and_cold_ones_are_blue():
  clip = np.full((4, 32, 32, 3), 100, np.uint8)
  heat = np.zeros((2, 4, 4), np.float32)
  heat[1, 0, 3] = 5.0
  heat[0, 2, 2] = -5.0  # Speaks against the class: not shown.
  shown = contact_sheet.overlay(clip, heat)
  red, _, blue = np.moveaxis(shown.astype(int), -1, 0)
  # The clip's own grey makes up 55 of each.
  assert red[2, 1, 30] > 100 > 60 > blue[2, 1, 30]
  assert (blue[:2] > red[:2]).all() and (blue[2:, 31, 0] > 100).all()


def test_a_picture_has_a_row_of_frames_for_each_clip(tmp_path):
  clips = [np.full((20, 20, 40, 3), v, np.uint8) for v in (0, 200)]
  path = tmp_path / 'sheet.png'
  contact_sheet.draw(path, clips, 'a $title', [('$1 and $2', 0.75)])
  picture = cv2.imread(str(path))
  # Eight of the twenty frames, 128 x 64 with a line around each.
  assert picture.shape == (40 + 2 * 66, 8 * 130 + 340, 3)
  assert (picture[45:100, 5:125] == 0).all()
  assert (picture[45 + 66 : 100 + 66, 5:125] == 200).all()
