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
    height, width, crop_hw=(size, size), crop=crop, num_crops=3
  )
  assert list(offsets) == GOLDEN['uniform_crop'][name]


def test_three_crops_lie_along_the_side_with_more_to_spare():
  offsets = [
    sampling.crop_offsets(192, 256, crop_hw=(128, 256), crop=i, num_crops=3)
    for i in range(3)
  ]
  assert offsets == [(0, 0), (32, 0), (64, 0)]


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


def test_corners_and_centre_and_their_mirror_images():
  offsets = [
    sampling.crop_offsets(256, 340, crop_hw=(224, 224), crop=crop, num_crops=10)
    for crop in range(10)
  ]
  assert offsets[:5] == [(0, 0), (0, 116), (32, 0), (32, 116), (16, 58)]
  assert offsets[5:] == offsets[:5]
  mirrored = [sampling.is_mirrored(crop, 10) for crop in range(10)]
  assert mirrored == [False] * 5 + [True] * 5
  assert not any(sampling.is_mirrored(crop, 5) for crop in range(5))


def test_a_single_crop_is_the_centre():
  crop = sampling.crop_offsets(
    256, 341, crop_hw=(224, 224), crop=0, num_crops=1
  )
  assert crop == (16, 59)


@pytest.mark.parametrize('num_source', [30, 64, 300, 901])
@pytest.mark.parametrize('num_frames,strides', [(8, (2, 8)), (16, (2, 4))])
def test_dense_training_clips_equal_the_formula_of_the_reference(
  num_source, num_frames, strides
):
  """Spacing, start and clipping of SlowFast's decoder, at 25 frames/s."""
  for stride_draw, start_draw in np.random.default_rng(0).random((20, 2)):
    frames = sampling.train_frames(
      num_source,
      25.0,
      num_frames=num_frames,
      stride_frames=strides,
      sampling='dense',
      target_fps=30.0,
      uniforms=np.array([stride_draw, start_draw]),
    )
    choices = range(strides[0], strides[1] + 1)
    stride = choices[int(stride_draw * len(choices))]
    span = stride * num_frames / 30 * 25
    start = start_draw * max(num_source - span, 0)
    step = (span - 1) / (num_frames - 1)
    # Away from whole numbers, where rounding decides.
    want = np.clip(start + step * np.arange(num_frames), 0, num_source - 1)
    sure = np.abs(want - np.round(want)) > 1e-6
    np.testing.assert_array_equal(frames[sure], np.floor(want)[sure])


@pytest.mark.parametrize('num_source', [50, 127, 128, 900])
def test_charades_training_clips_equal_the_formula_of_the_reference(num_source):
  """A start in [0, n - length], or [n - length, 0] where the video is short."""
  length = 63 * 2 + 1
  starts = set()
  for draw in (np.arange(2000) + 0.5) / 2000:
    frames = sampling.train_frames(
      num_source,
      24.0,
      num_frames=64,
      stride_frames=(2, 2),
      sampling='dense',
      target_fps=0.0,
      uniforms=np.array([0.0, draw]),
    )
    room = num_source - length
    start = min(room, 0) + int(draw * (abs(room) + 1))
    want = np.clip(start + 2 * np.arange(64), 0, num_source - 1)
    np.testing.assert_array_equal(frames, want)
    starts.add(start)
  assert starts == set(range(min(room, 0), max(room, 0) + 1))


@pytest.mark.parametrize('num_frames', [3, 8, 16, 64])
def test_segments_suit_any_number_of_frames(num_frames):
  bounds = sampling.segment_bounds(37, num_frames)
  assert len(bounds) == num_frames
  assert bounds[0, 0] == 0 and bounds[-1, 1] == 36
  np.testing.assert_array_equal(bounds[1:, 0], bounds[:-1, 1])


def test_inverse_jitter_draws_the_inverse_uniformly():
  sides = [
    sampling.short_side((128, 320), inverse=True, uniform=u)
    for u in (np.arange(1000) + 0.5) / 1000
  ]
  # Half of the inverses lie below the middle one, 1 / 182.86.
  assert 0.49 < np.mean(np.array(sides) > 183) < 0.51
  assert min(sides) == 128 and max(sides) == 320
