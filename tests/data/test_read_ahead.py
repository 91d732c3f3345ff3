"""Batches made in processes are those of threads, whatever happens to them."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mgjax.cli import RunError
from mgjax.data import read_ahead, sources, stream
from mgjax.setup import grids
from tests.data.test_stream import Few


@pytest.fixture
def clips(tiny_config):
  source = sources.open_source(tiny_config, 'train')
  schedule = grids.schedule(tiny_config, len(source))
  return stream.TrainStream(tiny_config, schedule, source)


@pytest.fixture
def two_processes(tiny_config):
  tiny_config.data.worker_processes = 2
  return tiny_config.data


def assert_batch(got: dict, want: dict) -> None:
  assert got.keys() == want.keys()
  for name in ('ids', 'skipped'):
    assert got[name] == want[name]
  for name in ('video', 'label', 'flip'):
    np.testing.assert_array_equal(got[name], want[name])
    assert got[name].dtype == want[name].dtype


def test_a_killed_worker_is_replaced_without_losing_or_repeating_a_clip(
  clips, two_processes, capfd
):
  del two_processes
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


def test_the_last_batch_is_the_end(clips, two_processes):
  del two_processes
  total = clips.schedule.total_steps
  (batch,) = clips.batches(total - 1)
  assert_batch(batch, clips.batch(total - 1))


def test_evaluation_reads_in_processes_too(tiny_config, two_processes):
  del two_processes
  source = sources.open_source(tiny_config, 'validation')
  views = stream.EvalStream(tiny_config, source, 48)
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
      stream.Video = crash
    return self.source.read(index, short_px=short_px)


def crash(video: bytes) -> None:
  os.kill(os.getpid(), signal.SIGSEGV)


def test_a_video_that_the_decoder_crashes_on_is_named(tiny_config, clips):
  tiny_config.data.worker_processes = 1
  bad = clips.video_index(clips.schedule.clips_before(2) + 1)
  name = clips.source[bad].id
  step = next(i for i in range(1, 3) if name in clips.batch(i)['ids'])
  deadly = dataclasses.replace(clips, source=Deadly(clips.source, bad))
  with pytest.raises(RunError) as caught:
    list(deadly.batches(1))
  told = str(caught.value)
  assert 'making batches from step ' in told
  assert f'(SIGSEGV) in step {step}, at video {name!r}' in told
  assert 'data.worker_processes=0 does not help' in told
  assert 'memory' not in told


def dying(number: int, folder: str) -> dict:
  """Kills the first three processes that come to it."""
  if number == 2 and len(os.listdir(folder)) < 3:
    open(f'{folder}/{os.getpid()}', 'w').close()
    os.kill(os.getpid(), signal.SIGKILL)
  return {'number': np.array(number)}


def test_workers_that_die_of_no_batch_are_told_to_take_less_memory(
  tiny_config, tmp_path
):
  tiny_config.data.worker_processes = 1
  make_batch = functools.partial(dying, folder=str(tmp_path))
  with pytest.raises(RunError, match='from batch 0 to 3.*less memory') as error:
    list(read_ahead.read_ahead(make_batch, range(4), tiny_config.data))
  assert 'dies too' not in str(error.value)


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
from mgjax.config import fields
from tests.data import test_read_ahead
from mgjax.data import read_ahead

if __name__ == '__main__':
  data = fields.base().data
  data.worker_processes = 2
  batches = read_ahead.read_ahead(test_read_ahead.failing, range(1), data)
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
