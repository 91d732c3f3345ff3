"""One run, one folder: a second one is refused, and a lost one is noticed."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import fsspec
import pytest

from mgjax import cli, files, train
from mgjax.cli import ConfigError, RunError
from mgjax.run import launch, run_lock
from mgjax.run.run_lock import RunLock
from tests import speck
from tests.run.test_faults import Bucket


@pytest.fixture
def config(data_dir):
  """A run of ten steps with a checkpoint after every step."""
  config = speck.get_config('grid=none')
  config.data.dir = str(data_dir)
  config.data.batch_size = 24
  config.optim.total_epochs = 1
  config.optim.lr_steps = ()
  config.norm.precise_batches = 0
  config.train.checkpoint_every_steps = 1
  return config


@pytest.fixture
def quick(monkeypatch):
  """Locks that count often and wait briefly."""
  monkeypatch.setattr(run_lock, 'BEAT_S', 0.05)
  monkeypatch.setattr(run_lock, 'STALE_S', 1.0)
  monkeypatch.setattr(run_lock, 'SETTLE_S', 0.3)


def entry(workdir) -> dict:
  return json.loads((workdir / 'run.lock').read_text())


def contents(folder) -> dict:
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in folder.rglob('*')
    if p.is_file()
  }


def test_a_second_run_is_told_who_has_the_folder_and_touches_nothing(
  tmp_path, data_dir, capsys, monkeypatch
):
  monkeypatch.setattr(launch, 'make_job', None)  # It comes not so far.
  half_written = tmp_path / 'checkpoints' / '4.orbax-checkpoint-tmp'
  half_written.mkdir(parents=True)
  (half_written / 'data').write_text('of the first run')
  with RunLock(tmp_path) as lock:
    lock.take()
    before = contents(tmp_path)
    argv = ['train', '--config=tests/speck.py', f'--workdir={tmp_path}']
    argv.append(f'--config.data.dir={data_dir}')
    assert cli.run(launch.main, train.define_flags, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    who = f'process {os.getpid()} on host {socket.gethostname()} (since 20'
    assert f'{tmp_path} is in use by {who}' in line
    assert contents(tmp_path) == before
  assert not (tmp_path / 'run.lock').exists()


def test_the_folder_is_free_after_an_error(config, tmp_path, monkeypatch):
  def stop(*args, **kwargs):
    assert entry(tmp_path)['pid'] == os.getpid()
    raise RunError('the power is gone')

  monkeypatch.setattr(launch, 'Training', stop)
  with pytest.raises(RunError, match='the power is gone'):
    launch.train(config, tmp_path)
  assert not (tmp_path / 'run.lock').exists()


def test_settings_that_cannot_work_leave_no_folder(config, tmp_path):
  config.data.batch_size = 23
  with pytest.raises(ConfigError):
    launch.train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_killed_process_does_not_keep_the_folder(tmp_path, capsys):
  script = """if True:
    import sys, time
    from mgjax.run.run_lock import RunLock
    RunLock(sys.argv[1]).take()
    print('taken', flush=True)
    time.sleep(600)
  """
  process = subprocess.Popen(
    [sys.executable, '-c', script, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'taken\n'
  with pytest.raises(ConfigError, match=f'in use by process {process.pid} on'):
    RunLock(tmp_path).take()
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert entry(tmp_path)['pid'] == process.pid
  with RunLock(tmp_path) as lock:
    lock.take()
    assert entry(tmp_path)['pid'] == os.getpid()
  assert capsys.readouterr().err == ''  # It has not waited.


def test_a_number_that_another_process_has_by_now_is_no_hindrance(tmp_path):
  """As in a container, where every start has number 1."""
  with RunLock(tmp_path) as lock:
    lock.take()
    left = (tmp_path / 'run.lock').read_text()
  (tmp_path / 'run.lock').write_text(left)  # Its process lives: this one.
  with RunLock(tmp_path) as lock:
    lock.take()


@pytest.mark.parametrize('left', ['', '{"pid": 1, "ho', 'null'])
def test_an_entry_that_was_not_finished_is_no_hindrance(tmp_path, left, quick):
  (tmp_path / 'run.lock').write_text(left)
  with RunLock(tmp_path) as lock:
    lock.take()
    lock.check()


def test_a_run_on_another_machine_has_the_folder_as_long_as_it_counts(
  tmp_path, quick, capsys
):
  path = tmp_path / 'run.lock'
  other = {'host': 'far', 'pid': 7, 'since': 'noon', 'machine': 'm', 'run': 'r'}
  dead = threading.Event()
  path.write_text(json.dumps({**other, 'beat': 0}))

  def count():
    for beat in range(1, 10**6):
      if dead.wait(0.1):
        return
      path.write_text(json.dumps({**other, 'beat': beat}))

  thread = threading.Thread(target=count)
  thread.start()
  lock = RunLock(tmp_path)
  try:
    with pytest.raises(ConfigError, match='by (process 7 on host far|another)'):
      lock.take()
  finally:
    dead.set()
    thread.join()
  assert 'waiting up to' in capsys.readouterr().err
  with lock:
    lock.take()
    assert entry(tmp_path)['pid'] == os.getpid()


def taken_at_once(workdir) -> list[RunLock]:
  """Locks that two starts at the same moment have got."""
  locks = [RunLock(workdir), RunLock(workdir)]
  refused = []

  def take(lock):
    try:
      lock.take()
    except ConfigError:
      refused.append(lock)

  threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return [lock for lock in locks if lock not in refused]


@pytest.fixture(params=['object store', 'disk without locks'])
def shared(request, tmp_path, monkeypatch, quick):
  """A folder where the system cannot say who has it."""
  if request.param == 'object store':
    fsspec.register_implementation('gcs', Bucket, clobber=True)
    Bucket.store.clear()
    return files.epath.Path('gs://bucket/run')

  def flock(*args):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', flock)
  return files.epath.Path(tmp_path)


def test_of_two_starts_at_the_same_moment_one_gets_the_folder(
  shared, monkeypatch
):
  both = threading.Barrier(2, timeout=60)
  wait = RunLock._wait_for_others

  def wait_and_meet(self, *args):
    wait(self, *args)
    both.wait()

  monkeypatch.setattr(RunLock, '_wait_for_others', wait_and_meet)
  locks = taken_at_once(shared)
  assert len(locks) == 1
  locks[0].check()
  locks[0].release()


def test_a_new_folder_is_not_waited_for(shared, capsys):
  with RunLock(shared) as lock:
    lock.take()
    lock.check()
  assert 'waiting' not in capsys.readouterr().err


def test_one_of_two_starts_gets_a_folder_on_a_disk(tmp_path):
  for _ in range(20):
    locks = taken_at_once(tmp_path)
    assert len(locks) == 1
    locks[0].release()


def test_a_lock_that_is_removed_while_it_is_taken_is_made_again(
  tmp_path, monkeypatch
):
  """The first run ends between the second one's look and its grip."""
  first, second, third = (RunLock(tmp_path) for _ in range(3))
  first.take()
  lock_file = fcntl.flock

  def flock(*args):
    first.release()
    lock_file(*args)

  monkeypatch.setattr(fcntl, 'flock', flock)
  second.take()
  second.check()
  with pytest.raises(ConfigError, match='is in use by'):
    third.take()
  second.release()


