"""A batch is a function of its step; an epoch uses every video once."""

import contextlib
import dataclasses
import multiprocessing

import numpy as np
import pytest

from mgjax.cli import RunError
from mgjax.data import sources
from mgjax.data.order import Order
from mgjax.data.sources import Example, TimedLabel
from mgjax.grids import MODES
from mgjax.setup import data as data_setup
from mgjax.setup import grids
from tests.data.fake_sources import Acted, Damaged
from tests.data.test_decode import in_new_process, resident_mib


@pytest.fixture
def source(tiny_config):
  return data_setup.source(tiny_config, 'train')


def make_stream(config, source, **kwargs):
  schedule = grids.schedule(config, len(source))
  return data_setup.train_stream(config, schedule, source, **kwargs)


@pytest.mark.parametrize('mode', MODES)
def test_every_video_is_used_once_per_epoch_whatever_the_grids(
  tiny_config, source, mode
):
  tiny_config.grid.mode = mode
  if mode == 'table':
    grids_drawn = [{'side_factor': 1.0}, {'side_factor': 0.5, 'batch': 16}]
    tiny_config.grid.table = ({'epochs': 4, 'random': grids_drawn},)
  clips = make_stream(tiny_config, source)
  order = [
    clips.order.example(clip)
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
    tuple(s.order.example(epoch * n + i) for i in range(n))
    for s in (first, second)
    for epoch in range(3)
  }
  assert len(orders) == 6


def test_an_order_of_other_videos_is_refused(tiny_config, source):
  """It would leave some out, or ask for some that are not there."""
  clips = make_stream(tiny_config, source)
  with pytest.raises(ValueError, match='239 examples .* 240 videos'):
    dataclasses.replace(clips, order=Order(239))


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
  # One number each tells all of them that they have seen the same videos.
  checksums = [half['ids_crc32'] for half in halves]
  assert sum(checksums) % 2**32 == whole['ids_crc32']


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


def test_a_bad_video_is_replaced_by_the_same_other_one_every_time(
  tiny_config, source
):
  clips = make_stream(tiny_config, source)
  bad = clips.order.example(3)
  damaged = make_stream(tiny_config, Damaged(source, {bad}))
  first, again = damaged.batch(0), damaged.batch(0)
  same(first, again)
  assert [name for name, _ in first['skipped']] == [source[bad].id]
  assert first['ids'][3] != source[bad].id
  healthy = clips.batch(0)
  for i in (0, 1, 2, 4):
    np.testing.assert_array_equal(first['video'][i], healthy['video'][i])


def test_the_videos_of_a_step_are_named_without_decoding_them(
  tiny_config, source, monkeypatch
):
  order = make_stream(tiny_config, source).order
  # The first clip's, and what would have replaced it.
  bad = {order.example(0), order.replacement(0, 1), order.example(70)}
  clips = make_stream(tiny_config, Damaged(source, bad))
  batches = [clips.batch(step) for step in range(3)]
  replaced = {name for batch in batches for name, _ in batch['skipped']}
  assert replaced == {source[i].id for i in bad}
  half = make_stream(tiny_config, Damaged(source, bad), shard=1, num_shards=2)
  monkeypatch.delattr(Example, 'open')
  for step, batch in enumerate(batches):
    assert clips.ids(step, replaced) == batch['ids']
    assert half.ids(step, replaced) == batch['ids']
  assert clips.ids(0, set()) != batches[0]['ids']


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
  bad = clips.order.example(first_batch)  # The first clip of the second batch.
  failing = make_stream(tiny_config, Failing(source, {bad}))
  batches = failing.batches(0)
  assert len(next(batches)['ids']) == first_batch
  with pytest.raises(ZeroDivisionError, match=f'example {bad}'):
    next(batches)


# Videos with any number of labels.

ACTIONS = (
  TimedLabel(2, 1.0, 2.0),
  TimedLabel(0, 1.9, 4.0),
  TimedLabel(5, 3.05, 3.08),
)


@pytest.mark.parametrize(
  'first,last,want',
  [
    (0, 9, []),
    (0, 10, [2]),  # Frame 10 is shown at 1.0 s, the first second's end.
    (12, 18, [2]),
    (12, 19, [0, 2]),
    (20, 25, [0, 2]),
    (21, 25, [0]),
    (21, 40, [0]),  # No frame is shown while the third action lasts.
    (41, 60, []),
  ],
)
def test_a_clip_has_the_labels_of_its_frames(first, last, want):
  labels = sources.union_labels(
    ACTIONS, 7, first_frame=first, last_frame=last, fps=10.0
  )
  assert labels.dtype == np.float32
  assert np.flatnonzero(labels).tolist() == want


def test_a_video_has_the_labels_of_all_its_actions():
  assert np.flatnonzero(sources.union_labels(ACTIONS, 7)).tolist() == [0, 2, 5]


def test_batches_of_videos_with_actions_have_vectors_of_labels(
  tiny_config, source
):
  tiny_config.optim.loss = 'sigmoid'
  clips = make_stream(tiny_config, Acted(source))
  label = clips.batch(0)['label']
  assert label.shape == (len(clips.batch(0)['video']), 16)
  assert label.dtype == np.float32 and set(np.unique(label)) == {0, 1}


def test_a_single_label_becomes_a_vector_for_the_sigmoid_loss(
  tiny_config, source
):
  plain = make_stream(tiny_config, source).batch(0)['label']
  tiny_config.optim.loss = 'sigmoid'
  vectors = make_stream(tiny_config, source).batch(0)['label']
  np.testing.assert_array_equal(vectors, np.eye(16)[plain])


def sizes_mib(config) -> list[tuple[int, float]]:
  """Clips made, and resident size of this process and all workers, by batch."""
  clips = make_stream(config, data_setup.source(config, 'train'))
  done, sizes = 0, []
  with contextlib.closing(clips.batches(0)) as batches:
    while done < 20_000:
      done += len(next(batches)['label'])
      workers = [child.pid for child in multiprocessing.active_children()]
      assert len(workers) == config.data.worker_processes
      sizes.append((done, sum(map(resident_mib, ['self', *workers]))))
  return sizes


@pytest.mark.slow
@pytest.mark.parametrize('worker_processes', [0, 2])
def test_memory_stays_flat_over_20000_clips(tiny_config, worker_processes):
  tiny_config.optim.total_epochs = 500
  tiny_config.optim.lr_steps = (250, 375)
  tiny_config.data.worker_processes = worker_processes
  sizes = in_new_process(sizes_mib, tiny_config)
  warm = max(mib for clips, mib in sizes if clips < 4_000)
  last = max(mib for clips, mib in sizes if clips >= 16_000)
  print(f'{sizes[-1][0]} clips: {warm:.1f} -> {last:.1f} MiB')
  # A leak of one of the smallest frames per clip would be 12 MiB.
  assert last - warm < 6
