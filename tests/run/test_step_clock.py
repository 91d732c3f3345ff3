"""What counts as a wait for data, and how much of it the demo's runs have."""

import json
import pathlib
import time

import pytest

from mgjax.run.clock import Marks, StepClock, Times

RECORDS = pathlib.Path(__file__).parents[2] / 'experiments/records'


class Result:
  """A result that the device needs some time for."""

  def __init__(self, seconds: float):
    self._ready_at = time.perf_counter() + seconds

  def block_until_ready(self) -> 'Result':
    time.sleep(max(0.0, self._ready_at - time.perf_counter()))
    return self

  def __float__(self) -> float:
    return 0.0


@pytest.fixture
def clock():
  clock = StepClock(Times())
  yield clock
  clock.close()


def run_step(clock, *, batch_s, step_s, synchronous=False):
  """Waits for a batch, hands it to the device; returns how long it waited."""
  asked = time.perf_counter()
  time.sleep(batch_s)
  got = time.perf_counter()
  result = Result(step_s)
  if synchronous:
    result.block_until_ready()
  clock.dispatched(
    {'loss': result},
    Marks(asked, got, got, got),
    lambda *_: None,
  )
  return got - asked


def test_a_wait_of_an_idle_device_counts(clock):
  clock.restart()
  waited = run_step(clock, batch_s=0.05, step_s=0.02)
  clock.drain()
  assert clock.times.data_s == pytest.approx(waited, abs=1e-3)
  assert clock.times.step_s > 0.01


def test_a_wait_beside_a_step_does_not_count(clock):
  clock.restart()
  first = run_step(clock, batch_s=0.0, step_s=0.2)
  run_step(clock, batch_s=0.05, step_s=0.02)
  clock.drain()
  assert clock.times.data_s == pytest.approx(first, abs=1e-3)
  assert clock.times.step_s > 0.15


def test_a_step_that_the_call_waits_for_counts_as_a_step(clock):
  clock.restart()
  run_step(clock, batch_s=0.0, step_s=0.1, synchronous=True)
  clock.drain()
  assert clock.times.step_s == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_the_demos_device_waits_for_data_a_tenth_of_the_time_at_most(seed):
  """After the first minute, with two workers: as recorded."""
  folder = RECORDS / f'moving_digits/both-1.5-seed{seed}'
  config = json.loads((folder / 'config.json').read_text())
  assert config['data']['num_workers'] in (0, 2)
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  waited = total = before = 0.0
  for row in map(json.loads, lines):
    if 'wait_fraction' not in row:
      continue
    if row['train_s'] > 60:
      seconds = row['train_s'] - max(before, 60)
      waited, total = waited + row['wait_fraction'] * seconds, total + seconds
    before = row['train_s']
  assert total > 100
  assert waited < 0.1 * total