def test_without_locks_of_the_system_the_holder_counts(shared):
  first, second = RunLock(shared), RunLock(shared)
  first.take()
  first.check()
  with pytest.raises(ConfigError, match=f'process {os.getpid()} on host'):
    second.take()
  first.check()
  # The first one dies: it counts no more.
  first._ended.set()
  second.take()
  second.check()
  # It was not dead, only slow; it must not write any more.
  with pytest.raises(RunError, match='has been taken over by process'):
    first.check()
  first.release()
  second.check()
  second.release()
  assert not (shared / 'run.lock').exists()


def test_a_folder_that_is_removed_is_noticed(tmp_path):
  with RunLock(tmp_path / 'run') as lock:
    lock.take()
    lock.check()
    shutil.rmtree(tmp_path / 'run')
    with pytest.raises(RunError, match='moved or removed .* no checkpoint of'):
      lock.check()
    (tmp_path / 'run').mkdir()  # By another one.
    with pytest.raises(RunError, match='moved or removed'):
      lock.check()
  assert (tmp_path / 'run').is_dir()


def at_step(monkeypatch, step, action):
  """Calls a function before a run writes the checkpoint of a step."""
  save = launch.Training._save

  def act_and_save(self, replace=False):
    if self.done == step:
      self._checkpoints.wait()
      action()
    save(self, replace)

  monkeypatch.setattr(launch.Training, '_save', act_and_save)


