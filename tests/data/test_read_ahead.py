"""Batches made in processes are those of threads, whatever happens to them."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mgjax.cli import RunError
from mgjax.data import read_ahead, sources
from mgjax.setup import data as data_setup
from mgjax.setup import grids
from tests.data.fake_sources import Few


@pytest.fixture
def two_processes(tiny_config):
  tiny_config.data.worker_processes = 2
  return data_setup.workers(tiny_config)


@pytest.fixture
def clips(tiny_config, two_processes):
  """The stream of a run that decodes in two processes."""
  del two_processes  # It has changed the config.
  return make_stream(tiny_config)


def make_stream(config):
  source = data_setup.source(config, 'train')
  schedule = grids.schedule(config, len(source))
  return data_setup.train_stream(config, schedule, source)


def assert_batch(got: dict, want: dict) -> None:
  assert got.keys() == want.keys()
  for name in ('ids', 'skipped'):
    assert got[name] == want[name]
  for name in ('video', 'label', 'flip'):
    np.testing.assert_array_equal(got[name], want[name])
    assert got[name].dtype == want[name].dtype


def test_a_killed_worker_is_replaced_without_losing_or_repeating_a_clip(
  clips, capfd
):
  first = 5
  batches = clips.batches(first)
  assert_batch(next(batches), clips.batch(first))
  worker = multiprocessing.active_children()[0]
  os.kill(worker.pid, signal.SIGKILL)
  worker.join()
  # More than can have been ready by then.
  for step in range(first + 1, first + 11):
    assert_batch(next(batches), clips.batch(step))
  batches.close()
  assert capfd.readouterr().err.count('a data worker has died; replaced') == 1
  assert not multiprocessing.active_children()


def test_the_last_batch_is_the_end(clips):
  total = clips.schedule.total_steps
  (batch,) = clips.batches(total - 1)
  assert_batch(batch, clips.batch(total - 1))


def test_evaluation_reads_in_processes_too(tiny_config, two_processes):
  del two_processes
  source = data_setup.source(tiny_config, 'validation')
  views = data_setup.eval_stream(tiny_config, source, batch_size=48)
  batches = list(views.batches())
  assert len(batches) == views.num_batches
  for number, batch in enumerate(batches):
    want = views.batch(number)
    assert batch.keys() == want.keys()
    for name, value in want.items():
      np.testing.assert_array_equal(batch[name], value)


def deadly(number: int) -> dict:
  if number == 2:
    os.kill(os.getpid(), signal.SIGKILL)
  return {'number': np.array(number)}


def test_a_batch_that_kills_its_workers_ends_the_run(two_processes):
  made = []
  with pytest.raises(RunError, match='3 data workers have died in a row'):
    for batch in read_ahead.read_ahead(deadly, range(4), two_processes):
      made.append(int(batch['number']))
  # One that is made at the same time may die with it.
  assert made in ([], [0], [0, 1])


class Deadly(Few):
  """All examples of a source, with a video that the decoder crashes on."""

  def __init__(self, source: sources.Source, bad: int):
    super().__init__(source, len(source))
    self.bad = bad

  def read(self, index, *, short_px):
    if index == self.bad:
      sources.Video = crash
    return self.source.read(index, short_px=short_px)


def crash(video: bytes, in_order: object) -> None:
  os.kill(os.getpid(), signal.SIGSEGV)


def test_a_video_that_the_decoder_crashes_on_ends_the_run_with_its_steps(
  tiny_config,
):
  tiny_config.data.worker_processes = 1
  clips = make_stream(tiny_config)
  bad = clips.order.example(clips.schedule.clips_before(2) + 1)
  deadly = dataclasses.replace(clips, source=Deadly(clips.source, bad))
  with pytest.raises(RunError) as caught:
    list(deadly.batches(1))
  told = str(caught.value)
  assert told.startswith('3 data workers have died in a row, making batches')
  assert 'from step 1 to ' in told or 'from step 2 to ' in told
  assert 'SIGSEGV' in told and 'memory' not in told
  assert 'data.worker_processes=0 does not help' in told
  assert '\n' not in told


def dying(number: int) -> dict:
  """Kills every process at its first batch, so that none comes in between."""
  del number
  os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_workers_that_are_killed_are_told_to_take_less_memory(tiny_config):
  tiny_config.data.worker_processes = 1
  workers = data_setup.workers(tiny_config)
  with pytest.raises(RunError, match='from batch 0 to 3.*less memory'):
    list(read_ahead.read_ahead(dying, range(4), workers))


def failing(number: int) -> dict:
  if number == 1:
    raise RunError('the mount has gone')
  return {'number': np.array(number)}


def test_an_error_in_a_process_ends_the_run_with_its_cause(two_processes):
  batches = read_ahead.read_ahead(failing, range(4), two_processes)
  next(batches)
  with pytest.raises(RunError, match='the mount has gone'):
    next(batches)


_PARENT = """
import multiprocessing, os, signal, sys
from tests.data import test_read_ahead
from mgjax.data import read_ahead

if __name__ == '__main__':
  workers = read_ahead.Workers(1, 2, 6)
  batches = read_ahead.read_ahead(test_read_ahead.failing, range(1), workers)
  next(batches)
  print(*(child.pid for child in multiprocessing.active_children()))
  sys.stdout.flush()
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent(tmp_path):
  script = tmp_path / 'parent.py'
  script.write_text(_PARENT)
  found = subprocess.run(
    [sys.executable, str(script)],
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
    capture_output=True,
    text=True,
  )
  workers = [int(word) for word in found.stdout.split()]
  assert len(workers) == 2
  until = time.monotonic() + 20
  while any(is_running(pid) for pid in workers):
    assert time.monotonic() < until
    time.sleep(0.1)


def is_running(pid: int) -> bool:
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False
