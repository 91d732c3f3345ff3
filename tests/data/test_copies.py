"""A clip from a smaller copy is the clip of the original, in fewer pixels."""

import json
import shutil

import numpy as np
import pytest

from mgjax.cli import ConfigError
from mgjax.config import fields
from mgjax.data import decode
from mgjax.data.records import DamagedRecordError
from mgjax.grids import Grid
from mgjax.setup import data as data_setup
from mgjax.setup import grids
from tests.data import videos
from tests.data.prepare.prepared import run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Ten videos of 64 x 48 pixels, and copies of short sides 32 and 24."""
  folder = tmp_path_factory.mktemp('copies')
  for i in range(10):
    split = 'train' if i < 8 else 'validation'
    path = folder / 'videos' / split / 'abc'[i % 2] / f'{i}.mp4'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(videos.encode(num_frames=20, fps=29.97, seed=i))
  for short, more in ((0, []), (32, []), (24, ['--videos_per_shard=3'])):
    name = f'clips/short{short}' if short else 'clips'
    code = run(
      [
        '--dataset=folder',
        f'--videos={folder / "videos"}',
        f'--out={folder}',
        f'--name={name}',
        f'--short_side_px={short}',
        '--num_workers=1',
        '--crf=2',
        *more,
      ]
    )
    assert code == 0
  return folder


def config_for(folder, name='clips', copies=True):
  config = fields.base()
  config.data.dir, config.data.name = str(folder), name
  config.data.copies = copies
  config.data.num_frames, config.data.stride_frames = 4, 2
  config.data.crop_px, config.data.jitter_px = 24, (24, 48)
  config.data.batch_size, config.norm.group_clips = 4, 4
  return config


@pytest.mark.parametrize(
  'short_px,want',
  [(20, 24), (24, 24), (25, 32), (32, 32), (33, 48), (48, 48), (100, 48)],
)
def test_the_smallest_copy_that_is_large_enough_is_read(folder, short_px, want):
  source = data_setup.source(config_for(folder), 'train')
  for i in range(len(source)):
    example = source.read(i, short_px=short_px)
    # The copies have other shards, and so other places.
    assert (example.id, example.label) == (source[i].id, source[i].label)
    with decode.Video(example.video) as video:
      assert min(video.height, video.width) == want


def test_a_clip_has_the_same_frames_and_crop_from_every_copy(folder):
  with_copies, without = (
    make_stream(config_for(folder, copies=copies)) for copies in (True, False)
  )
  grid = Grid(4, 24, 24, 1)
  for number in range(16):
    ranges = {'stride_frames': (1, 4), 'jitter_px': (24, 48)}
    one, other = (
      s.clip(number, grid, **ranges) for s in (with_copies, without)
    )
    assert (one['id'], one['label']) == (other['id'], other['label'])
    difference = one['video'].astype(int) - other['video']
    # The next frame or another crop differs by 30 and more.
    assert abs(difference).mean() < 6


def make_stream(config):
  source = data_setup.source(config, 'train')
  schedule = grids.schedule(config, len(source))
  return data_setup.train_stream(config, schedule, source)


def test_copies_larger_than_the_data_set_itself_do_not_count(folder):
  source = data_setup.source(config_for(folder, 'clips/short32'), 'train')
  assert [copy.name for copy in source.copies.copies] == ['clips/short24']
  smallest = data_setup.source(config_for(folder, 'clips/short24'), 'train')
  assert smallest.copies is None
  off = data_setup.source(config_for(folder, copies=False), 'train')
  assert off.copies is None


@pytest.fixture
def changed(folder, tmp_path):
  """A copy of the folder whose manifest of short24 is edited by a function."""
  shutil.copytree(folder / 'clips', tmp_path / 'clips')

  def change(edit):
    (path,) = tmp_path.glob('clips/short24/*/manifest.jsonl')
    records = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [json.dumps(edit(record)) for record in records]
    path.write_text('\n'.join(lines) + '\n')
    return data_setup.source(config_for(tmp_path), 'train')

  return change


def test_a_copy_with_other_frames_is_not_read(changed):
  source = changed(lambda r: {**r, 'num_frames': r['num_frames'] + 1})
  with decode.Video(source.read(0, short_px=20).video) as video:
    assert min(video.height, video.width) == 32


def test_a_manifest_of_another_data_set_is_refused(changed):
  with pytest.raises(ConfigError, match='short24.*prepare the copy again'):
    changed(lambda r: {**r, 'id': 'other' + r['id']})


def test_a_copy_with_other_labels_is_refused(changed, folder, tmp_path):
  with pytest.raises(ConfigError, match=r"\['c'\], not \['a'\]"):
    changed(lambda r: {**r, 'labels': [{'a': 'c'}.get(*r['labels'] * 2)]})
  (copy,) = tmp_path.glob('clips/short24/*')
  shutil.rmtree(copy.parent)
  (tmp_path / 'reversed').write_text('b\na\n')
  code = run(
    [
      '--dataset=folder',
      f'--videos={folder / "videos"}',
      f'--classes={tmp_path / "reversed"}',
      f'--out={tmp_path}',
      '--name=clips/short24',
      '--short_side_px=24',
      '--num_workers=1',
    ]
  )
  assert code == 0
  with pytest.raises(ConfigError, match="label 0 is 'b', not 'a'") as error:
    data_setup.source(config_for(tmp_path), 'train')
  assert str(copy) in str(error.value)
  assert str(tmp_path / 'clips' / copy.name) in str(error.value)


def test_a_set_with_a_config_has_copies_too(folder, tmp_path):
  for old, new in (('', 'all'), ('short24', 'all_short24'), ('short32', 'b')):
    (version,) = (folder / 'clips' / old).glob('1.*')
    shutil.copytree(version, tmp_path / 'mine' / new / version.name)
  source = data_setup.source(config_for(tmp_path, 'mine/all'), 'train')
  assert [copy.name for copy in source.copies.copies] == ['mine/all_short24']
  smallest = config_for(tmp_path, 'mine/all_short24')
  assert data_setup.source(smallest, 'train').copies is None


def test_evaluation_reads_copies_as_well(folder):
  config = config_for(folder)
  config.eval.num_views = config.eval.num_crops = 1
  config.eval.crop_px = config.eval.short_side_px = 24
  batches = []
  for copies in (True, False):
    config.data.copies = copies
    source = data_setup.source(config, 'validation')
    batches.append(
      data_setup.eval_stream(config, source, batch_size=2).batch(0)
    )
  assert batches[0]['label'].tolist() == batches[1]['label'].tolist()
  one, other = (b['video'].astype(int) for b in batches)
  assert 0 < np.abs(one - other).mean() < 6


def test_a_damaged_copy_is_named_with_the_id_of_its_video(folder, tmp_path):
  shutil.copytree(folder / 'clips', tmp_path / 'clips')
  source = data_setup.source(config_for(tmp_path), 'train')
  # The first record, which is looked at when the copy is opened.
  first = int(np.flatnonzero(source.copies.copies[0].places == 0)[0])
  path = min(tmp_path.glob('clips/short24/*/*train.array_record*'))
  data = bytearray(path.read_bytes())
  data[200] ^= 1
  path.write_bytes(data)
  source = data_setup.source(config_for(tmp_path), 'train')
  with pytest.raises(DamagedRecordError, match=f'{path.name}, record 0 is dam'):
    source.read(first, short_px=20)
  assert source.read(first, short_px=30).id == source.name_of(first)
