"""Prepared data sets open, and say what is in them."""

import collections
import hashlib
import importlib.util
import pathlib
import resource
import subprocess
import sys
import types
import zlib

import av
import pytest
import tensorflow_datasets as tfds

from mgjax.data import scanning
from mgjax.data.prepare import resume
from tests.data import videos
from tests.data.prepare.prepared import (
  a_file,
  arguments,
  assert_same,
  examples_of,
  folder_of,
  manifest_of,
  open_source,
  run,
  summary_of,
)
from tests.data.prepare.test_annotations import charades

ROOT = pathlib.Path(__file__).parents[3]


def test_prepared_set_opens_with_tfds_and_holds_the_files(kinetics):
  assert run(arguments(kinetics)) == 0
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
  assert run(arguments(kinetics, '--max_bad_fraction=0.2')) == 0
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
    assert run(arguments(kinetics)) == 1
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  told = [t for t in capsys.readouterr().err.splitlines() if 'error' in t]
  assert len(told) == 1 and told[0].startswith('error: ')
  assert 'array_record' in told[0] and 'cannot be written' in told[0]
  assert run(arguments(kinetics)) == 0


def test_a_shard_may_be_empty(kinetics):
  for name in ('-train0', '_train1', 'xtrain2', '-train3'):
    a_file(kinetics, name).unlink()
  flags = ['--videos_per_shard=1', '--max_missing_fraction=0.84']
  assert run(arguments(kinetics, *flags)) == 0
  source = open_source(kinetics / 'out', 'kinetics400', 'train')
  assert [e.id for e in examples_of(source)] == ['_train4_000001_000011']


def test_transcoded_copy_has_a_config_of_its_own(kinetics):
  assert run(arguments(kinetics)) == 0
  assert run(arguments(kinetics, '--short_side_px=32', '--gop=4')) == 0
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
  assert run(wanted) == 2
  assert 'no file of the train split' in capsys.readouterr().err
  (kinetics / 'mini.txt').write_text('air drumming\n')
  assert run([*wanted, '--name=mini']) == 0
  source = open_source(kinetics / 'out', 'mini', 'train')
  assert source.label_names == ('air drumming',) and len(source) == 5
  assert run(arguments(kinetics, '--num_classes=2')) == 0
  assert (kinetics / 'out/kinetics400_mini2/1.0.0/summary.json').exists()


