"""Prepared data sets open, say what is in them, and survive a kill."""

import collections
import hashlib
import importlib.util
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
import types
import zlib

import av
import pytest
import tensorflow_datasets as tfds

from mgjax.cli import ConfigError
from mgjax.config import fields
from mgjax.data import prepare, transcode
from mgjax.setup import data as data_setup
from tests.data import videos
from tests.data.test_annotations import charades

ROOT = pathlib.Path(__file__).parents[2]

# (class, YouTube id, split): '-' and '_' may start an id.
CLIPS = [
  ('air drumming', f'{"-_x"[i % 3]}train{i}', 'train') for i in range(5)
] + [('testifying', f'val{i}', 'validate') for i in range(3)]
GONE = 'testifying,gone,5,15,train'


@pytest.fixture
def kinetics(tmp_path):
  """Eight clips with their class folders, and a ninth that is not there."""
  lines = ['label,youtube_id,time_start,time_end,split', GONE]
  for number, (label, youtube_id, split) in enumerate(CLIPS):
    folder = tmp_path / 'videos' / split / label.replace(' ', '_')
    folder.mkdir(parents=True, exist_ok=True)
    encoded = videos.encode(seed=number)
    (folder / f'{youtube_id}_000001_000011.mp4').write_bytes(encoded)
    lines.append(f'{label},{youtube_id},1,11,{split}')
  (tmp_path / 'k.csv').write_text('\n'.join(lines))
  return tmp_path


def arguments(folder, *more, workers=1):
  return [
    '--dataset=kinetics400',
    f'--videos={folder / "videos"}',
    f'--annotations={folder / "k.csv"}',
    f'--out={folder / "out"}',
    '--videos_per_shard=2',
    f'--num_workers={workers}',
    *more,
  ]


