"""A run that is killed and started again equals one that was not, bit for bit.

Runs are processes of their own and are killed with SIGKILL: nothing in them
can prepare for it.
"""

import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mgjax import metrics

CONFIG = 'configs/moving_digits.py:size=tiny,grid=both'


def start(
  workdir: pathlib.Path, data_dir: pathlib.Path, *overrides: str
) -> subprocess.Popen:
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'mgjax.train',
      f'--config={CONFIG}',
      f'--workdir={workdir}',
      f'--config.data.dir={data_dir}',
      '--config.train.checkpoint_every_steps=4',
      '--config.norm.precise_batches=1',
      *overrides,
    ],
    stderr=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ,
  )


def finish(process: subprocess.Popen) -> None:
  _, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors


def wait_until(process: subprocess.Popen, condition) -> None:
  """Waits; a process that ends before is fine (it was too late to kill)."""
  while process.poll() is None and not condition():
    time.sleep(0.002)


def last_step(workdir: pathlib.Path) -> int:
  lines = metrics.read_metrics(workdir)
  return lines[-1]['step'] if lines else 0


def kill_at(
  step: int, workdir, data_dir, which=signal.SIGKILL, overrides=()
) -> int:
  """Starts the run and kills it once `step` is done; returns its exit code.

  A run that goes on from `step` or later is killed as soon as it has started.
  """
  path = workdir / 'metrics.jsonl'
  version = lambda: path.stat().st_mtime_ns if path.exists() else None
  before = version()
  process = start(workdir, data_dir, *overrides)
  # The lines of the last attempt are there until the run has started, which
  # writes the file anew.
  wait_until(process, lambda: version() != before)
  wait_until(process, lambda: last_step(workdir) >= step)
  process.send_signal(which)
  process.communicate()
  return process.returncode


def losses_and_clips(workdir: pathlib.Path) -> list[tuple]:
  return [
    (m['step'], m['loss'], m['grad_norm'], m['ids_crc32'])
    for m in metrics.read_metrics(workdir)
    if 'loss' in m
  ]


def final_state(workdir: pathlib.Path) -> dict:
  steps = [int(p.name) for p in (workdir / 'checkpoints').iterdir()]
  path = workdir / 'checkpoints' / str(max(steps)) / 'state'
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(path.absolute())


def assert_same_run(a: pathlib.Path, b: pathlib.Path) -> None:
  assert losses_and_clips(a) == losses_and_clips(b)
  first, second = final_state(a), final_state(b)
  assert jax.tree.structure(first) == jax.tree.structure(second)
  for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope='module')
def undisturbed(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed')
  finish(start(workdir, data_dir))
  return workdir


def test_a_kill_in_a_short_cycle_and_one_after_a_phase_change_leave_no_trace(
  undisturbed, data_dir, tmp_path
):
  plan = json.loads((undisturbed / 'plan.json').read_text())
  first, second = (p['end_step'] for p in plan['phases'][:2])
  assert first >= 5
  # 5 % 3 = 2: inside a cycle of three.
  for step in (5, second + 1):
    assert kill_at(step, tmp_path, data_dir) == -signal.SIGKILL
  finish(start(tmp_path, data_dir))
  assert_same_run(undisturbed, tmp_path)


def test_a_second_launch_reads_its_programs_from_disk(
  undisturbed, data_dir, tmp_path
):
  finish(start(tmp_path, data_dir))
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['num_compiled'] == summary['num_grids']
  assert summary['num_from_disk'] == summary['num_grids']
  assert_same_run(undisturbed, tmp_path)


def test_sigterm_writes_a_checkpoint_and_says_restart_me(
  undisturbed, data_dir, tmp_path
):
  process = start(tmp_path, data_dir)
  wait_until(process, lambda: last_step(tmp_path) >= 6)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 75
  assert 'the same command goes on from there' in errors
  stopped_at = last_step(tmp_path)
  assert (tmp_path / 'checkpoints' / str(stopped_at)).is_dir()
  finish(start(tmp_path, data_dir))
  assert_same_run(undisturbed, tmp_path)


@pytest.mark.slow
def test_random_kills_and_stops_leave_no_trace(data_dir, tmp_path):
  """25 signals; `make chaos` sets another number of them.

  A SIGTERM lets the run go on for a step or two, so the run is long enough for
  all of them: 10 steps for each.
  """
  seed = time.time_ns()
  print('seed', seed)  # Shown where the test fails.
  random_numbers = random.Random(seed)
  number = int(os.environ.get('MGJAX_CHAOS_SIGNALS', 25))
  epochs = 4 * math.ceil(max(number, 8) / 4)
  overrides = (
    f'--config.optim.total_epochs={epochs}',
    f'--config.optim.lr_steps=({epochs // 2},{3 * epochs // 4})',
    '--config.eval.every=10.0',
  )
  undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'
  finish(start(undisturbed, data_dir, *overrides))
  plan = json.loads((undisturbed / 'plan.json').read_text())
  steps = sorted(
    random_numbers.sample(range(1, plan['total_steps'] - 10), k=number)
  )
  # As many of either kind.
  expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75}
  signals = [list(expected)[i % 2] for i in range(number)]
  random_numbers.shuffle(signals)
  for step, which in zip(steps, signals, strict=True):
    code = kill_at(step, killed, data_dir, which, overrides)
    assert code == expected[which], (step, which)
  finish(start(killed, data_dir, *overrides))
  assert_same_run(undisturbed, killed)


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_no_trace(
  undisturbed, data_dir, tmp_path
):
  folder = tmp_path / 'checkpoints'

  def writing() -> bool:
    return folder.is_dir() and any('tmp' in p.name for p in folder.iterdir())

  kills = 0
  for _ in range(6):
    process = start(tmp_path, data_dir)
    # What the last kill left is removed at the start.
    wait_until(process, lambda: folder.is_dir() and not writing())
    wait_until(process, writing)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kills += writing()
  assert kills >= 2
  finish(start(tmp_path, data_dir))
  assert_same_run(undisturbed, tmp_path)
