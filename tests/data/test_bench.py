"""The bench says which phases would wait for data, and what would help."""

import json

import pytest

from mgjax import cli, cycles, plan
from mgjax.data import bench


@pytest.fixture
def schedule(tiny_config):
  return cycles.make_schedule(tiny_config, 240)


def draws_of(schedule):
  return dict.fromkeys(d for p in schedule.phases for d in bench.draws_of(p))


def a_report(config, schedule, *, clips_per_s, step_s, num_cpus=8, copies=()):
  rate = {'cpu_ms': 1.0, 'one_worker': 1.0, 'all_workers': clips_per_s}
  return bench.report(
    config,
    schedule,
    {draw: rate for draw in draws_of(schedule)},
    {grid: step_s * grid.batch for grid in schedule.grids},
    copies=copies,
    num_cpus=num_cpus,
  )


def test_a_phase_waits_where_steps_take_clips_faster_than_they_come(
  tiny_config, schedule
):
  # Every clip takes 10 ms on the device and comes after 25 ms.
  result = a_report(tiny_config, schedule, clips_per_s=40.0, step_s=0.01)
  workers = tiny_config.data.num_workers
  for phase in result['phases']:
    assert phase['clips_per_s_needed'] == pytest.approx(100)
    assert phase['clips_per_s'] == pytest.approx(40)
    assert phase['wait_fraction'] == pytest.approx(0.6)
    assert phase['workers_needed'] == -(-workers * 25 // 10)
  enough = a_report(tiny_config, schedule, clips_per_s=101.0, step_s=0.01)
  assert {p['wait_fraction'] for p in enough['phases']} == {0.0}
  assert enough['advice'] == ['no phase waits for data']


def test_the_advice_is_what_this_machine_can_do(tiny_config, schedule):
  waits = {'clips_per_s': 40.0, 'step_s': 0.01}
  tiny_config.data.num_workers = 2
  (advice,) = a_report(tiny_config, schedule, **waits)['advice']
  assert advice == '--config.data.num_workers=5'
  tiny_config.data.name = 'clips'
  advice = a_report(tiny_config, schedule, **waits, num_cpus=2)['advice']
  text = ' '.join(advice)
  assert 'clips/short256' in text and 'smaller copy' in text
  assert '3 machines with 2 CPUs' in text
  tiny_config.data.name = 'clips/short256'
  advice = a_report(
    tiny_config, schedule, **waits, num_cpus=2, copies=('clips/short192',)
  )['advice']
  assert len(advice) == 1 and advice[0].startswith('hosts')


def test_every_grid_of_a_schedule_is_measured(tiny_config, capsys):
  argv = [
    'bench',
    '--config=configs/moving_digits.py:grid=both,size=tiny',
    f'--config.data.dir={tiny_config.data.dir}',
    '--num_clips=2',
    '--step_ms=5',
  ]
  assert cli.run(bench.main, bench.define_flags, [*argv, '--format=json']) == 0
  result = json.loads(capsys.readouterr().out)
  schedule = cycles.make_schedule(tiny_config, 240)
  shapes = {(g['T'], g['H'], g['W']) for g in result['grids']}
  assert shapes == {grid[:3] for grid in schedule.grids}
  assert all(g['one_worker'] > 0 for g in result['grids'])
  made = plan.make_plan(tiny_config, schedule)
  assert len(result['phases']) == len(made['phases'])
  lines = bench.format_report(result).splitlines()
  assert sum(line.startswith('phase ') for line in lines) == len(
    schedule.phases
  )
