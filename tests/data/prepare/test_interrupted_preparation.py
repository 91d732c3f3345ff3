"""What an interrupted run has prepared is kept, and nothing else."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mgjax.data.prepare import shards, transcode, workers
from mgjax.data.prepare.annotations import Annotated, Annotations
from mgjax.data.prepare.layout import locked
from mgjax.data.prepare.plan import Item, Plan, Shard
from tests.data import videos
from tests.data.prepare.conftest import CLIPS
from tests.data.prepare.prepared import (
  a_file,
  arguments,
  assert_same,
  manifest_of,
  plan_of,
  run,
  summary_of,
)

ROOT = pathlib.Path(__file__).parents[3]


def test_same_command_does_nothing_and_another_is_refused(kinetics, capsys):
  assert run(arguments(kinetics)) == 0
  folder = kinetics / 'out/kinetics400/1.0.0'
  before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert run(arguments(kinetics)) == 0
  assert 'already prepared' in capsys.readouterr().err
  assert before == {p: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert run(arguments(kinetics, '--videos_per_shard=3')) == 2
  assert 'made from other files or settings' in capsys.readouterr().err


def test_too_many_damaged_videos_stop_and_more_may_be_allowed(kinetics, capsys):
  a_file(kinetics).write_bytes(b'')
  assert run(arguments(kinetics, '--max_bad_fraction=0')) == 1
  error = capsys.readouterr().err.splitlines()[-1]
  assert '1 of 8 videos are damaged' in error
  folder = kinetics / 'out/kinetics400/1.0.0'
  assert not (folder / 'dataset_info.json').exists()
  log = (folder / 'parts/quarantined.jsonl').read_text()
  assert 'val1' in log and 'not a readable video' in log
  done = {p: p.stat().st_mtime_ns for p in folder.glob('*train*')}
  assert len(done) == 3
  assert run(arguments(kinetics, '--max_bad_fraction=0.5')) == 0
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
  assert run(arguments(kinetics, '--max_bad_fraction=0')) == 1
  folder = kinetics / 'out/kinetics400/1.0.0'
  part = folder / 'parts/train-00000.jsonl'
  part.write_bytes(damage(part.read_bytes()))
  assert run(arguments(kinetics, '--max_bad_fraction=0.5')) == 0
  assert summary_of(folder)['splits']['train']['stored'] == 5


def test_shards_of_other_settings_and_files_are_written_again(kinetics):
  bad = a_file(kinetics)
  sound = bad.read_bytes()
  bad.write_bytes(b'')
  wanted = arguments(kinetics, '--name=k', '--max_bad_fraction=0')
  assert run(wanted) == 1
  bad.write_bytes(sound)
  folder = kinetics / 'out/k/1.0.0'
  assert len(list(folder.glob('*train*'))) == 3
  assert run([*wanted, '--short_side_px=32']) == 0
  stored = [r for r in manifest_of(folder) if r['status'] == 'stored']
  assert len(stored) == 8 and all(r['is_transcoded'] for r in stored)


def test_late_file_changes_its_own_shard_only(kinetics):
  plan = lambda: plan_of(arguments(kinetics))
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


def test_two_runs_do_not_write_one_folder(kinetics, capsys):
  plan = plan_of(arguments(kinetics))
  with locked(plan.folder):
    assert run(arguments(kinetics)) == 2
  assert 'another run is writing' in capsys.readouterr().err


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
  program = subprocess.Popen(
    [sys.executable, '-m', 'mgjax.data.prepare']
    + arguments(kinetics, workers=2),
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  parts = kinetics / 'out/kinetics400/1.0.0/parts'
  wait_until(lambda: len(list(parts.glob('*-0000?.jsonl'))) == 4)
  return program, pipe, encoded


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_killed_run_continues_without_its_finished_shards(kinetics):
  assert run(arguments(kinetics, f'--out={kinetics / "whole"}')) == 0
  whole = kinetics / 'whole/kinetics400/1.0.0'

  program, pipe, encoded = start_that_waits(kinetics)
  folder = kinetics / 'out/kinetics400/1.0.0'
  workers = children(program.pid)
  assert len(workers) >= 2
  program.send_signal(signal.SIGKILL)
  program.communicate()
  wait_until(lambda: not any(is_alive(worker) for worker in workers))
  assert not (folder / 'dataset_info.json').exists()
  done = {p: p.stat().st_mtime_ns for p in folder.glob('*array_record-?????-*')}
  done = {p: t for p, t in done.items() if p.suffix != '.tmp'}
  assert len(done) == 4

  pipe.unlink()
  pipe.write_bytes(encoded)
  assert run(arguments(kinetics)) == 0
  assert done == {p: p.stat().st_mtime_ns for p in done}
  assert_same(folder, whole)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_the_death_of_a_worker_ends_the_run_and_keeps_its_shards(kinetics):
  program, pipe, encoded = start_that_waits(kinetics)
  workers = children(program.pid)
  parts = kinetics / 'out/kinetics400/1.0.0/parts'
  # The other worker has nothing left to do, and its note goes.
  wait_until(
    lambda: ['val1_' in p.read_text() for p in parts.glob('at-*')] == [True]
  )
  (place,) = parts.glob('at-*')
  os.kill(int(place.name.removeprefix('at-')), signal.SIGKILL)
  _, errors = program.communicate(timeout=60)
  assert program.returncode == 1
  assert 'error: a worker died at validate/testifying/val1_' in errors
  assert '(Killed)' in errors and 'start again' in errors
  wait_until(lambda: not any(is_alive(worker) for worker in workers))
  folder = kinetics / 'out/kinetics400/1.0.0'
  assert len(list((folder / 'parts').glob('*-0000?.jsonl'))) == 4

  pipe.unlink()
  pipe.write_bytes(encoded)
  assert run(arguments(kinetics)) == 0
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


WRITE_AND_COUNT = workers.write_and_count


@pytest.mark.parametrize('how', ['exit', 'kill'])
def test_a_file_that_kills_two_workers_is_left_out(
  kinetics, monkeypatch, capsys, how
):
  (kinetics / 'videos/how').write_text(how)
  monkeypatch.setattr(workers, 'write_and_count', write_and_die)
  wanted = arguments(kinetics, '--max_bad_fraction=0.2', workers=2)
  name = 'validate/testifying/val1_000001_000011.mp4'
  if how == 'kill':
    # That may have been the system, short of memory: a person should know.
    for _ in range(2):
      assert run(wanted) == 1
      assert f'died at {name} (Killed)' in capsys.readouterr().err
    assert run(wanted) == 0
  else:
    assert run(wanted) == 0
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
  plan = plan_of(wanted)
  parts = plan.folder / 'parts'
  parts.mkdir(parents=True)
  (item, *_), key = plan.shards[-1].items, shards.key_of
  other = item._replace(mtime_ns=item.mtime_ns - 1)
  noted = [{**key(i), 'cause': 'Killed'} for i in (item, other, other)]
  log = parts / 'deaths.jsonl'
  log.write_text(''.join(f'{json.dumps(death)}\n' for death in noted))
  assert run(wanted) == 0
  assert summary_of(plan.folder)['quarantined'] == []


def test_shards_and_data_sets_of_earlier_versions_are_recognized():
  items = (
    Item('a/x', 'a/x.mp4', 1234, 5678, 0, ()),
    Item('b/y', 'b/y.mp4', 99, 1, None, ((1, 0.5, 2.25),)),
  )
  shard = Shard(
    videos='/v',
    folder='/d',
    file_name='mine-train.array_record-00000-of-00001',
    split='train',
    index=0,
    class_names=('a', 'b'),
    has_actions=True,
    encoding=transcode.Encoding(32, 12, 20, 29.97),
    items=items,
  )
  video = Annotated('c/z', 'train', 'a', ('c/z',))
  plan = Plan(
    name='mine',
    folder=pathlib.Path('/d'),
    annotations=Annotations(('a', 'b'), (video,)),
    shards=(shard,),
    missing=(video,),
    misnamed=(video._replace(id='c/w'),),
    duplicates=(),
    unused={},
  )
  # As computed by the version that stored them first.
  assert shard.fingerprint() == (
    '129952a1b196ca839da3c7d9b29da8c9365f9759df30507316c20e5b72ba013f'
  )
  assert plan.fingerprint() == (
    'c1c1f8d331f86e06a4e969874fbcb103097fdfc942df5722a745895e1940eb1b'
  )