def manifest_of(folder):
  lines = (folder / 'manifest.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def summary_of(folder):
  return json.loads((folder / 'summary.json').read_text())


def assert_same(folder, other):
  """Two data sets have the same videos, labels and order, in the same files.

  The files' bytes differ: a protocol buffer orders its fields as it likes.
  """
  names, other_names = (
    sorted(p.name for p in f.iterdir()) for f in (folder, other)
  )
  assert names == other_names
  assert manifest_of(folder) == manifest_of(other)
  for split in ('train', 'validation'):
    here, there = (
      tfds.builder_from_directory(f).as_data_source(split)
      for f in (folder, other)
    )
    assert len(here) == len(there)
    assert all(here[i] == there[i] for i in range(len(here)))


def open_source(out, name, split):
  config = fields.base()
  config.data.dir = str(out)
  config.data.name = name
  return data_setup.source(config, split)


def examples_of(source):
  return [source[i] for i in range(len(source))]


def a_file(kinetics, name='val1'):
  return next((kinetics / 'videos').rglob(f'{name}*'))


def test_prepared_set_opens_with_tfds_and_holds_the_files(kinetics):
  assert prepare.main(arguments(kinetics)) == 0
  source = tfds.data_source('kinetics400', data_dir=kinetics / 'out')
  assert {split: len(source[split]) for split in source} == {
    'train': 5,
    'validation': 3,
  }
  folder = kinetics / 'out/kinetics400/1.0.0'
  builder = tfds.builder_from_directory(folder)
  assert builder.info.features['label'].names == ['air drumming', 'testifying']
  for split, index in [('train', i) for i in range(5)] + [
    ('validation', i) for i in range(3)
  ]:
    example = source[split][index]
    name = example['id'].decode()
    (file,) = (kinetics / 'videos').rglob(f'{name}.mp4')
    assert example['video'] == file.read_bytes()
    assert (example['label'] == 1) == name.startswith('val')
  assert 'tensorflow' not in sys.modules


def test_manifest_tells_every_annotated_video(kinetics):
  broken = a_file(kinetics)
  broken.write_bytes(broken.read_bytes()[:2000])
  assert prepare.main(arguments(kinetics, '--max_bad_fraction=0.2')) == 0
  folder = kinetics / 'out/kinetics400/1.0.0'
  records = {record['id']: record for record in manifest_of(folder)}
  assert len(records) == 9
  count = collections.Counter(r['status'] for r in records.values())
  assert count == {'stored': 7, 'missing': 1, 'quarantined': 1}
  stored = records['-train0_000001_000011']
  file = a_file(kinetics, '-train0')
  assert stored['file'] == str(file.relative_to(kinetics / 'videos'))
  assert stored['labels'] == ['air drumming'] and stored['split'] == 'train'
  assert (stored['width'], stored['height'], stored['fps']) == (64, 48, 12)
  assert (stored['num_frames'], stored['duration_s']) == (12, 1)
  assert stored['sha256'] == hashlib.sha256(file.read_bytes()).hexdigest()
  assert 'no file gone_000005_000015' in records['gone_000005_000015']['reason']

  summary = summary_of(folder)
  assert summary['quarantined'] == [
    {
      'id': 'val1_000001_000011',
      'split': 'validation',
      'file': str(broken.relative_to(kinetics / 'videos')),
      'reason': records['val1_000001_000011']['reason'],
    }
  ]
  assert summary['classes']['testifying'] == {
    'train': {'annotated': 1, 'stored': 0},
    'validation': {'annotated': 3, 'stored': 2},
  }
  assert summary['splits']['train']['frames'] == 60
  assert (summary['num_classes'], summary['published_num_classes']) == (
    2,
    [400],
  )
  source = open_source(kinetics / 'out', 'kinetics400', 'validation')
  digest = hashlib.sha256((folder / 'manifest.jsonl').read_bytes()).hexdigest()
  assert source.manifest_sha256 == summary['manifest_sha256'] == digest
  assert len(source) == 2


def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(
  kinetics, capsys
):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # No file may grow further, as on a full disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  try:
    assert prepare.main(arguments(kinetics)) == 1
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  told = [t for t in capsys.readouterr().err.splitlines() if 'error' in t]
  assert len(told) == 1 and told[0].startswith('error: ')
  assert 'array_record' in told[0] and 'cannot be written' in told[0]
  assert prepare.main(arguments(kinetics)) == 0


def test_a_shard_may_be_empty(kinetics):
  for name in ('-train0', '_train1', 'xtrain2', '-train3'):
    a_file(kinetics, name).unlink()
  flags = ['--videos_per_shard=1', '--max_missing_fraction=0.84']
  assert prepare.main(arguments(kinetics, *flags)) == 0
  source = open_source(kinetics / 'out', 'kinetics400', 'train')
  assert [e.id for e in examples_of(source)] == ['_train4_000001_000011']


def test_transcoded_copy_has_a_config_of_its_own(kinetics):
  assert prepare.main(arguments(kinetics)) == 0
  assert prepare.main(arguments(kinetics, '--short_side_px=32', '--gop=4')) == 0
  copy = kinetics / 'out/kinetics400/short32/1.0.0'
  assert {(r['height'], r['is_transcoded']) for r in manifest_of(copy)[:3]} == {
    (32, True)
  }
  assert len(open_source(kinetics / 'out', 'kinetics400', 'train')) == 5
  assert len(open_source(kinetics / 'out', 'kinetics400/short32', 'train')) == 5
  split = tfds.data_source('kinetics400/short32', data_dir=kinetics / 'out')
  assert len(split['validation']) == 3


def test_mini_set_keeps_its_classes_only(kinetics, capsys):
  (kinetics / 'mini.txt').write_text('testifying\n')
  wanted = arguments(kinetics, f'--classes={kinetics / "mini.txt"}')
  # The only training clip of this class is missing.
  assert prepare.main(wanted) == 2
  assert 'no file of the train split' in capsys.readouterr().err
  (kinetics / 'mini.txt').write_text('air drumming\n')
  assert prepare.main([*wanted, '--name=mini']) == 0
  source = open_source(kinetics / 'out', 'mini', 'train')
  assert source.label_names == ('air drumming',) and len(source) == 5
  assert prepare.main(arguments(kinetics, '--num_classes=2')) == 0
  assert (kinetics / 'out/kinetics400_mini2/1.0.0/summary.json').exists()


def test_charades_has_actions_for_its_frame_folders(tmp_path):
  (tmp_path / 'text').mkdir()
  charades(tmp_path / 'text')
  for number, name in enumerate(('46GP8', 'N11GT', 'T1')):
    videos.write_frames(tmp_path / 'videos' / name, seed=number)
  assert (
    prepare.main(
      [
        '--dataset=charades',
        f'--videos={tmp_path / "videos"}',
        f'--annotations={tmp_path / "text"}',
        f'--out={tmp_path / "out"}',
        '--num_workers=1',
      ]
    )
    == 0
  )
  source = open_source(tmp_path / 'out', 'charades', 'train')
  assert source.has_actions
  assert source.label_names == ('Holding some clothes', 'Taking a bag')
  examples = {e.id: e for e in examples_of(source)}
  assert examples['N11GT'].actions == () and examples['N11GT'].label is None
  assert [a.label for a in examples['46GP8'].actions] == [1, 0, 1]
  assert examples['46GP8'].actions[0][1:] == pytest.approx((11.9, 21.2))
  record = manifest_of(tmp_path / 'out/charades/1.0.0')[0]
  assert (record['fps'], record['num_frames']) == (24, 8)
  assert record['labels'] == ['Holding some clothes', 'Taking a bag']


def test_folders_and_csv_need_no_public_data_set(kinetics):
  wanted = [
    '--dataset=folder',
    f'--videos={kinetics / "videos"}',
    f'--out={kinetics / "out"}',
    '--num_workers=1',
  ]
  assert prepare.main([*wanted, '--name=mine/all']) == 0
  source = open_source(kinetics / 'out', 'mine/all', 'validation')
  assert source.label_names == ('air_drumming', 'testifying')
  assert len(source) == 3
  (kinetics / 'my.csv').write_text(
    'path,label,split\nvalidate/testifying/val0_000001_000011.mp4,a,train\n'
  )
  csv = f'--annotations={kinetics / "my.csv"}'
  assert prepare.main([*wanted, csv, '--name=csv']) == 0
  assert len(open_source(kinetics / 'out', 'csv', 'train')) == 1


def test_same_command_does_nothing_and_another_is_refused(kinetics, capsys):
  assert prepare.main(arguments(kinetics)) == 0
  folder = kinetics / 'out/kinetics400/1.0.0'
  before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert prepare.main(arguments(kinetics)) == 0
  assert 'already prepared' in capsys.readouterr().err
  assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert prepare.main(arguments(kinetics, '--videos_per_shard=3')) == 2
  assert 'made from other files or settings' in capsys.readouterr().err


def test_too_many_damaged_videos_stop_and_more_may_be_allowed(kinetics, capsys):
  a_file(kinetics).write_bytes(b'')
  assert prepare.main(arguments(kinetics)) == 1
  error = capsys.readouterr().err.splitlines()[-1]
  assert '1 of 8 videos are damaged' in error
  folder = kinetics / 'out/kinetics400/1.0.0'
  assert not (folder / 'dataset_info.json').exists()
  log = (folder / 'parts/quarantined.jsonl').read_text()
  assert 'val1' in log and 'not a readable video' in log
  done = {p: p.stat().st_mtime_ns for p in folder.glob('*train*')}
  assert len(done) == 3
  assert prepare.main(arguments(kinetics, '--max_bad_fraction=0.5')) == 0
  assert done == {p: p.stat().st_mtime_ns for p in done}
  assert not (folder / 'parts').exists()


@pytest.mark.parametrize(
  'damage',
  [
    lambda content: b'',
    lambda content: bytes(len(content)),
    lambda content: content[:-20],
    lambda content: content[: content.index(b'\n') + 1],
  ],
  ids=['empty', 'zeros', 'half a line', 'a line less'],
)
def test_a_part_that_lost_its_end_is_written_again(kinetics, damage):
  a_file(kinetics).write_bytes(b'')
  assert prepare.main(arguments(kinetics)) == 1
  folder = kinetics / 'out/kinetics400/1.0.0'
  part = folder / 'parts/train-00000.jsonl'
  part.write_bytes(damage(part.read_bytes()))
  assert prepare.main(arguments(kinetics, '--max_bad_fraction=0.5')) == 0
  assert summary_of(folder)['splits']['train']['stored'] == 5


def test_shards_of_other_settings_and_files_are_written_again(kinetics):
  bad = a_file(kinetics)
  sound = bad.read_bytes()
  bad.write_bytes(b'')
  wanted = arguments(kinetics, '--name=k')
  assert prepare.main(wanted) == 1
  bad.write_bytes(sound)
  folder = kinetics / 'out/k/1.0.0'
  assert len(list(folder.glob('*train*'))) == 3
  assert prepare.main([*wanted, '--short_side_px=32']) == 0
  stored = [r for r in manifest_of(folder) if r['status'] == 'stored']
  assert len(stored) == 8 and all(r['is_transcoded'] for r in stored)


def test_late_file_changes_its_own_shard_only(kinetics):
  plan = lambda: prepare.make_plan(prepare._parse(arguments(kinetics)))
  before = plan()
  late = a_file(kinetics)
  late = late.with_name('gone_000005_000015.mp4')
  late.write_bytes(videos.encode())
  after = plan()
  changed = [
    a.split
    for a, b in zip(after.shards, before.shards, strict=True)
    if a.fingerprint() != b.fingerprint()
  ]
  assert changed == ['train'] and len(after.shards) == 5
  assert not after.missing


def test_of_files_with_one_name_that_of_the_split_and_class_is_taken():
  video = prepare.Annotated('v', 'validation', 'a b', ('v_1', 'v'))
  index = {
    'v_1': ['train/a_b/v_1.mp4', 'val/c/v_1.mp4', 'val/a_b/v_1.mp4'],
    'v': ['v.mp4'],
  }
  assert prepare.find_file(video, index) == 'val/a_b/v_1.mp4'
  assert prepare.find_file(video, {'v': ['v.mp4']}) == 'v.mp4'
  other = prepare.Annotated('x/v', 'train', 'x', ('x/v',))
  assert prepare.find_file(other, {'v': ['y/v.mp4', 'xx/v.mp4']}) is None


def test_an_exact_path_comes_before_the_end_of_another():
  index = {'x': ['a/run/x.mp4', 'bad/x.mp4', 'run/x.mp4', 'x.avi', 'x.mp4']}
  find = lambda name, file: prepare.find_file(
    prepare.Annotated(name, 'train', 'run', (name,), file=file), index
  )
  assert find('run/x', 'run/x.mp4') == 'run/x.mp4'
  # As a name without a suffix, and with one that the file does not have.
  assert find('run/x', '') == find('run/x', 'run/x.webm') == 'run/x.mp4'
  assert find('x', 'x.mp4') == 'x.mp4'
  assert find('x', 'x.webm') == 'x.avi'
  index['x'] = ['bad/x.avi', 'bad/x.mp4', 'good/x.avi']
  assert find('x', 'x.mp4') == 'bad/x.mp4'


@pytest.mark.parametrize(
  'paths,csv',
  [
    (('run/x', 'jump/run/x'), ''),
    (('y', 'bad/y'), 'y.mp4,good\n'),
  ],
)
def test_of_nested_folders_each_video_gets_its_own_file(tmp_path, paths, csv):
  flags = ['--dataset=folder', '--name=mine', '--num_workers=1']
  flags += [f'--videos={tmp_path / "videos"}', f'--out={tmp_path}']
  for number, path in enumerate(paths):
    file = tmp_path / 'videos' / f'{path}.mp4'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(videos.encode(seed=number))
  if csv:
    (tmp_path / 'my.csv').write_text(csv)
    flags.append(f'--annotations={tmp_path / "my.csv"}')
  assert prepare.main([*flags, '--validation_fraction=0']) == 0
  for example in examples_of(open_source(tmp_path, 'mine', 'train')):
    file = tmp_path / 'videos' / f'{example.id}.mp4'
    assert example.video == file.read_bytes()


def test_videos_with_the_id_of_another_are_named(kinetics, capsys):
  a_file(kinetics, 'val0').with_suffix('.avi').write_bytes(b'')
  wanted = [
    '--dataset=folder',
    f'--out={kinetics / "out"}',
    f'--videos={kinetics / "videos"}',
    '--num_workers=1',
    '--max_bad_fraction=1',
  ]
  assert prepare.main([*wanted, '--name=mine']) == 0
  name = 'validate/testifying/val0_000001_000011'
  line = f'left out 1 videos whose id was there already: {name}.mp4;'
  assert line in capsys.readouterr().err
  assert summary_of(kinetics / 'out/mine/1.0.0')['duplicates'] == [
    {
      'id': name,
      'split': 'validation',
      'label': 'testifying',
      'file': f'{name}.mp4',
    }
  ]
  (kinetics / 'my.csv').write_text(f'{name}.mp4,a,train\n{name}.mp4,b,train\n')
  more = [f'--annotations={kinetics / "my.csv"}', '--name=csv']
  assert prepare.main([*wanted, *more]) == 0
  assert line in capsys.readouterr().err
  (duplicate,) = summary_of(kinetics / 'out/csv/1.0.0')['duplicates']
  assert duplicate['label'] == 'b'


def test_a_mini_set_is_not_blamed_for_its_classes(kinetics, capsys):
  assert prepare.main(arguments(kinetics)) == 0
  assert '2 classes; published are 400' in capsys.readouterr().err
  assert prepare.main(arguments(kinetics, '--num_classes=2')) == 0
  assert 'published' not in capsys.readouterr().err


def test_frame_folders_count_by_their_bytes(tmp_path, monkeypatch, capsys):
  for split in ('train', 'val'):
    videos.write_frames(tmp_path / 'videos' / split / 'a' / 'x')
  folder = tmp_path / 'videos/train/a/x'
  size = sum(file.stat().st_size for file in folder.iterdir())
  wanted = [
    '--dataset=folder',
    '--name=mine',
    f'--out={tmp_path}',
    f'--videos={tmp_path / "videos"}',
    '--num_workers=1',
  ]
  usage = types.SimpleNamespace(free=int(1.5 * size))
  monkeypatch.setattr(prepare.shutil, 'disk_usage', lambda path: usage)
  assert prepare.main(wanted) == 2
  assert 'GiB are needed' in capsys.readouterr().err
  usage.free = int(2.5 * size)
  assert prepare.main(wanted) == 0


def test_pictures_beside_videos_are_no_frames(tmp_path):
  path = tmp_path / 'train' / 'a' / 'x.mp4'
  path.parent.mkdir(parents=True)
  path.write_bytes(b'')
  path.with_suffix('.png').write_bytes(b'')
  videos.write_frames(tmp_path / 'train' / 'a' / 'y.z', suffix='.png')
  listing = prepare.list_files(tmp_path)
  assert listing.index == {'x': ['train/a/x.mp4'], 'y.z': ['train/a/y.z']}
  assert listing.others == ['train/a/x.png']


def folder_of(tmp_path, *paths, seed=0):
  """Writes videos, and returns a command that prepares them."""
  for number, path in enumerate(paths):
    file = tmp_path / 'videos' / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(videos.encode(seed=seed + number, num_frames=3))
  return [
    '--dataset=folder',
    '--name=mine',
    f'--videos={tmp_path / "videos"}',
    f'--out={tmp_path}',
    '--num_workers=1',
    '--validation_fraction=0',
  ]


SUFFIXES = 'wmv ts mts m2ts 3gp gif ogv vob mxf asf divx'.split()


def test_every_usual_suffix_is_that_of_a_video(tmp_path):
  # What FFmpeg makes of a file does not depend on its name.
  wanted = folder_of(tmp_path, *(f'a/{s}.{s.upper()}' for s in SUFFIXES))
  assert prepare.main(wanted) == 0
  source = open_source(tmp_path, 'mine', 'train')
  assert {e.id for e in examples_of(source)} == {f'a/{s}' for s in SUFFIXES}


def test_files_that_are_not_used_are_counted_and_named(tmp_path, capsys):
  wanted = folder_of(tmp_path, 'a/x.mp4', 'a/y.mp4', 'b/z.mp4')
  for name in ('a/x.txt', 'a/x.jpg', 'READ.me', 'a/y.rmvb'):
    (tmp_path / 'videos' / name).write_bytes(b'')
  # Neither what the flags name, nor the data set itself.
  (tmp_path / 'videos/my.csv').write_text('a/x.mp4,a,train\nb/z.mp4,b,train\n')
  csv = f'--annotations={tmp_path / "videos/my.csv"}'
  more = [csv, '--num_classes=1', f'--out={tmp_path / "videos"}']
  assert prepare.main([*wanted, *more]) == 0
  (folder,) = (tmp_path / 'videos/mine').iterdir()
  unused = {
    'neither a video nor a folder of frames': {
      'count': 4,
      'files': ['READ.me', 'a/x.jpg', 'a/x.txt', 'a/y.rmvb'],
    },
    # The class that is not wanted is annotated.
    'not in the annotation': {'count': 1, 'files': ['a/y.mp4']},
  }
  assert summary_of(folder)['unused'] == unused
  told = capsys.readouterr().err
  assert 'did not use 4 files (neither a video nor a folder of frames)' in told
  assert ': READ.me, a/x.jpg, a/x.txt, …; summary.json' in told
  assert 'did not use 1 files (not in the annotation): a/y.mp4;' in told


def test_a_file_counts_once_however_many_links_lead_to_it(tmp_path, capsys):
  wanted = folder_of(tmp_path, 'train/a/x.mp4', 'val/b/y.mp4')
  top = tmp_path / 'videos'
  (top / 'train/a/up').symlink_to(top)
  (top / 'train/a/again').symlink_to(top / 'train')
  (top / 'val/b/y2.mp4').symlink_to('y.mp4')
  (top / 'train/a/gone.mp4').symlink_to('nowhere.mp4')
  (top / 'train/a/a.mp4').symlink_to('x.mp4')
  # Of what is elsewhere, a link is as good as the file.
  folder_of(tmp_path / 'other', 'c/z.mp4', 'c/deep/w.mp4', seed=5)
  elsewhere = tmp_path / 'other/videos/c'
  (top / 'train/c').symlink_to(elsewhere)
  (elsewhere / 'deep/up').symlink_to(elsewhere)
  (top / 'train/c2').symlink_to(elsewhere)
  (top / 'train/a/z2.mp4').symlink_to(elsewhere / 'z.mp4')
  assert prepare.main(wanted) == 0
  files = {
    split: sorted(
      r['file']
      for r in manifest_of(tmp_path / 'mine/1.0.0')
      if r['split'] == split
    )
    for split in ('train', 'validation')
  }
  assert files == {
    'train': ['train/a/x.mp4', 'train/a/z2.mp4', 'train/c/deep/w.mp4'],
    'validation': ['val/b/y.mp4'],
  }
  (unused,) = summary_of(tmp_path / 'mine/1.0.0')['unused'].values()
  assert unused['files'] == [
    'train/a/a.mp4',
    'train/a/again',
    'train/a/gone.mp4',
    'train/a/up',
    'train/c/deep/up',
    'train/c/z.mp4',
    'train/c2',
    'val/b/y2.mp4',
  ]
  assert 'did not use 8 files (links to what is there already' in (
    capsys.readouterr().err
  )


def test_an_annotated_link_is_found_and_its_file_taken_once(tmp_path, capsys):
  wanted = folder_of(tmp_path, 'a/x.mp4')
  (tmp_path / 'videos/a/y.mp4').symlink_to('x.mp4')
  (tmp_path / 'my.csv').write_text('a/y.mp4,a,train\na/x.mp4,b,train\n')
  assert prepare.main([*wanted, f'--annotations={tmp_path / "my.csv"}']) == 0
  (record,) = manifest_of(tmp_path / 'mine/1.0.0')
  assert (record['id'], record['labels']) == ('a/y', ['a'])
  assert 'left out 1 videos' in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == 'darwin', reason='names are UTF-8 there')
