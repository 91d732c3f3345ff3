"""Tests of mgjax/data/eval_stream.py."""

import collections

import numpy as np
import pytest

from mgjax.cli import ConfigError
from mgjax.setup import data as data_setup
from tests.data.fake_sources import Acted, Damaged, Few


@pytest.mark.parametrize('batch_size', [1, 7, 64, 100])
def test_evaluation_shows_every_view_once_whatever_the_batch_size(
  tiny_config, batch_size
):
  tiny_config.eval.num_views = 2
  tiny_config.eval.num_crops = 3
  validation = data_setup.source(tiny_config, 'validation')
  few = Few(validation, 5)
  views = data_setup.eval_stream(tiny_config, few, batch_size=batch_size)
  seen = collections.Counter()
  pixels = []
  for batch in views.batches():
    assert batch['video'].shape == (batch_size, 8, 32, 32, 3)
    for i, weight in enumerate(batch['weight']):
      seen[int(batch['index'][i])] += int(weight)
      if weight:
        pixels.append(batch['video'][i])
  assert seen == {i: 6 for i in range(5)}
  alone = data_setup.eval_stream(tiny_config, few, batch_size=1)
  for i in (0, 11, 29):
    np.testing.assert_array_equal(alone.batch(i)['video'][0], pixels[i])


def test_evaluation_reports_bad_videos_and_does_not_replace_them(tiny_config):
  validation = data_setup.source(tiny_config, 'validation')
  views = data_setup.eval_stream(
    tiny_config, Damaged(Few(validation, 4), {2}), batch_size=4
  )
  batch = views.batch(0)
  assert batch['weight'].tolist() == [1, 1, 0, 1]
  ((name, reason),) = batch['failed']
  assert name == validation[2].id and reason
  assert batch['lost'].tolist() == [False, False, True, False]


@pytest.mark.parametrize('num_crops', [5, 10])
def test_corner_crops_cut_the_resized_frames(tiny_config, num_crops):
  tiny_config.data.flip = True
  tiny_config.eval.num_crops = num_crops
  tiny_config.eval.short_side_px = 40
  few = Few(data_setup.source(tiny_config, 'validation'), 1)
  views = data_setup.eval_stream(tiny_config, few, batch_size=num_crops)
  clips = views.batch(0)['video']
  tiny_config.eval.update({'num_crops': 1, 'crop_px': 40})
  views = data_setup.eval_stream(tiny_config, few, batch_size=1)
  whole = views.batch(0)['video'][0]
  corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
  for i, clip in enumerate(clips):
    y, x = corners[i % 5]
    want = whole[:, y : y + 32, x : x + 32]
    np.testing.assert_array_equal(clip, want[:, :, ::-1] if i >= 5 else want)


def test_mirrored_crops_are_refused_where_labels_have_a_direction(tiny_config):
  tiny_config.eval.num_crops = 10
  source = data_setup.source(tiny_config, 'validation')
  with pytest.raises(ConfigError, match='data.flip=False'):
    data_setup.eval_stream(tiny_config, source, batch_size=1)


def test_videos_with_actions_have_vectors_of_labels(tiny_config):
  validation = Acted(data_setup.source(tiny_config, 'validation'))
  views = data_setup.eval_stream(tiny_config, validation, batch_size=4).batch(0)
  true = [validation.source[i].label for i in range(4)]
  assert (views['label'].sum(1) == [1 if t == 0 else 2 for t in true]).all()
  assert views['label'][np.arange(4), true].all()
