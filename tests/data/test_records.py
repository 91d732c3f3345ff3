"""A damaged record is a damaged video; a disk that is gone is not."""

import bisect
import pathlib
import random
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mgjax.cli import RunError
from mgjax.data import records, sources
from mgjax.evaluation import results, scoring
from mgjax.hosts import parallel
from mgjax.run import bad_videos
from mgjax.setup import data as data_setup
from mgjax.setup import grids
from tests.evaluation.test_scoring import NO_STATE, first_pixels


@pytest.fixture
def config(tiny_config, tmp_path):
  """The tiny config with a data set of its own, to be damaged."""
  shutil.copytree(tiny_config.data.dir, tmp_path / 'data')
  tiny_config.data.dir = str(tmp_path / 'data')
  return tiny_config


def shard_of(config, split) -> pathlib.Path:
  (path,) = pathlib.Path(config.data.dir).rglob(f'*-{split}.array_record*')
  return path


def flip_a_bit(path: pathlib.Path, position: int, bit: int = 0) -> None:
  with path.open('r+b') as file:
    file.seek(position)
    (byte,) = file.read(1)
    file.seek(position)
    file.write(bytes([byte ^ (1 << bit)]))


def damaged_index(source: sources.Source) -> int:
  """The one record of a source that is damaged."""
  (index,) = (i for i in range(len(source)) if 'rec' in source.name_of(i))
  return index


def read_all(config, split) -> list:
  source = data_setup.source(config, split)
  return [source[i] for i in range(len(source))]


def test_no_flipped_bit_gives_other_bytes(config):
  healthy = read_all(config, 'validation')
  path = shard_of(config, 'validation')
  size = path.stat().st_size
  numbers = random.Random(0)
  # The index stands in the last records' block and behind it.
  index = range(len(path.read_bytes().rstrip(b'\0')) - 200, size)
  positions = [numbers.randrange(size) for _ in range(60)]
  positions += [numbers.choice(index[:300]) for _ in range(30)]
  positions += range(size - 65536, size - 65536 + 30)
  noticed = 0
  for position in positions:
    bit = numbers.randrange(8)
    flip_a_bit(path, position, bit)
    source = data_setup.source(config, 'validation')
    for i, example in enumerate(healthy):
      try:
        assert source[i] == example
      except records.DamagedRecordError:
        noticed += 1
    flip_a_bit(path, position, bit)
  assert noticed > 60
  assert read_all(config, 'validation') == healthy


def test_a_damaged_record_is_replaced_by_the_same_other_video_and_named(config):
  source = data_setup.source(config, 'train')
  schedule = grids.schedule(config, len(source))
  batch = lambda: data_setup.train_stream(
    config, schedule, data_setup.source(config, 'train')
  ).batch(step)
  path = shard_of(config, 'train')
  flip_a_bit(path, path.stat().st_size // 2)
  source = data_setup.source(config, 'train')
  bad = damaged_index(source)
  clips = data_setup.train_stream(config, schedule, source)
  clip = [clips.order.example(c) for c in range(len(source))].index(bad)
  starts = [schedule.clips_before(s) for s in range(schedule.total_steps)]
  step = bisect.bisect_right(starts, clip) - 1
  first, again = batch(), batch()
  ((name, reason),) = first['skipped']
  assert name == f'{path.name}, record {bad}'
  assert reason.startswith(f'{name} is damaged: ') and 'at byte ' in reason
  np.testing.assert_array_equal(first['video'], again['video'])
  flip_a_bit(path, path.stat().st_size // 2)
  whole = batch()
  for i in range(len(whole['ids'])):
    same = (whole['video'][i] == first['video'][i]).all()
    assert same == (i != clip - starts[step])
  with pytest.raises(RunError, match=f'1 of 240 .* the last is {name}: .*byte'):
    bad_videos.note(
      {}, first['skipped'], num_train=len(source), max_fraction=0.0
    )


def test_an_evaluation_names_a_damaged_record_and_scores_the_others(config):
  path = shard_of(config, 'validation')
  flip_a_bit(path, path.stat().st_size // 2)
  source = data_setup.source(config, 'validation')
  bad = damaged_index(source)
  result = results.evaluate(
    first_pixels,
    NO_STATE,
    data_setup.eval_stream(config, source, batch_size=16),
    parallel.make_mesh(),
    ensemble='sum',
  )
  name = f'{path.name}, record {bad}'
  assert result['failed'] == [name]
  assert (result['num_scored'], result['num_videos']) == (63, 64)
  (lost,) = result['lost']
  assert lost['id'] == name and 'hash mismatch' in lost['reason']


def test_a_view_that_cannot_be_read_does_not_take_the_label_of_the_others(
  config, monkeypatch
):
  """The disk may lose a record between two views of one evaluation."""
  config.eval.num_views, config.eval.num_crops = 2, 1
  source = data_setup.source(config, 'validation')
  want = [source[i].label for i in range(len(source))]
  read = sources.Source.read
  seen = set()

  def damaged(self, index, *, short_px):
    if index in seen:
      raise records.DamagedRecordError('x, record 1', 'bit')
    seen.add(index)
    return read(self, index, short_px=short_px)

  monkeypatch.setattr(sources.Source, 'read', damaged)
  config.data.num_workers = 1
  got = scoring.score(
    first_pixels,
    NO_STATE,
    data_setup.eval_stream(config, source, batch_size=2),
    parallel.make_mesh(),
    ensemble='sum',
  )
  assert (got.views + got.lost == 2).all() and got.lost.any()
  np.testing.assert_array_equal(got.labels, want)


def test_a_shard_that_is_gone_is_the_disks_and_ends_the_run(config):
  source = data_setup.source(config, 'train')
  shard_of(config, 'train').unlink()
  with pytest.raises(RunError, match=r'cannot be read .*No such file.*mount'):
    source.read(0, short_px=32)
  schedule = grids.schedule(config, len(source))
  with pytest.raises(RunError, match='cannot be read'):
    data_setup.train_stream(config, schedule, source).batch(0)


def test_a_shard_that_is_cut_is_damaged(config):
  path = shard_of(config, 'train')
  source = data_setup.source(config, 'train')
  assert source[0].video  # It is open now.
  with path.open('r+b') as file:
    file.truncate(200_000)
  with pytest.raises(records.DamagedRecordError, match='record 200 is damaged'):
    source.read(200, short_px=32)
  again = data_setup.source(config, 'train')
  with pytest.raises(records.DamagedRecordError, match='record 0 is damaged'):
    again.read(0, short_px=32)


def test_an_error_that_is_not_the_records_is_not_taken_for_damage(
  config, monkeypatch
):
  source = data_setup.source(config, 'train')

  def fail(self, *args, **options):
    raise TypeError('a new version')

  monkeypatch.setattr(
    tfds.features.FeaturesDict, 'deserialize_example_np', fail
  )
  schedule = grids.schedule(config, len(source))
  with pytest.raises(TypeError, match='a new version'):
    data_setup.train_stream(config, schedule, source).batch(0)
