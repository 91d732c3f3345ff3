"""A run that is killed and started again equals one that was not, bit for bit.

Runs are processes of their own and are killed with SIGKILL: nothing in them
can prepare for it.
"""

import json
import math
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from mgjax.run import run_folder
from tests.run_state import final_state

CONFIG = 'configs/moving_digits.py:size=tiny,grid=both,model=slow'


def start(
  workdir: pathlib.Path, data_dir: pathlib.Path, *flags: str, **environment: str
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
      *flags,
    ],
    stderr=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, **environment},
  )


def finish(process: subprocess.Popen) -> None:
  _, errors = process.communicate(timeout=900)
  assert process.returncode == 0, errors


def wait_until(process: subprocess.Popen, condition) -> None:
  """Waits; a process that ends before is fine (it was too late to kill)."""
  while process.poll() is None and not condition():
    time.sleep(0.002)


def last_step(workdir: pathlib.Path) -> int:
  lines = run_folder.read_metrics(workdir)
  return lines[-1]['step'] if lines else 0


def version(workdir: pathlib.Path) -> int:
  """Changes with every line of the run, and when the run is started."""
  path = workdir / 'metrics.jsonl'
  return path.stat().st_mtime_ns if path.exists() else 0


def wait_for_step(
  process: subprocess.Popen, workdir: pathlib.Path, step: int, before: int
) -> None:
  """Waits until `step` is done, at least until the run has started.

  Args:
    process: The run, or one of its processes.
    workdir: Its folder.
    step: The step.
    before: `version` before the process was started: the lines of the last
      attempt are there until the run has started, which writes the file anew.
  """
  wait_until(process, lambda: version(workdir) != before)
  wait_until(process, lambda: last_step(workdir) >= step)


def kill_at(step: int, workdir, data_dir) -> int:
  """Starts the run and kills it once `step` is done; returns its exit code.

  A run that goes on from `step` or later is killed as soon as it has started.
  """
  before = version(workdir)
  process = start(workdir, data_dir)
  wait_for_step(process, workdir, step, before)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return process.returncode


def losses_and_clips(workdir: pathlib.Path) -> list[tuple]:
  return [
    (m['step'], m['loss'], m['grad_norm'], m['ids_crc32'])
    for m in run_folder.read_metrics(workdir)
    if 'loss' in m
  ]


def assert_same_run(a: pathlib.Path, b: pathlib.Path) -> None:
  assert losses_and_clips(a) == losses_and_clips(b)
  first, second = final_state(a), final_state(b)
  assert jax.tree.structure(first) == jax.tree.structure(second)
  for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def event_steps(workdir: pathlib.Path) -> set[int]:
  """Steps of which TensorBoard's files have the loss, all launches together."""
  steps = set()
  for path in workdir.glob('events.out.tfevents.*'):
    data, at = path.read_bytes(), 0
    while at < len(data):
      length = int.from_bytes(data[at : at + 8], 'little')
      if at + length + 16 > len(data):
        break  # The kill came in between.
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
      if any(value.tag == 'train/loss' for value in event.summary.value):
        steps.add(event.step)
      at += length + 16
  return steps


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
  # Nor does TensorBoard lose a step.
  total = plan['total_steps']
  assert event_steps(tmp_path) == set(range(1, total + 1))


def test_a_second_launch_reads_its_programs_from_disk(
  undisturbed, data_dir, tmp_path
):
  finish(start(tmp_path, data_dir))
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert summary['num_compiled'] == summary['num_grids']
  assert summary['num_from_disk'] == summary['num_grids']
  # Those of evaluations and statistics as well.
  assert summary['programs']['compiled'] == 0
  assert summary['programs']['from_disk'] > summary['num_grids']
  assert_same_run(undisturbed, tmp_path)


def test_another_seed_rate_and_length_need_no_other_program(
  undisturbed, data_dir, tmp_path
):
  # A folder of its own: other tests add to that of all.
  programs = tmp_path / 'programs'
  programs.mkdir()
  for path in pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR']).glob('*-*'):
    shutil.copy2(path, programs)
  before = {path.name for path in programs.glob('*-cache')}
  assert before
  changes = (
    '--config.seed=4294967295',
    '--config.optim.base_lr=0.03',
    '--config.optim.warmup_epochs=0.5',
    '--config.optim.total_epochs=5',
    '--config.train.log_every_steps=3',
  )
  folder = {'JAX_COMPILATION_CACHE_DIR': str(programs)}
  finish(start(tmp_path / 'other', data_dir, *changes, **folder))
  assert losses_and_clips(tmp_path / 'other') != losses_and_clips(undisturbed)
  # Neither a step's nor that of the first weights. (Evaluations fall into other
  # phases, whose grids the statistics take.)
  new = {path.name for path in programs.glob('*-cache')} - before
  assert all(name.startswith('jit_stats_step-') for name in new), new


