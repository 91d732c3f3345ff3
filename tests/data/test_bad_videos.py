"""Training replaces damaged videos, counts them, and stops at too many."""

import json
import shutil

import pytest

from mgjax.cli import RunError
from mgjax.data import sources
from mgjax.run import bad_videos, launch
from mgjax.setup import data as data_setup


def test_each_is_counted_once_and_named(capsys):
  bad = {}
  for skipped in (
    [('a', 'cut off')],
    [],
    [('a', 'cut off'), ('b', 'no frames')],
  ):
    bad_videos.note(bad, skipped, num_train=100, max_fraction=0.02)
  assert bad == {'a': 'cut off', 'b': 'no frames'}
  told = capsys.readouterr().err
  assert told.count('cannot decode') == 2


def test_ids_with_colons_are_different_videos():
  """Folders of videos can have them, and the id is the path."""
  bad = {}
  skipped = [('run/take: 1.mp4', 'cut off'), ('run/take: 2.mp4', 'cut off')]
  bad_videos.note(bad, skipped, num_train=100, max_fraction=0.02)
  assert bad == dict(skipped)


def test_too_many_stop_the_run():
  bad = {'a': 'cut off'}
  with pytest.raises(RunError, match='2 of 100 .*max_bad_fraction=0.01.*b: no'):
    bad_videos.note(bad, [('b', 'no frames')], num_train=100, max_fraction=0.01)


def test_a_resumed_run_with_a_lower_limit_stops_at_once():
  with pytest.raises(RunError, match='the last is a: cut off'):
    bad_videos.note({'a': 'cut off'}, [], num_train=100, max_fraction=0.0)


def test_the_runs_record_names_them(tiny_config, tmp_path, monkeypatch):
  read = sources.Source.read

  def damaged(self, index, *, short_px):
    example = read(self, index, short_px=short_px)
    if self.split == 'train' and index == 3:
      return example._replace(video=example.video[:100])
    return example

  # One that cannot be decoded, and one that cannot be read.
  shutil.copytree(tiny_config.data.dir, tmp_path / 'data')
  tiny_config.data.dir = str(tmp_path / 'data')
  (path,) = (tmp_path / 'data').rglob('*-train.array_record*')
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  monkeypatch.setattr(sources.Source, 'read', damaged)
  tiny_config.data.max_bad_fraction = 0.05
  tiny_config.grid.mode = 'none'
  tiny_config.optim.total_epochs = 1
  tiny_config.optim.schedule = 'constant'
  tiny_config.optim.warmup_epochs = 0.0
  launch.train(tiny_config, tmp_path / 'run')
  source = data_setup.source(tiny_config, 'train')
  names = {source.name_of(i) for i in range(len(source))}
  (damaged,) = (name for name in names if name.startswith(path.name))
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  assert set(summary['bad_videos']) == {source[3].id, damaged}
  assert 'hash mismatch' in summary['bad_videos'][damaged]