def test_charades_has_actions_for_its_frame_folders(tmp_path):
  (tmp_path / 'text').mkdir()
  charades(tmp_path / 'text')
  for number, name in enumerate(('46GP8', 'N11GT', 'T1')):
    videos.write_frames(tmp_path / 'videos' / name, seed=number)
  assert (
    run(
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
  assert run([*wanted, '--name=mine/all']) == 0
  source = open_source(kinetics / 'out', 'mine/all', 'validation')
  assert source.label_names == ('air_drumming', 'testifying')
  assert len(source) == 3
  (kinetics / 'my.csv').write_text(
    'path,label,split\nvalidate/testifying/val0_000001_000011.mp4,a,train\n'
  )
  csv = f'--annotations={kinetics / "my.csv"}'
  assert run([*wanted, csv, '--name=csv']) == 0
  assert len(open_source(kinetics / 'out', 'csv', 'train')) == 1


def test_videos_with_the_id_of_another_are_named(kinetics, capsys):
  a_file(kinetics, 'val0').with_suffix('.avi').write_bytes(b'')
  wanted = [
    '--dataset=folder',
    f'--out={kinetics / "out"}',
    f'--videos={kinetics / "videos"}',
    '--num_workers=1',
    '--max_bad_fraction=1',
  ]
  assert run([*wanted, '--name=mine']) == 0
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
  assert run([*wanted, *more]) == 0
  assert line in capsys.readouterr().err
  (duplicate,) = summary_of(kinetics / 'out/csv/1.0.0')['duplicates']
  assert duplicate['label'] == 'b'


def test_a_mini_set_is_not_blamed_for_its_classes(kinetics, capsys):
  assert run(arguments(kinetics)) == 0
  assert '2 classes; published are 400' in capsys.readouterr().err
  assert run(arguments(kinetics, '--num_classes=2')) == 0
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
  monkeypatch.setattr(resume.shutil, 'disk_usage', lambda path: usage)
  assert run(wanted) == 2
  assert 'GiB are needed' in capsys.readouterr().err
  usage.free = int(2.5 * size)
  assert run(wanted) == 0


def test_the_manifest_tells_what_frames_show(tmp_path):
  assert run(folder_of(tmp_path, 'a/x.mp4')) == 0
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
  monkeypatch.setattr(scanning, 'checksum', mistaken)
  assert run(wanted) == 1
  said = capsys.readouterr().err
  assert error.__name__ in said and 'has changed' in said and 'bug' in said


def test_a_lack_of_memory_is_no_damaged_video(tmp_path, monkeypatch, capsys):
  def lacking(*unused):
    raise MemoryError('nothing left')

  wanted = [*folder_of(tmp_path, 'a/x.mp4'), '--max_bad_fraction=1']
  monkeypatch.setattr(scanning, 'orientation', lacking)
  assert run(wanted) == 1
  assert 'out of memory at' in capsys.readouterr().err


@pytest.mark.parametrize(
  'flags,message',
  [
    (['--dataset=k400'], 'value should be one of <kinetics400|'),
    (['--videos=nowhere'], 'there is no folder nowhere'),
    (['--annotations=nowhere.csv'], 'no file or folder nowhere.csv'),
    (['--annotations='], '--annotations is missing'),
    (['--name=A-b'], "--name is 'A-b'"),
    (['--crf=60'], '--crf=60: it must be from 0 to 51'),
    (['--short_side_px=255'], 'an even number'),
    (['--num_classes=9'], 'the annotation has 2 classes'),
    (['--num_classes=1', '--classes=x'], 'exclude each other'),
    (['--classes=nowhere'], 'no file nowhere'),
    (['--dataset=folder', '--annotations='], '--name is missing'),
    (['--beam_options=--x=1'], 'needs a --beam_runner'),
    (['--unknown=1'], "Unknown command line flag 'unknown'"),
    ([f'--classes={sys.executable}'], 'as UTF-8'),
  ],
)
def test_bad_input_is_one_line_and_code_2(kinetics, capsys, flags, message):
  code = run([*arguments(kinetics), *flags])
  error = capsys.readouterr().err
  assert code == 2 and message in error
  assert error.startswith('error: ') and error.count('\n') == 1
  assert not (kinetics / 'out').exists()


@pytest.mark.parametrize(
  'runner,code,message',
  [
    ('Other', 2, '--beam_runner=Other, --beam_options="": no such runner'),
    ('Direct', 1, 'Apache Beam, Direct: a worker failed'),
    (None, 2, "pip install 'apache-beam>=2.77"),
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
  assert run(wanted) == code
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
  assert run(arguments(kinetics)) == 0
  program = [sys.executable, '-m', 'mgjax.data.prepare']
  more = [f'--out={kinetics / "beam"}', '--beam_runner=DirectRunner']
  subprocess.run([*program, *arguments(kinetics, *more)], cwd=ROOT, check=True)
  assert_same(
    kinetics / 'beam/kinetics400/1.0.0', kinetics / 'out/kinetics400/1.0.0'
  )


def test_one_damaged_file_of_32_is_named_and_left_out(tmp_path, capsys):
  names = [f'{"ab"[i % 2]}/{i}.mp4' for i in range(32)]
  wanted = folder_of(tmp_path, *names)
  damaged = tmp_path / 'videos/b/7.mp4'
  damaged.write_bytes(damaged.read_bytes()[:300])
  assert run([*wanted, '--validation_fraction=0.2']) == 0
  said = capsys.readouterr().err
  assert 'damaged and left out: b/7.mp4: ' in said
  assert '  a: train 13, validation 3\n' in said
  assert (
    summary_of(tmp_path / 'mine/1.0.0')['splits']['train']['stored']
    + (summary_of(tmp_path / 'mine/1.0.0')['splits']['validation']['stored'])
    == 31
  )


def test_one_damaged_file_of_few_is_left_out(tmp_path, capsys):
  wanted = folder_of(
    tmp_path, *(f'{c}/{i}.mp4' for c in 'ab' for i in range(3))
  )
  (tmp_path / 'videos/b/1.mp4').write_bytes(b'no video')
  assert run(wanted) == 0
  assert 'damaged and left out: b/1.mp4: ' in capsys.readouterr().err
  (tmp_path / 'videos/b/2.mp4').write_bytes(b'no video')
  assert run([*wanted, '--name=two']) == 1


def test_more_than_an_eighth_of_a_small_set_is_too_much(tmp_path, capsys):
  names = [f'a/{i}.mp4' for i in range(16)]
  wanted = folder_of(tmp_path, *names)
  for number in (3, 4):
    (tmp_path / f'videos/a/{number}.mp4').write_bytes(b'no video')
  assert run([*wanted, '--max_bad_fraction=0']) == 1
  (tmp_path / 'videos/a/5.mp4').write_bytes(b'no video')
  assert run(wanted) == 1
  assert '3 of 16 videos are damaged' in capsys.readouterr().err
  (tmp_path / 'videos/a/5.mp4').write_bytes(videos.encode(num_frames=3))
  assert run(wanted) == 0


def test_a_class_without_validation_videos_is_named(tmp_path, capsys):
  wanted = folder_of(tmp_path, 'a/0.mp4', 'a/1.mp4', 'b/0.mp4')
  assert run([*wanted, '--validation_fraction=0.2']) == 0
  said = capsys.readouterr().err
  assert 'validation: no video of 1 classes (b)\n' in said
  assert run([*wanted, '--name=all']) == 0  # All are training videos.
  assert 'no validation videos' in capsys.readouterr().err
