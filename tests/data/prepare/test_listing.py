"""Every video gets its own file, and files that are not used are named."""

import json
import os
import pathlib
import sys

import pytest

from mgjax.data.prepare.annotations import Annotated
from mgjax.data.prepare.listing import find_file, list_files
from tests.data import videos
from tests.data.prepare.prepared import (
  examples_of,
  folder_of,
  manifest_of,
  open_source,
  run,
  summary_of,
)

ROOT = pathlib.Path(__file__).parents[3]


def test_of_files_with_one_name_that_of_the_split_and_class_is_taken():
  video = Annotated('v', 'validation', 'a b', ('v_1', 'v'))
  index = {
    'v_1': ['train/a_b/v_1.mp4', 'val/c/v_1.mp4', 'val/a_b/v_1.mp4'],
    'v': ['v.mp4'],
  }
  assert find_file(video, index) == 'val/a_b/v_1.mp4'
  assert find_file(video, {'v': ['v.mp4']}) == 'v.mp4'
  other = Annotated('x/v', 'train', 'x', ('x/v',))
  assert find_file(other, {'v': ['y/v.mp4', 'xx/v.mp4']}) is None


def test_an_exact_path_comes_before_the_end_of_another():
  index = {'x': ['a/run/x.mp4', 'bad/x.mp4', 'run/x.mp4', 'x.avi', 'x.mp4']}
  find = lambda name, file: find_file(
    Annotated(name, 'train', 'run', (name,), file=file), index
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
  assert run([*flags, '--validation_fraction=0']) == 0
  for example in examples_of(open_source(tmp_path, 'mine', 'train')):
    file = tmp_path / 'videos' / f'{example.id}.mp4'
    assert example.video == file.read_bytes()


def test_pictures_beside_videos_are_no_frames(tmp_path):
  path = tmp_path / 'train' / 'a' / 'x.mp4'
  path.parent.mkdir(parents=True)
  path.write_bytes(b'')
  path.with_suffix('.png').write_bytes(b'')
  videos.write_frames(tmp_path / 'train' / 'a' / 'y.z', suffix='.png')
  listing = list_files(tmp_path)
  assert listing.index == {'x': ['train/a/x.mp4'], 'y.z': ['train/a/y.z']}
  assert listing.others == ['train/a/x.png']


SUFFIXES = 'wmv ts mts m2ts 3gp gif ogv vob mxf asf divx'.split()


def test_every_usual_suffix_is_that_of_a_video(tmp_path):
  # What FFmpeg makes of a file does not depend on its name.
  wanted = folder_of(tmp_path, *(f'a/{s}.{s.upper()}' for s in SUFFIXES))
  assert run(wanted) == 0
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
  assert run([*wanted, *more]) == 0
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
  assert run(wanted) == 0
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
  assert run([*wanted, f'--annotations={tmp_path / "my.csv"}']) == 0
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
  assert run(wanted) == 1
  assert '2 of 10 videos are damaged' in capsys.readouterr().err
  log = (tmp_path / 'mine/1.0.0/parts/quarantined.jsonl').read_text()
  assert [json.loads(line)['file'] for line in log.splitlines()] == [
    'caf\\xe9/caf\\xe9.mp4',
    'caf\\xe9/x.mp4',
  ]
  assert run([*wanted, '--max_bad_fraction=0.2']) == 0
  folder = tmp_path / 'mine/1.0.0'
  bad = summary_of(folder)['quarantined']
  assert [(b['file'], b['reason']) for b in bad] == [
    (file, 'its name is not UTF-8; rename it')
    for file in ('caf\\xe9/caf\\xe9.mp4', 'caf\\xe9/x.mp4')
  ]
  assert len(open_source(tmp_path, 'mine', 'train')) == 8
  assert run([*wanted, '--max_bad_fraction=0.2']) == 0
  assert 'already prepared' in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads everything')
def test_a_folder_that_cannot_be_read_is_named(tmp_path, capsys):
  wanted = folder_of(tmp_path, 'a/x.mp4', 'b/y.mp4')
  (tmp_path / 'videos/b').chmod(0)
  assert run(wanted) == 2
  assert 'videos/b: Permission denied' in capsys.readouterr().err