def test_names_that_are_not_utf8_are_quarantined_one_by_one(tmp_path, capsys):
  wanted = folder_of(tmp_path, *(f'a/{i}.mp4' for i in range(8)))
  bad = os.fsencode(tmp_path / 'videos') + b'/caf\xe9'
  os.mkdir(bad)
  for name in (b'/x.mp4', b'/caf\xe9.mp4'):
    with open(bad + name, 'wb') as file:
      file.write(videos.encode(num_frames=3))
  assert prepare.main(wanted) == 1
  assert '2 of 10 videos are damaged' in capsys.readouterr().err
  log = (tmp_path / 'mine/1.0.0/parts/quarantined.jsonl').read_text()
  assert [json.loads(line)['file'] for line in log.splitlines()] == [
    'caf\\xe9/caf\\xe9.mp4',
    'caf\\xe9/x.mp4',
  ]
  assert prepare.main([*wanted, '--max_bad_fraction=0.2']) == 0
  folder = tmp_path / 'mine/1.0.0'
  bad = summary_of(folder)['quarantined']
  assert [(b['file'], b['reason']) for b in bad] == [
    (file, 'its name is not UTF-8; rename it')
    for file in ('caf\\xe9/caf\\xe9.mp4', 'caf\\xe9/x.mp4')
  ]
  assert len(open_source(tmp_path, 'mine', 'train')) == 8
  assert prepare.main([*wanted, '--max_bad_fraction=0.2']) == 0
  assert 'already prepared' in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads everything')
