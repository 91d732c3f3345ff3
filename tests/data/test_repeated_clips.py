"""Repeated augmentation: several clips of a video, which is read once."""

import collections

import numpy as np
import pytest

from mgjax.data.decode import Video
from mgjax.data.order import Order
from mgjax.data.sources import Source
from mgjax.setup import data as data_setup
from mgjax.setup import grids
from tests.data.fake_sources import Damaged
from tests.data.test_stream import make_stream, same


class Counting(Source):
  """Counts how often each example is read."""

  def __init__(self, source):
    self.source = source
    self.label_names = source.label_names
    self.has_actions = source.has_actions
    self.reads = collections.Counter()

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    self.reads[index] += 1
    return self.source[index]


@pytest.fixture
def source(tiny_config):
  return Counting(data_setup.source(tiny_config, 'train'))


@pytest.fixture
def config(tiny_config):
  tiny_config.data.samples_per_video = 2
  tiny_config.data.flip = True
  return tiny_config


def test_clips_of_a_video_follow_each_other():
  order = Order(5, seed=3, clips_per_example=3)
  plain = Order(5, seed=3)
  for clip in range(40):
    assert order.example(clip) == plain.example(clip // 3)
    assert clip in order.siblings(clip)
    assert {order.example(c) for c in order.siblings(clip)} == {
      order.example(clip)
    }
    assert order.replacement(clip, 1) == order.replacement(clip - clip % 3, 1)
  # What a clip draws is its own.
  assert len({order.generator(clip).random() for clip in range(9)}) == 9
  with pytest.raises(ValueError, match='clips_per_example=0: give at least 1'):
    Order(5, clips_per_example=0)


def test_one_clip_of_each_video_is_the_order_without_repetition():
  plain, one = Order(240, seed=0), Order(240, seed=0, clips_per_example=1)
  for clip in (0, 1, 239, 240, 10_000):
    assert plain.example(clip) == one.example(clip)
    assert plain.replacement(clip, 2) == one.replacement(clip, 2)
    assert list(one.siblings(clip)) == [clip]


@pytest.mark.parametrize('mode', ['none', 'both', 'progressive'])
@pytest.mark.parametrize('samples,batch', [(2, 8), (2, 7), (3, 8)])
def test_an_epoch_has_so_many_clips_of_each_video_whatever_the_batches(
  config, source, mode, samples, batch
):
  config.data.samples_per_video, config.data.batch_size = samples, batch
  config.norm.group_clips, config.grid.mode = 1, mode
  clips = make_stream(config, source)
  schedule = clips.schedule
  n = samples * len(source)
  assert schedule.num_train == n
  shown = [clips.order.example(clip) for clip in range(schedule.total_clips)]
  for start in range(0, len(shown) - n + 1, n):
    counts = collections.Counter(shown[start : start + n])
    assert set(counts.values()) == {samples} and len(counts) == len(source)


def test_an_epoch_has_more_steps_and_the_learning_rate_the_same_epochs(config):
  config.grid.mode = 'none'
  twice = grids.schedule(config, 240)
  config.data.samples_per_video = 1
  once = grids.schedule(config, 240)
  assert twice.total_epochs == once.total_epochs
  assert twice.total_steps == 2 * once.total_steps
  assert twice.lr_at_epoch(1.5) == once.lr_at_epoch(1.5)


def frames_of(monkeypatch):
  """What is decoded: frames and views of each call."""
  calls = []
  views = Video.views

  def spy(self, indices, wanted):
    calls.append((tuple(indices), list(wanted)))
    return views(self, indices, wanted)

  monkeypatch.setattr(Video, 'views', spy)
  return calls


def test_a_video_is_read_and_decoded_once_for_its_clips(
  config, source, monkeypatch
):
  calls = frames_of(monkeypatch)
  clips = make_stream(config, source)
  batch = clips.batch(1)
  size = clips.schedule(1).batch
  assert size % 2 == 0
  assert batch['ids'][::2] == batch['ids'][1::2]
  assert len(set(batch['ids'])) == size // 2
  assert set(source.reads.values()) == {1}
  assert sum(source.reads.values()) == len(calls) == size // 2
  # The same frames, of another part of the picture or scale.
  assert all(len(views) == 2 for _, views in calls)
  assert sum(one != other for _, (one, other) in calls) > 0.8 * len(calls)
  assert (batch['flip'][::2] != batch['flip'][1::2]).any()


def test_a_clip_is_the_same_alone_and_in_any_batch(config, source, monkeypatch):
  """Also where a batch begins or ends between two clips of a video."""
  config.data.batch_size, config.norm.group_clips = 7, 1
  config.grid.mode = 'none'
  clips = make_stream(config, source)
  whole = clips.batch(1)  # Clips 7 to 13: the first one's sibling is clip 6.
  phase = clips.schedule.phases[0]
  calls = frames_of(monkeypatch)
  for place, clip in enumerate(range(7, 14)):
    alone = clips.clip(
      clip,
      phase.base,
      stride_frames=phase.stride_frames,
      jitter_px=phase.jitter_px[-1],
    )
    np.testing.assert_array_equal(alone['video'], whole['video'][place])
    assert alone['id'] == whole['ids'][place]
    assert alone['flip'] == whole['flip'][place]
  frames = [indices for indices, _ in calls]
  assert frames[1::2] == frames[2::2]  # Clips 8 and 9, 10 and 11, ...


def test_hosts_share_a_batch_that_is_cut_between_two_clips_of_a_video(
  config, source
):
  config.data.batch_size, config.norm.group_clips = 6, 1
  config.grid.mode = 'none'
  whole = make_stream(config, source).batch(1)
  halves = [
    make_stream(config, source, shard=i, num_shards=2).batch(1)
    for i in range(2)
  ]
  for name in ('video', 'label', 'flip', 'ids'):
    np.testing.assert_array_equal(
      np.concatenate([h[name] for h in halves]), whole[name]
    )
  assert sum(h['ids_crc32'] for h in halves) % 2**32 == whole['ids_crc32']


def test_reading_can_start_anywhere(config, source):
  config.data.batch_size, config.norm.group_clips = 7, 1
  config.grid.mode = 'none'
  clips = make_stream(config, source)
  same(next(clips.batches(3)), make_stream(config, source).batch(3))


def test_all_clips_of_a_bad_video_show_the_same_other_one(config, source):
  clips = make_stream(config, source)
  bad = clips.order.example(0)
  damaged = make_stream(config, Damaged(source, {bad}))
  batch = damaged.batch(0)
  name = source.name_of(bad)
  # It is counted once.
  assert [video for video, _ in batch['skipped']].count(name) == 1
  assert batch['ids'][0] == batch['ids'][1] != name
  assert damaged.ids(0, {name}) == batch['ids']
