"""Readers of videos are compared on the same clips from the same files."""

import os
import pathlib

import numpy as np
import pytest

from experiments import tabulate
from experiments.bench import decode_speed, kinetics_like, worker
from mgjax import cli
from tests.experiments.rows import rows_of

TORCHVISION_PYTHON = os.environ.get('MGJAX_TORCHVISION_PYTHON')
OLD_WAYS = ('whole span', 'mgjax', 'prepared')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A short generated video, prepared: the folder, and a config of it."""
  folder = tmp_path_factory.mktemp('data')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(kinetics_like, 'FRAMES', 80)
    kinetics_like.prepare_data(folder, 1, 250)
    config = cli.read_config(decode_speed.CONFIG)
    config = config.copy_and_resolve_references()
    config.data.dir = str(folder)
    yield folder, config


@pytest.fixture
def one_grid(monkeypatch):
  """Keeps one grid: (a, b) are the first frame of its crops and their size."""

  def keep(crop_px):
    original = decode_speed.grids_of
    monkeypatch.setattr(
      decode_speed,
      'grids_of',
      lambda schedule: [
        ranges for ranges in original(schedule) if ranges.grid.H == crop_px
      ][:1],
    )

  return keep


def test_every_reader_has_the_files_and_the_prepared_ones(data, one_grid):
  one_grid(112)
  asked = []

  def ask(request):
    clip = request['clip']
    asked.append({**clip, 'bytes': pathlib.Path(clip['path']).stat().st_size})
    shape = (len(clip['offsets']), *clip['crop'][2:], 3)
    np.save(clip['pixels'], np.zeros(shape, np.float32))
    return {'cpu_s': 0.5, 'wall_s': 2.0}

  folder, config = data
  (row,) = decode_speed.measure(config, folder, 1, ask)
  assert list(row['cpu_ms']) == list(decode_speed._WAYS)
  assert row['cpu_ms']['torchvision'] == 500
  assert row['wall_ms']['torchvision, prepared'] == 2000
  # The same clip in both, and once before the timing.
  sizes = [clip.pop('bytes') for clip in asked]
  paths = [clip.pop('path') for clip in asked]
  assert asked == asked[:1] * 4
  assert asked[0]['min_px'] == row['jitter_px'][0] == 128
  assert len(asked[0]['offsets']) == row['T']
  assert len(set(paths)) == 2
  (video,) = (folder / 'videos/train').glob('*/*.mp4')
  assert video.stat().st_size in sizes
  # Black frames are another clip; ours is nearly the same.
  assert row['mean_error']['torchvision'] > 20
  assert row['mean_error']['mgjax'] < 1
  assert row['mean_error']['whole span, prepared'] < 6


def test_without_torchvision_the_others_are_timed(data, one_grid):
  one_grid(112)
  folder, config = data
  (row,) = decode_speed.measure(config, folder, 1)
  assert list(row['cpu_ms']) == [
    *('whole span', 'mgjax', 'whole span, prepared', 'prepared')
  ]


@pytest.mark.slow
@pytest.mark.skipif(
  not TORCHVISION_PYTHON,
  reason='MGJAX_TORCHVISION_PYTHON names no interpreter with the reader.',
)
def test_torchvision_reads_the_same_frames(data, one_grid):
  # Not resized by the reader: the full grid's least short side is the video's.
  one_grid(224)
  folder, config = data
  decode_speed.find_reader(TORCHVISION_PYTHON)
  module = 'experiments.bench.torchvision_worker'
  with worker.started(TORCHVISION_PYTHON, module, {}) as ask:
    ask({'load': {k: list(config.data[k]) for k in ('mean', 'std')}})
    (row,) = decode_speed.measure(config, folder, 2, ask)
  assert row['max_error']['torchvision'] < 0.01


@pytest.mark.parametrize('code', ['exit 1', 'echo no such reader >&2; exit 1'])
def test_an_interpreter_without_the_reader_is_refused(code, tmp_path, capsys):
  python = tmp_path / 'python'
  python.write_text(f'#!/bin/sh\n{code}\n')
  python.chmod(0o755)
  for path in (python, tmp_path / 'none'):
    argv = ['decode_speed', f'--torch_python={path}', f'--records={tmp_path}']
    main, define_flags = decode_speed.main, decode_speed.define_flags
    assert cli.run(main, define_flags, argv, takes_config=False) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'--torch_python={path}: no video reader' in line
  assert not (tmp_path / 'decode_speed').exists()


def result(cpu_ms, **machine):
  """A record of one grid whose ways took these milliseconds."""
  others = {way: 0.5 for way in cpu_ms if way != 'whole span'}
  return {
    'command': 'x',
    'commit': 'a' * 40,
    'changed_files': '',
    'num_videos': 1,
    'num_clips': 2,
    'key_frames': 250,
    'machine': {
      **{'cpu': 'a processor', 'num_cpus': 1, 'load': [0.5, 0, 0]},
      **{'python': '3', 'av': '1', 'opencv': '2'},
      **machine,
    },
    'grids': [
      {
        **{'T': 8, 'H': 112, 'cpu_ms': cpu_ms, 'wall_ms': cpu_ms},
        **{'mean_error': others, 'max_error': others},
      }
    ],
  }


NEW = dict(zip(decode_speed._WAYS, (400, 200, 100, 80, 50, 10), strict=True))


def test_ratios_are_of_readers_of_the_same_files(monkeypatch):
  old = dict(zip(OLD_WAYS, (400, 100, 10), strict=True))
  monkeypatch.setattr(
    decode_speed, '_load', lambda: {'new': result(NEW), 'old': result(old)}
  )
  rows = [
    [row[key] for key in list(row)[1:-3]]
    for row in rows_of(decode_speed.make()[0])
  ]
  span = lambda x: f'{x:.1f} to {x:.1f}'
  assert rows == [
    ['as they were', span(2.5), span(5), span(10), span(4), span(2)],
    ['prepared', span(12.5), span(20), span(100), span(8), span(5)],
    ['as they were', span(2.5), '', span(10), span(4), ''],
    ['prepared', '', '', span(100), '', ''],
  ]


def test_a_page_has_the_versions_and_every_way():
  page = decode_speed.format_report(result(NEW, torch='4', torchvision='5'))
  assert 'torch 4, torchvision 5;' in page
  cells = ('8 x 112²', *(f'{1e3 / ms:.1f}' for ms in NEW.values()))
  assert page.count(tabulate.line(cells)) == 2
  assert '0.50 (0.5)' in page