def test_a_folder_that_cannot_be_read_is_named(tmp_path, capsys):
  wanted = folder_of(tmp_path, 'a/x.mp4', 'b/y.mp4')
  (tmp_path / 'videos/b').chmod(0)
  assert prepare.main(wanted) == 2
  assert 'videos/b: Permission denied' in capsys.readouterr().err


def test_the_manifest_tells_what_frames_show(tmp_path):
  assert prepare.main(folder_of(tmp_path, 'a/x.mp4')) == 0
  (record,) = manifest_of(tmp_path / 'mine/1.0.0')
  digest = hashlib.md5()
  with av.open(str(tmp_path / 'videos/a/x.mp4')) as container:
    for frame in container.decode(video=0):
      # Of 64 x 48 pixels in 4:2:0, rows are the planes' one after another.
      crc = zlib.crc32(frame.to_ndarray().tobytes())
      digest.update(crc.to_bytes(4, 'big'))
  assert record['frames_md5'] == digest.hexdigest()


@pytest.mark.parametrize('error', [TypeError, ValueError, KeyError])
def test_a_mistake_of_the_program_is_no_damaged_video(
  tmp_path, monkeypatch, capsys, error
):
  def mistaken(*unused):
    raise error('av.open() has changed')

  wanted = [*folder_of(tmp_path, 'a/x.mp4'), '--max_bad_fraction=1']
  monkeypatch.setattr(transcode, 'checksum', mistaken)
  assert prepare.main(wanted) == 1
  said = capsys.readouterr().err
  assert error.__name__ in said and 'has changed' in said and 'bug' in said


