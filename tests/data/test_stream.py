"""A batch is a function of its step; an epoch uses every video once."""

import collections

import numpy as np
import pytest

from mgjax import cycles
from mgjax.cli import RunError
from mgjax.data import sources, stream
from mgjax.data.sources import Example


@pytest.fixture
def source(tiny_config):
  return sources.open_source(tiny_config, 'train')


def make_stream(config, source, **kwargs):
  schedule = cycles.make_schedule(config, len(source))
  return stream.TrainStream(config, schedule, source, **kwargs)


@pytest.mark.parametrize(
  'mode', ['none', 'short', 'long', 'both', 'progressive']
)
def test_every_video_is_used_once_per_epoch_whatever_the_grids(
  tiny_config, source, mode
):
  tiny_config.grid.mode = mode
  clips = make_stream(tiny_config, source)
  order = [
    clips.video_index(clip)
    for step in range(clips.schedule.total_steps)
    for clip in range(
      clips.schedule.clips_before(step), clips.schedule.clips_before(step + 1)
    )
  ]
  n = len(source)
  epochs = [order[i : i + n] for i in range(0, len(order) - n + 1, n)]
  assert len(epochs) >= clips.schedule.total_epochs
  for epoch in epochs:
    assert sorted(epoch) == list(range(n))
  assert epochs[0] != epochs[1]


def test_another_seed_has_another_order_in_every_epoch(tiny_config, source):
  """A sum of seed and epoch as the key would repeat orders across seeds."""
  first = make_stream(tiny_config, source)
  other = tiny_config.copy_and_resolve_references()
  other.seed = tiny_config.seed + 1
  second = make_stream(other, source)
  n = len(source)
  orders = {
    tuple(s.video_index(epoch * n + i) for i in range(n))
    for s in (first, second)
    for epoch in range(3)
  }
  assert len(orders) == 6


def same(a: dict, b: dict) -> None:
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_can_be_made_from_its_step_alone(tiny_config, source):
  one = make_stream(tiny_config, source)
  ahead = [batch for batch, _ in zip(one.batches(0), range(6), strict=False)]
  for step in (5, 0, 3):
    same(ahead[step], make_stream(tiny_config, source).batch(step))


def test_reading_can_start_anywhere(tiny_config, source):
  clips = make_stream(tiny_config, source)
  same(next(clips.batches(7)), clips.batch(7))


def test_batches_have_the_shapes_of_their_grids(tiny_config, source):
  clips = make_stream(tiny_config, source)
  for step in (0, 1, clips.schedule.total_steps - 1):
    grid = clips.schedule(step)
    batch = clips.batch(step)
    assert batch['video'].shape == (grid.batch, grid.T, grid.H, grid.W, 3)
    assert batch['video'].dtype == np.uint8
    assert batch['label'].shape == batch['flip'].shape == (grid.batch,)


def test_hosts_share_a_batch_without_changing_it(tiny_config, source):
  whole = make_stream(tiny_config, source).batch(1)
  halves = [
    make_stream(tiny_config, source, shard=i, num_shards=2).batch(1)
    for i in range(2)
  ]
  for name in ('video', 'label', 'flip', 'ids'):
    np.testing.assert_array_equal(
      np.concatenate([h[name] for h in halves]), whole[name]
    )


def test_half_of_the_clips_are_flipped_where_flips_are_on(tiny_config, source):
  tiny_config.data.flip = True
  clips = make_stream(tiny_config, source)
  flips = np.concatenate([clips.batch(step)['flip'] for step in range(5)])
  assert 0.4 < flips.mean() < 0.6
  tiny_config.data.flip = False
  assert not make_stream(tiny_config, source).batch(0)['flip'].any()


def test_wide_crops_are_wide(tiny_config, source):
  tiny_config.data.crop_width_px = 48
  clips = make_stream(tiny_config, source)
  step = clips.schedule.total_steps - 1
  while clips.schedule(step) != clips.schedule.phases[-1].base:
    step -= 1
  assert clips.batch(step)['video'].shape[2:4] == (32, 48)


class Damaged(sources.Source):
  """A source in which some videos cannot be decoded."""

  def __init__(self, source: sources.Source, bad: set[int]):
    self.source = source
    self.bad = bad
    self.label_names = source.label_names

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index) -> Example:
    example = self.source[index]
    return example._replace(video=b'junk') if index in self.bad else example


def test_a_bad_video_is_replaced_by_the_same_other_one_every_time(
  tiny_config, source
):
  clips = make_stream(tiny_config, source)
  bad = clips.video_index(3)
  damaged = make_stream(tiny_config, Damaged(source, {bad}))
  first, again = damaged.batch(0), damaged.batch(0)
  same(first, again)
  assert [s.split(':')[0] for s in first['skipped']] == [source[bad].id]
  assert first['ids'][3] != source[bad].id
  healthy = clips.batch(0)
  for i in (0, 1, 2, 4):
    np.testing.assert_array_equal(first['video'][i], healthy['video'][i])


def test_a_source_without_good_videos_is_an_error(tiny_config, source):
  damaged = make_stream(tiny_config, Damaged(source, set(range(len(source)))))
  with pytest.raises(RunError, match='could not be decoded'):
    damaged.batch(0)


class Failing(Damaged):
  """A source that fails as no source should."""

  def __getitem__(self, index) -> Example:
    if index in self.bad:
      raise ZeroDivisionError(f'example {index}')
    return self.source[index]


def test_an_unexpected_error_in_a_worker_ends_the_run(tiny_config, source):
  """Instead of leaving it waiting for a batch that never comes."""
  clips = make_stream(tiny_config, source)
  first_batch = clips.schedule(0).batch
  bad = clips.video_index(first_batch)  # The first clip of the second batch.
  failing = make_stream(tiny_config, Failing(source, {bad}))
  batches = failing.batches(0)
  assert len(next(batches)['ids']) == first_batch
  with pytest.raises(ZeroDivisionError, match=f'example {bad}'):
    next(batches)


@pytest.mark.parametrize('batch_size', [1, 7, 64, 100])
def test_evaluation_shows_every_view_once_whatever_the_batch_size(
  tiny_config, batch_size
):
  tiny_config.eval.num_views = 2
  tiny_config.eval.num_crops = 3
  validation = sources.open_source(tiny_config, 'validation')
  few = Few(validation, 5)
  views = stream.EvalStream(tiny_config, few, batch_size)
  seen = collections.Counter()
  pixels = []
  for batch in views.batches():
    assert batch['video'].shape == (batch_size, 8, 32, 32, 3)
    for i, weight in enumerate(batch['weight']):
      seen[int(batch['index'][i])] += int(weight)
      if weight:
        pixels.append(batch['video'][i])
  assert seen == {i: 6 for i in range(5)}
  alone = stream.EvalStream(tiny_config, few, 1)
  for i in (0, 11, 29):
    np.testing.assert_array_equal(alone.batch(i)['video'][0], pixels[i])


class Few(sources.Source):
  """The first examples of a source."""

  def __init__(self, source: sources.Source, count: int):
    self.source = source
    self.count = count
    self.label_names = source.label_names

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    return self.source[index]


def test_evaluation_reports_bad_videos_and_does_not_replace_them(tiny_config):
  validation = sources.open_source(tiny_config, 'validation')
  views = stream.EvalStream(tiny_config, Damaged(Few(validation, 4), {2}), 4)
  batch = views.batch(0)
  assert batch['weight'].tolist() == [1, 1, 0, 1]
  assert len(batch['failed']) == 1 and validation[2].id in batch['failed'][0]
