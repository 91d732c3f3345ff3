"""The benchmark of what other processes do after the death of one."""

import json
import threading

import pytest

from experiments.bench import dead_process
from experiments.runs import record


def test_the_record_is_shown_as_it_is():
  folder = record.RECORDS / 'dead_process'
  result = json.loads((folder / 'result.json').read_text())
  assert (folder / 'README.md').read_text() == dead_process.format_report(
    result
  )


def test_runs_that_do_not_end_are_counted_and_all_others_must_name():
  death = {'way': 'jax', 'state': 'sums', 'count': 3, 'victim': 0}
  other = {'code': -6, 'names': True}
  table = dead_process.deaths_table(
    {
      'deaths': [
        {**death, 'seconds': 2.0, 'survivors': [other, other]},
        {
          **death,
          'seconds': None,
          'survivors': [other, {'code': None, 'names': False}],
        },
      ]
    }
  )
  (row,) = table.rows
  assert row[4:] == ('1 of 2 did not end', '1 of 2', 'SIGABRT, none')


JAX_SAYS = (
  'The following tasks are unhealthy (stopped sending heartbeats):\n2\n11\n'
  'The tasks have crashed.'
)


@pytest.mark.parametrize(
  'said,victim,named',
  [
    (JAX_SAYS, 2, True),
    (JAX_SAYS, 11, True),
    (JAX_SAYS, 1, False),
    ('error: process 1 of 3 (host) has died. This process (2) ends', 1, True),
    ('error: process 1 of 3 (host) has died. This process (2) ends', 2, False),
  ],
)
def test_the_dead_process_is_named_or_not(said, victim, named):
  assert dead_process.names(said, victim) == named


@pytest.mark.slow
def test_a_run_that_loses_a_process_is_described():
  found = dead_process.kill('mgjax', 'waits', 2, 1, 60.0, threading.Lock())
  (other,) = found['survivors']
  assert (other['index'], other['code'], other['names']) == (0, 75, True)
  assert other['seconds'] == found['seconds'] > 0


@pytest.mark.slow
def test_an_exchange_is_timed():
  assert dead_process.exchange('jax', 2)['median_ms'] > 0