def test_a_lack_of_memory_is_no_damaged_video(tmp_path, monkeypatch, capsys):
  def lacking(*unused):
    raise MemoryError('nothing left')

  wanted = [*folder_of(tmp_path, 'a/x.mp4'), '--max_bad_fraction=1']
  monkeypatch.setattr(transcode, 'orientation', lacking)
  assert prepare.main(wanted) == 1
  assert 'out of memory at' in capsys.readouterr().err


@pytest.mark.parametrize(
  'flags,message',
  [
    (['--dataset=k400'], 'invalid choice'),
    (['--videos=nowhere'], 'there is no folder nowhere'),
    (['--annotations=nowhere.csv'], 'no file or folder nowhere.csv'),
    (['--annotations='], '--annotations is missing'),
    (['--name=A-b'], "--name is 'A-b'"),
    (['--crf=60'], '--crf is 60; it must be from 0 to 51'),
    (['--short_side_px=255'], 'an even number'),
    (['--num_classes=9'], 'the annotation has 2 classes'),
    (['--num_classes=1', '--classes=x'], 'exclude each other'),
    (['--classes=nowhere'], 'no file nowhere'),
    (['--dataset=folder', '--annotations='], '--name is missing'),
    (['--beam_options=--x=1'], 'needs a --beam_runner'),
    (['--unknown=1'], 'unrecognized arguments: --unknown=1'),
    ([f'--classes={sys.executable}'], 'as UTF-8'),
  ],
)
def test_bad_input_is_one_line_and_code_2(kinetics, capsys, flags, message):
  try:
    code = prepare.main([*arguments(kinetics), *flags])
  except SystemExit as stop:
    code = stop.code
  error = capsys.readouterr().err
  assert code == 2 and message in error
  assert error.startswith('error: ') and error.count('\n') == 1
  assert not (kinetics / 'out').exists()


