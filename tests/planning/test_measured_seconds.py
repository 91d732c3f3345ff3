"""What a machine has measured is kept in a file that may be lost or damaged."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import pytest

from mgjax.grids import Grid
from mgjax.planning import measured
from mgjax.planning.measured import Network, Seconds, Where

GRID = Grid(8, 64, 64, 16)
STEP = ('train', GRID)
WHERE = Where('a' * 64, '0.12.0', 'cpu', 2)


def network(where=WHERE, date='2026-01-01', checkpoint_s=None, **seconds):
  return Network(where, {STEP: Seconds(**seconds)}, checkpoint_s, date)


@pytest.fixture
def file(tmp_path):
  return tmp_path / 'cache' / 'measured.json'


def test_what_is_added_is_read_again(file):
  new = network(run_s=0.5, compile_s=20.0, built_as='b', checkpoint_s=0.1)
  measured.add(file, new)
  assert measured.read(file) == [new]
  assert measured.read(file.with_name('none.json')) == []


def test_cold_and_warm_times_of_a_program_are_kept_apart(file):
  measured.add(file, network(run_s=0.5, compile_s=20.0, built_as='b'))
  measured.add(file, network(load_s=1.5, built_as='b', date='2026-01-02'))
  (found,) = measured.read(file)
  assert found.programs[STEP] == Seconds(0.5, False, 20.0, 1.5, 'b')
  assert found.date == '2026-01-02'


@pytest.mark.parametrize(
  'old,new,kept',
  [(False, False, 2.0), (True, True, 2.0), (True, False, 2.0)]
  + [(False, True, 1.0)],
)
def test_a_step_beside_a_compilation_replaces_no_undisturbed_one(
  old, new, kept
):
  found = Seconds(1.0, contended=old).updated(Seconds(2.0, contended=new))
  assert found.run_s == kept
  assert found.contended == (old and new)


def test_a_median_is_that_of_undisturbed_runs_without_the_first():
  collected = measured.Collected()
  for seconds in (30.0, 20.0):
    collected.add(STEP, seconds, contended=True)
  assert collected.programs() == {STEP: Seconds(20.0, contended=True)}
  for seconds in (9.0, 1.0, 2.0, 3.0):
    collected.add(STEP, seconds)
  assert collected.programs() == {STEP: Seconds(2.0)}
  assert collected.checkpoint_s is None
  collected.add_checkpoint(0.25)
  assert collected.checkpoint_s == 0.25


def test_the_newest_measurement_of_the_same_kind_is_found(file):
  on_gpu = WHERE._replace(device='NVIDIA H200')
  for where, date in ((WHERE, '2026-01-01'), (on_gpu, '2026-01-02')):
    measured.add(file, network(where, date, run_s=1.0))
  networks = measured.read(file)
  find = lambda **changes: measured.find(
    networks,
    **{**WHERE._replace(device=None)._asdict(), **changes},
  )
  assert find().where == on_gpu
  assert find(device='cpu').where == WHERE
  for change in ({'settings': 'b'}, {'jax': '0.13.0'}, {'num_devices': 1}):
    assert find(**change) is None


GOOD = {
  'kind': 'train',
  **GRID._asdict(),
  **dataclasses.asdict(Seconds(run_s=1.0)),
}


def content(**changes):
  entry = {
    **WHERE._asdict(),
    'date': '2026-01-01',
    'checkpoint_s': None,
    'programs': [GOOD | changes],
  }
  return json.dumps({'format': 1, 'networks': [entry]})


def test_the_file_that_the_next_test_damages_is_good(file):
  file.parent.mkdir()
  file.write_text(content())
  assert measured.read(file) == [network(run_s=1.0)]


@pytest.mark.parametrize(
  'text',
  [
    *('', '{', '[]', '{}', 'null', '{"format": 2, "networks": []}', '\0'),
    *('{"format": 1}', '{"format": 1, "networks": [1]}'),
    *(content(run_s=-1.0), content(run_s='x'), content(kind='test')),
    *(content(T=0), content(H=1.5), content(compile_s=True)),
    *(content(run_s=float('nan')), content(run_s=float('inf'))),
    *(content(built_as=None), content(contended=0)),
  ],
)
def test_a_damaged_or_foreign_file_is_ignored_in_one_line(file, capsys, text):
  file.parent.mkdir()
  file.write_text(text)
  assert measured.read(file) == []
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and f'{file} has no times' in err
  # And it does not stay.
  measured.add(file, network(run_s=1.0))
  capsys.readouterr()
  assert measured.read(file) == [network(run_s=1.0)]
  assert capsys.readouterr().err == ''


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
  (tmp_path / 'cache').write_text('no folder')
  measured.add(tmp_path / 'cache' / 'measured.json', network(run_s=1.0))
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'cannot be written' in err


def test_a_disk_that_is_read_only_is_one_line(file, monkeypatch, capsys):
  def refuse(path, text):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

  measured.add(file, network(run_s=1.0))
  monkeypatch.setattr(measured.files, 'write_text', refuse)
  measured.add(file, network(run_s=2.0))
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'Read-only file system' in err
  assert measured.read(file) == [network(run_s=1.0)]


ADD_SOME = """
import pathlib, sys
from tests.planning.test_measured_seconds import WHERE, measured, network

for i in range(10):
  where = WHERE._replace(settings=f'{sys.argv[2]}-{i}')
  measured.add(pathlib.Path(sys.argv[1]), network(where, run_s=1.0))
"""


def test_what_two_processes_add_at_once_is_all_there(file):
  processes = [
    subprocess.Popen([sys.executable, '-c', ADD_SOME, str(file), str(n)])
    for n in range(2)
  ]
  for process in processes:
    assert process.wait() == 0
  found = {network.where.settings for network in measured.read(file)}
  assert found == {f'{n}-{i}' for n in range(2) for i in range(10)}
  # Nothing of them stays but the file and its lock.
  assert len([*file.parent.iterdir()]) == 2


def test_the_file_does_not_grow_for_ever(file, monkeypatch):
  monkeypatch.setattr(measured, '_MOST_NETWORKS', 3)
  for i in range(5):
    where = WHERE._replace(settings=str(i))
    measured.add(file, network(where, f'2026-01-0{i + 1}', run_s=1.0))
  kept = [network.where.settings for network in measured.read(file)]
  assert kept == ['2', '3', '4']


def test_other_kinds_of_machines_have_other_files(tmp_path, monkeypatch):
  here = measured.path(tmp_path)
  assert here == measured.path(tmp_path)
  monkeypatch.setattr(measured.environment, 'num_cpus', lambda: 1234)
  assert measured.path(tmp_path) != here
