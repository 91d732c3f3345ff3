"""Frame indices, sizes and crops against the reference and by hand."""

import json
import pathlib
import re

import numpy as np
import pytest

from mgjax.data import sampling

# Made by running PySlowFast 287ec00.
GOLDEN = json.loads(
  (
    pathlib.Path(__file__).parents[1]
    / 'golden'
    / 'ops'
    / 'sampling_and_views.json'
  ).read_text()
)


def numbers(name: str) -> list[int]:
  return [int(n) for n in re.findall(r'\d+', name)]


@pytest.mark.parametrize('name', GOLDEN['kinetics_test_clips'])
def test_kinetics_views_equal_the_reference(name):
  num_source, num_frames, stride, num_views = numbers(name)
  clips = GOLDEN['kinetics_test_clips'][name]
  assert len(clips) == num_views
  for clip in clips:
    frames = sampling.view_frames(
      num_source,
      30.0,
      num_frames=num_frames,
      stride_frames=stride,
      sampling='dense',
      target_fps=30.0,
      view=clip['clip'],
      num_views=num_views,
    )
    assert frames.tolist() == clip['frames']


@pytest.mark.parametrize('name', GOLDEN['ssv2_eval_frames'])
def test_segment_centres_equal_the_reference(name):
  num_source, num_frames = numbers(name)
  frames = sampling.view_frames(
    num_source,
    12.0,
    num_frames=num_frames,
    stride_frames=1,
    sampling='segments',
    target_fps=30.0,
    view=0,
    num_views=1,
  )
  assert frames.tolist() == GOLDEN['ssv2_eval_frames'][name]


@pytest.mark.parametrize('name', GOLDEN['ssv2_train_segment_ranges'])
def test_training_segments_equal_the_reference(name):
  num_source, num_frames = numbers(name)
  bounds = sampling.segment_bounds(num_source, num_frames)
  assert bounds.tolist() == GOLDEN['ssv2_train_segment_ranges'][name]


@pytest.mark.parametrize('name', GOLDEN['charades_test_frames'])
def test_charades_views_equal_the_reference(name):
  num_source, view = numbers(name)
  frames = sampling.view_frames(
    num_source,
    24.0,
    num_frames=64,
    stride_frames=2,
    sampling='dense',
    target_fps=0.0,
    view=view,
    num_views=10,
  )
  assert frames.tolist() == GOLDEN['charades_test_frames'][name]


@pytest.mark.parametrize('name', GOLDEN['uniform_crop'])
def test_crop_offsets_equal_the_reference(name):
  height, width, size, crop = numbers(name)
  offsets = sampling.crop_offsets(
    height, width, crop_hw=(size, size), crop=crop
  )
  assert list(offsets) == GOLDEN['uniform_crop'][name]


@pytest.mark.parametrize('name', GOLDEN['short_side_resize'])
def test_resized_sizes_equal_the_reference(name):
  height, width, short = numbers(name)
  size = sampling.resized_hw(height, width, short_px=short)
  assert list(size) == GOLDEN['short_side_resize'][name]


def train_frames(uniforms, **changes):
  arguments = {
    'num_frames': 4,
    'stride_frames': (2, 8),
    'sampling': 'dense',
    'target_fps': 0.0,
    **changes,
  }
  return sampling.train_frames(
    changes.pop('num_source', 40),
    30.0,
    **{k: v for k, v in arguments.items() if k != 'num_source'},
    uniforms=np.array(uniforms),
  )


def test_strides_are_drawn_uniformly_from_the_whole_range():
  strides = [
    int(np.diff(train_frames([u, 0.0], num_source=1000))[0])
    for u in (np.arange(700) + 0.5) / 700
  ]
  values, counts = np.unique(strides, return_counts=True)
  assert values.tolist() == [2, 3, 4, 5, 6, 7, 8]
  assert (counts == 100).all()


def test_training_clips_reach_both_ends_of_the_video():
  first = train_frames([0.0, 0.0])
  last = train_frames([0.0, 1 - 1e-9])
  assert first.tolist() == [0, 2, 4, 6]
  assert last.tolist() == [33, 35, 37, 39]


def test_short_videos_repeat_frames_instead_of_failing():
  frames = train_frames([0.99, 0.5], num_source=5)
  assert len(frames) == 4
  assert frames.min() >= 0 and frames.max() <= 4
  frames = train_frames([0.99, 0.5], num_source=5, target_fps=30.0)
  assert frames.min() >= 0 and frames.max() <= 4


def test_segment_draws_stay_inside_their_segments():
  bounds = sampling.segment_bounds(37, 16)
  low = train_frames(
    [0, 0] + [0.0] * 16, num_source=37, num_frames=16, sampling='segments'
  )
  high = train_frames(
    [0, 0] + [1 - 1e-9] * 16,
    num_source=37,
    num_frames=16,
    sampling='segments',
  )
  assert low.tolist() == bounds[:, 0].tolist()
  assert high.tolist() == bounds[:, 1].tolist()


def test_a_stride_counts_seconds_where_a_target_rate_is_given():
  slow = train_frames([0, 0], stride_frames=(8, 8), target_fps=30.0)
  # 4 frames of stride 8 span 32 frames of 30 Hz, as the reference has it.
  assert slow.tolist() == [0, 10, 20, 31]


@pytest.mark.parametrize(
  'uniform,inverse,want',
  [(0.0, False, 128), (0.5, False, 224), (0.0, True, 320), (0.5, True, 183)],
)
def test_short_side_jitter_by_hand(uniform, inverse, want):
  got = sampling.short_side((128, 320), inverse=inverse, uniform=uniform)
  assert got == want


def test_a_wide_crop_always_fits():
  for height, width in ((240, 320), (320, 240), (100, 101), (33, 500)):
    h, w = sampling.resized_hw(height, width, short_px=96, at_least=(96, 170))
    assert h >= 96 and w >= 170


def test_random_offsets_cover_all_but_the_last_position():
  offsets = {
    sampling.random_offset(10, 7, u) for u in np.linspace(0, 0.999, 99)
  }
  assert offsets == {0, 1, 2}
  assert sampling.random_offset(7, 7, 0.9) == 0