def test_two_runs_do_not_write_one_folder(kinetics):
  plan = prepare.make_plan(prepare._parse(arguments(kinetics)))
  with prepare._locked(plan.folder):
    with pytest.raises(ConfigError, match='another run is writing'):
      prepare.prepare(prepare._parse(arguments(kinetics)), progress=False)


def children(pid):
  path = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  return [int(child) for child in path.read_text().split()]


def is_alive(pid):
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  except FileNotFoundError:
    return False
  return state.split()[0] != 'Z'


def wait_until(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def start_that_waits(kinetics):
  """Starts two workers; with all shards but one written, one of them hangs.

  Returns:
    The process, the path of the file that it waits for, and its contents.
  """
  # Reading a pipe without a writer takes until the run is killed.
  pipe = a_file(kinetics)
  encoded = pipe.read_bytes()
  pipe.unlink()
  os.mkfifo(pipe)
  run = subprocess.Popen(
    [sys.executable, '-m', 'mgjax.data.prepare']
    + arguments(kinetics, workers=2),
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  parts = kinetics / 'out/kinetics400/1.0.0/parts'
  wait_until(lambda: len(list(parts.glob('*-0000?.jsonl'))) == 4)
  return run, pipe, encoded


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_killed_run_continues_without_its_finished_shards(kinetics):
  assert prepare.main(arguments(kinetics, f'--out={kinetics / "whole"}')) == 0
  whole = kinetics / 'whole/kinetics400/1.0.0'

  run, pipe, encoded = start_that_waits(kinetics)
  folder = kinetics / 'out/kinetics400/1.0.0'
  workers = children(run.pid)
  assert len(workers) >= 2
  run.send_signal(signal.SIGKILL)
  run.communicate()
  wait_until(lambda: not any(is_alive(worker) for worker in workers))
  assert not (folder / 'dataset_info.json').exists()
  done = {p: p.stat().st_mtime_ns for p in folder.glob('*array_record-?????-*')}
  done = {p: t for p, t in done.items() if p.suffix != '.tmp'}
  assert len(done) == 4

  pipe.unlink()
  pipe.write_bytes(encoded)
  assert prepare.main(arguments(kinetics)) == 0
  assert done == {p: p.stat().st_mtime_ns for p in done}
  assert_same(folder, whole)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_the_death_of_a_worker_ends_the_run_and_keeps_its_shards(kinetics):
  run, pipe, encoded = start_that_waits(kinetics)
  workers = children(run.pid)
  parts = kinetics / 'out/kinetics400/1.0.0/parts'
  # The other worker has nothing left to do, and its note goes.
  wait_until(
    lambda: ['val1_' in p.read_text() for p in parts.glob('at-*')] == [True]
  )
  (place,) = parts.glob('at-*')
  os.kill(int(place.name.removeprefix('at-')), signal.SIGKILL)
  _, errors = run.communicate(timeout=60)
  assert run.returncode == 1
  assert 'error: a worker died at validate/testifying/val1_' in errors
  assert '(Killed)' in errors and 'start again' in errors
  wait_until(lambda: not any(is_alive(worker) for worker in workers))
  folder = kinetics / 'out/kinetics400/1.0.0'
  assert len(list((folder / 'parts').glob('*-0000?.jsonl'))) == 4

  pipe.unlink()
  pipe.write_bytes(encoded)
  assert prepare.main(arguments(kinetics)) == 0
  assert len(manifest_of(folder)) == len(CLIPS) + 1


def write_and_die(shard):
  """Writes a shard in a worker that dies at a certain video."""
  load = transcode.load

  def deadly(path, encoding):
    if path.name.startswith('val1'):
      how = pathlib.Path(shard.videos, 'how').read_text()
      os._exit(3) if how == 'exit' else os.kill(os.getpid(), signal.SIGKILL)
    return load(path, encoding)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(transcode, 'load', deadly)
    WRITE_AND_COUNT(shard)


WRITE_AND_COUNT = prepare._write_and_count


@pytest.mark.parametrize('how', ['exit', 'kill'])
def test_a_file_that_kills_two_workers_is_left_out(
  kinetics, monkeypatch, capsys, how
):
  (kinetics / 'videos/how').write_text(how)
  monkeypatch.setattr(prepare, '_write_and_count', write_and_die)
  wanted = arguments(kinetics, '--max_bad_fraction=0.2', workers=2)
  name = 'validate/testifying/val1_000001_000011.mp4'
  if how == 'kill':
    # That may have been the system, short of memory: a person should know.
    for _ in range(2):
      assert prepare.main(wanted) == 1
      assert f'died at {name} (Killed)' in capsys.readouterr().err
    assert prepare.main(wanted) == 0
  else:
    assert prepare.main(wanted) == 0
    going_on = f'a worker died at {name} (exit code 3); going on'
    assert capsys.readouterr().err.count(going_on) == 2
  folder = kinetics / 'out/kinetics400/1.0.0'
  (bad,) = summary_of(folder)['quarantined']
  cause = {'exit': 'exit code 3', 'kill': 'Killed'}[how]
  assert bad['file'] == name
  assert bad['reason'] == f'kills the process that reads it: {cause}'
  assert summary_of(folder)['splits']['train']['stored'] == 5


def test_a_file_is_read_again_after_it_was_replaced(kinetics):
  wanted = arguments(kinetics)
  plan = prepare.make_plan(prepare._parse(wanted))
  parts = plan.folder / 'parts'
  parts.mkdir(parents=True)
  (item, *_), key = plan.shards[-1].items, prepare._key
  other = item._replace(mtime_ns=item.mtime_ns - 1)
  deaths = [{**key(i), 'cause': 'Killed'} for i in (item, other, other)]
  log = parts / 'deaths.jsonl'
  log.write_text(''.join(f'{json.dumps(death)}\n' for death in deaths))
  assert prepare.main(wanted) == 0
  assert summary_of(plan.folder)['quarantined'] == []


@pytest.mark.parametrize(
  'runner,code,message',
  [
    ('Other', 2, '--beam_runner=Other, --beam_options="": no such runner'),
    ('Direct', 1, 'Apache Beam, Direct: a worker failed'),
    (None, 2, 'pip install -r requirements-beam.txt'),
  ],
)
def test_an_error_of_beam_is_one_line(
  kinetics, monkeypatch, capsys, runner, code, message
):
  class Pipeline:
    def __init__(self, runner, options):
      if runner != 'Direct':
        raise ValueError('no such runner')

    def __or__(self, step):
      return self

    def run(self):
      raise RuntimeError('a worker\nfailed')

  step = lambda *unused: None
  beam = types.SimpleNamespace(
    Pipeline=Pipeline, Create=step, Reshuffle=step, Map=step
  )
  options = types.SimpleNamespace(PipelineOptions=lambda words: words)
  name = 'apache_beam'
  monkeypatch.setitem(sys.modules, name, beam if runner else None)
  monkeypatch.setitem(
    sys.modules,
    f'{name}.options',
    types.SimpleNamespace(pipeline_options=options),
  )
  wanted = arguments(kinetics, f'--beam_runner={runner}')
  assert prepare.main(wanted) == code
  error = capsys.readouterr().err
  assert message.replace('"', "'") in error
  assert error.startswith('error: ') and error.count('\n') == 1


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('apache_beam') is None,
  reason='needs requirements-beam.txt, which training does not',
)
# TFDS 4.9.10 with the older protobuf that Beam 2.77 asks for.
@pytest.mark.filterwarnings('ignore:label.. is deprecated:DeprecationWarning')
def test_beam_writes_the_same_data_set(kinetics):
  assert prepare.main(arguments(kinetics)) == 0
  command = [sys.executable, '-m', 'mgjax.data.prepare']
  more = [f'--out={kinetics / "beam"}', '--beam_runner=DirectRunner']
  subprocess.run([*command, *arguments(kinetics, *more)], cwd=ROOT, check=True)
  assert_same(
    kinetics / 'beam/kinetics400/1.0.0', kinetics / 'out/kinetics400/1.0.0'
  )
