"""The bench says which phases would wait for data, and what would help."""

import json

import pytest

from mgjax import cli
from mgjax.data import bench, decode_rates, read_ahead
from mgjax.setup import data as data_setup
from mgjax.setup import grids, planning


@pytest.fixture
def schedule(tiny_config):
  return grids.schedule(tiny_config, 240)


def draws_of(schedule):
  return dict.fromkeys(
    d for p in schedule.phases for d in decode_rates.draws_of(p)
  )


def a_report(
  config, schedule, *, clips_per_s, step_s, num_cpus=8, copies=(), **kwargs
):
  rate = {'cpu_ms': 1.0, 'one_worker': 1.0, 'all_workers': clips_per_s}
  return decode_rates.report(
    schedule,
    {draw: rate for draw in draws_of(schedule)},
    {grid: step_s * grid.batch for grid in schedule.grids},
    data=config.data.name,
    workers=data_setup.workers(config),
    copies=copies,
    num_cpus=num_cpus,
    **{'prepared': True, **kwargs},
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
  assert '--config.data.name=clips/short256' in text
  assert '--short_side_px=192 --name=clips/short192; it is used' in text
  assert '3 machines with 2 CPUs' in text
  tiny_config.data.name = 'clips/short256'
  advice = a_report(
    tiny_config, schedule, **waits, num_cpus=2, copies=('clips/short192',)
  )['advice']
  assert len(advice) == 1 and advice[0].startswith('hosts')


@pytest.mark.parametrize(
  'name,prepared',
  [('moving_digits/motion', False), ('clips/short128', True), ('a/b', True)],
)
def test_no_copy_is_advised_that_prepare_would_refuse(
  tiny_config, schedule, name, prepared
):
  tiny_config.data.name = name
  tiny_config.data.num_workers = 2
  waits = {'clips_per_s': 40.0, 'step_s': 0.01, 'num_cpus': 2}
  result = a_report(tiny_config, schedule, **waits, prepared=prepared)
  (advice,) = result['advice']
  assert advice.startswith('hosts')


def test_each_worker_needs_a_batch_to_make(tiny_config, schedule):
  tiny_config.data.update({'num_workers': 2, 'prefetch_batches': 3})
  waits = {'clips_per_s': 40.0, 'step_s': 0.01}
  (advice,) = a_report(tiny_config, schedule, **waits)['advice']
  assert advice == (
    '--config.data.num_workers=5 --config.data.prefetch_batches=5'
  )
  # Eight threads with four batches under way are no more than four.
  tiny_config.data.num_workers = 8
  for phase in a_report(tiny_config, schedule, **waits)['phases']:
    assert phase['workers_needed'] == 10


@pytest.mark.parametrize('processes', [0, 2])
def test_clips_come_as_training_gets_them(tiny_config, monkeypatch, processes):
  tiny_config.data.update({'worker_processes': processes, 'num_workers': 2})
  source = data_setup.source(tiny_config, 'train')
  schedule = grids.schedule(tiny_config, len(source))
  clips = data_setup.train_stream(tiny_config, schedule, source)
  made = []
  start = read_ahead._in_processes

  def in_processes(*args):
    for batch in start(*args):
      made.append(batch['video'].shape[0])
      yield batch

  monkeypatch.setattr(read_ahead, '_in_processes', in_processes)
  draw = next(iter(draws_of(schedule)))
  rates = decode_rates.measure(clips, [draw], num_clips=4)
  assert rates[draw]['all_workers'] > 0
  # 2 x (3 + 3) that may be ready, 2 under way, 4 x 2 timed.
  assert made == ([1] * 22 if processes else [])


def test_every_grid_of_a_schedule_is_measured(tiny_config, capsys):
  argv = [
    'bench',
    '--config=configs/moving_digits.py:grid=both,size=tiny',
    f'--config.data.dir={tiny_config.data.dir}',
    '--num_clips=2',
    '--step_ms=5',
  ]
  assert (
    cli.run(decode_rates.main, bench.define_flags, [*argv, '--format=json'])
    == 0
  )
  result = json.loads(capsys.readouterr().out)
  schedule = grids.schedule(tiny_config, 240)
  shapes = {(g['T'], g['H'], g['W']) for g in result['grids']}
  assert shapes == {grid[:3] for grid in schedule.grids}
  assert all(g['one_worker'] > 0 for g in result['grids'])
  made = planning.make_plan(tiny_config, schedule)
  assert len(result['phases']) == len(made['phases'])
  lines = decode_rates.format_report(result).splitlines()
  assert sum(line.startswith('phase ') for line in lines) == len(
    schedule.phases
  )