@pytest.mark.slow
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


def flags_of(**fields) -> tuple[str, ...]:
  return tuple(
    f'--config.{name.replace("__", ".")}={value}'
    for name, value in fields.items()
  )


class Setup(NamedTuple):
  """How a run that is killed is started."""

  overrides: tuple[str, ...] = ()
  devices: int = 1  # Of each process.
  processes: int = 1


SETUPS = {
  'plain': Setup(),
  'worker_processes': Setup(flags_of(data__worker_processes=2)),
  'everything': Setup(
    flags_of(
      optim__ema_decay=0.9,
      optim__schedule='cosine',
      augment__mixup_alpha=0.4,
      train__micro_batches=2,
      norm__precise_batches=2,
    )
  ),
  'two_devices': Setup(devices=2),
  'two_processes': Setup(processes=2),
}


def launch(setup: Setup, workdir, data_dir, epochs: int) -> list:
  """Starts the processes of a run."""
  with socket.socket() as free:
    free.bind(('', 0))
    port = free.getsockname()[1]
  env = os.environ | {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={setup.devices}'
  }
  started = []
  for i in range(setup.processes):
    command = [
      *(sys.executable, '-m', 'mgjax.train', '--config=tests/speck.py'),
      f'--workdir={workdir}',
      *flags_of(
        data__dir=data_dir,
        train__checkpoint_every_steps=4,
        train__log_every_steps=1,
        optim__total_epochs=epochs,
        optim__lr_steps=(epochs // 2, 3 * epochs // 4),
        eval__every=epochs / 3,
      ),
      *setup.overrides,
    ]
    if setup.processes > 1:
      command += [
        f'--coordinator_address=localhost:{port}',
        f'--num_processes={setup.processes}',
        f'--process_id={i}',
      ]
    with (workdir.parent / f'{workdir.name}.log').open('a') as log:
      started.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
  return started


def codes(processes: list) -> list[int]:
  return [process.wait(timeout=900) for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize('name', SETUPS)
def test_random_kills_and_stops_leave_no_trace(name, data_dir, tmp_path):
  """25 signals over all setups; `make chaos` sets another number of them.

  A SIGTERM lets the run go on for a step or two, so the run is long enough for
  all of them: 10 steps for each.
  """
  setup = SETUPS[name]
  seed = time.time_ns()
  print('seed', seed)  # Shown where the test fails.
  random_numbers = random.Random(seed)
  signals = int(os.environ.get('MGJAX_CHAOS_SIGNALS', 25))
  number = -(-signals // len(SETUPS))
  # 240 videos; a grid has 4 to 32 clips, 20 on average.
  epochs = 4 * math.ceil(max(number, 4) / 4)
  undisturbed, killed = tmp_path / 'undisturbed', tmp_path / 'killed'
  ended = codes(launch(setup, undisturbed, data_dir, epochs))
  assert ended == [0] * setup.processes, (
    tmp_path / 'undisturbed.log'
  ).read_text()
  plan = json.loads((undisturbed / 'plan.json').read_text())
  steps = sorted(
    random_numbers.sample(range(1, plan['total_steps'] - 10), k=number)
  )
  # As many of either kind.
  kinds = [(signal.SIGKILL, signal.SIGTERM)[i % 2] for i in range(number)]
  random_numbers.shuffle(kinds)
  for step, which in zip(steps, kinds, strict=True):
    before = version(killed)
    processes = launch(setup, killed, data_dir, epochs)
    victim = random_numbers.randrange(setup.processes)
    wait_for_step(processes[victim], killed, step, before)
    processes[victim].send_signal(which)
    # Where one process is killed, the others say that they can go on.
    expected = [75] * setup.processes
    if which == signal.SIGKILL:
      expected[victim] = -signal.SIGKILL
    log = (tmp_path / 'killed.log').read_text()
    assert codes(processes) == expected, (step, which, victim, log[-3000:])
  ended = codes(launch(setup, killed, data_dir, epochs))
  assert ended == [0] * setup.processes, (tmp_path / 'killed.log').read_text()
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
