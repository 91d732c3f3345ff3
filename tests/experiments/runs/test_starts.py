"""What ran a training is noted whenever it starts and ends."""

import concurrent.futures
import subprocess

import pytest

from experiments.runs import starts
from mgjax.cli import ConfigError

VERSION = {'commit': 'abc', 'package_tree': 'p'}
FIRST = starts.Call(0, 100.0, 150.0)


@pytest.fixture
def train(monkeypatch, tmp_path):
  """Returns a function that starts a training of a known end."""

  def start(took, version=VERSION, launched=True):
    def call(command, log, environ):
      if launched:
        number = len([*tmp_path.glob('events.*')])
        (tmp_path / f'events.out.tfevents.{number}').write_text('')
      return took

    monkeypatch.setattr(starts, 'call', call)
    starts.train(('-m', 'mgjax.train'), tmp_path, version)

  return start


def test_each_of_two_commands_at_once_has_its_own_cpu_seconds():
  burn = (
    'import time\nwhile time.process_time() < {}: pass\n'
    # Of a child that it waits for as well.
    'import subprocess, sys\n'
    "child = 'import time\\nwhile time.process_time() < {}: pass'\n"
    "subprocess.run([sys.executable, '-c', child])"
  )
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    idle, busy = pool.map(
      starts.call, [('-c', 'pass'), ('-c', burn.format(0.6, 0.6))]
    )
  assert (idle.code, busy.code) == (0, 0)
  assert idle.cpu_seconds < 0.6
  assert 1.2 <= busy.cpu_seconds < 2.4
  assert busy.wall_seconds > idle.wall_seconds


def test_a_command_that_fails_has_its_code_and_its_output(tmp_path):
  with (tmp_path / 'log').open('w') as log:
    took = starts.call(('-c', 'print("said"); raise SystemExit(75)'), log)
    killed = starts.call(
      ('-c', 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'), log
    )
  assert (took.code, killed.code) == (75, -9)
  assert (tmp_path / 'log').read_text() == 'said\n'


def test_a_run_that_was_stopped_and_went_on_has_the_seconds_of_both_starts(
  train, tmp_path
):
  with pytest.raises(subprocess.CalledProcessError) as stopped:
    train(starts.Call(75, 10.0, 15.0))
  assert stopped.value.returncode == 75
  train(FIRST, {**VERSION, 'commit': 'def'})  # Not of the package.
  found = starts.conditions(tmp_path)
  assert (found['wall_seconds'], found['cpu_seconds']) == (110.0, 165.0)
  assert found['resumed'] and found['commit'] == 'abc'


def test_seconds_that_nobody_could_note_are_not_known(train, tmp_path):
  def killed(*arguments):
    raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(starts, 'call', killed)
    with pytest.raises(KeyboardInterrupt):
      starts.train((), tmp_path, VERSION)
  train(FIRST)
  found = starts.conditions(tmp_path)
  assert found['cpu_seconds'] is found['wall_seconds'] is None
  # It had not come to its first step.
  assert found['resumed'] is False


def test_a_training_that_outlives_its_launch_has_no_seconds(tmp_path):
  def killed(*arguments):
    (tmp_path / 'events.out.tfevents.0').write_text('')
    raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(starts, 'call', killed)
    with pytest.raises(KeyboardInterrupt):
      starts.train((), tmp_path, VERSION)
  found = starts.conditions(tmp_path)
  assert found['load_average_after'] is found['cpu_seconds'] is None
  assert found['resumed'] is False


def test_a_launch_by_hand_makes_a_run_resumed_and_its_seconds_unknown(
  train, tmp_path
):
  (tmp_path / 'events.out.tfevents.by-hand').write_text('')
  train(FIRST)
  found = starts.conditions(tmp_path)
  assert found['resumed'] and found['cpu_seconds'] is None


def test_settings_that_are_refused_are_no_start(train, tmp_path):
  with pytest.raises(subprocess.CalledProcessError):
    train(starts.Call(2, 3.0, 4.0), launched=False)
  train(FIRST)
  assert starts.conditions(tmp_path)['cpu_seconds'] == 150.0


def test_a_run_that_other_code_began_does_not_go_on(train, tmp_path):
  train(starts.Call(0, 1.0, 1.0))
  before = starts.read(tmp_path)
  with pytest.raises(ConfigError, match='since this run began .commit abc.'):
    train(FIRST, {**VERSION, 'package_tree': 'other'})
  assert starts.read(tmp_path) == before