def test_a_run_whose_folder_is_moved_ends_and_goes_on_there(
  config, tmp_path, monkeypatch
):
  old, new = tmp_path / 'old', tmp_path / 'new'

  def move():
    old.rename(new)
    old.mkdir()  # Something else comes in its place.

  with monkeypatch.context() as patch:
    at_step(patch, 3, move)
    words = f'moved to {new} .* {new}/checkpoints/2: .*--workdir={new} goes on'
    with pytest.raises(RunError, match=words):
      launch.train(config, old)
  assert not list(old.iterdir())
  assert not (new / 'run.lock').exists()
  names = {p.name for p in (new / 'checkpoints').iterdir()}
  assert names == {'1', '2'}
  assert launch.train(config, new)['steps'] == 10
  assert not (new / 'run.lock').exists()


def test_a_folder_that_is_moved_between_checkpoints_is_named(
  config, tmp_path, monkeypatch
):
  """The first thing that fails then is some file that is not found."""
  old, new = tmp_path / 'old', tmp_path / 'new'

  def move_and_finish(self, startup_s):
    self._checkpoints.wait()  # Or 10 may never be complete.
    old.rename(new)
    raise FileNotFoundError(errno.ENOENT, 'No such file', str(old / 'x'))

  monkeypatch.setattr(launch.Training, 'finish', move_and_finish)
  with pytest.raises(RunError, match=f'moved to {new} .*checkpoints/10: '):
    launch.train(config, old)


def test_a_run_whose_settings_are_changed_ends_before_its_next_checkpoint(
  config, tmp_path, monkeypatch
):
  path = tmp_path / 'config.json'

  def change():
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))

  at_step(monkeypatch, 3, change)
  with pytest.raises(RunError, match='config.json has been changed .*points/2'):
    launch.train(config, tmp_path)
  assert not (tmp_path / 'checkpoints' / '3').exists()
  assert not (tmp_path / 'run.lock').exists()
  with pytest.raises(ConfigError, match='seed: 1 -> 0'):
    launch.train(config, tmp_path)


def test_two_processes_can_write_the_same_small_file(tmp_path):
  """Two evaluations of one run do."""
  script = """if True:
    import sys
    from mgjax import files
    print('ready', flush=True)
    sys.stdin.readline()
    for i in range(1000):
      files.write_text(sys.argv[1], sys.argv[2] * 1000)
  """
  path = tmp_path / 'eval.json'
  command = [sys.executable, '-c', script, str(path)]
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  with contextlib.ExitStack() as stack:
    writers = [
      stack.enter_context(subprocess.Popen([*command, name], **pipes))
      for name in 'ab'
    ]
    for writer in writers:
      assert writer.stdout.readline() == 'ready\n'
    for writer in writers:
      writer.stdin.write('\n')
      writer.stdin.flush()
    assert [writer.wait() for writer in writers] == [0, 0]
  assert path.read_text() in ('a' * 1000, 'b' * 1000)
  assert list(tmp_path.iterdir()) == [path]
