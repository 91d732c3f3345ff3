"""What compiling takes, in several ways, and what it makes of the steps."""

import json

import pytest

from experiments.bench import compile_seconds
from experiments.runs import record
from mgjax import cli
from tests.experiments.rows import rows_of

WAYS = ['one program at level 3', 'two programs at level 0']


def way(compile_s, *steps, differing=0):
  return {
    'compile': {'wall_s': 2 * compile_s, 'cpu_s': compile_s},
    'steps': [{'wall_s': s, 'cpu_s': 2 * s} for s in steps],
    'differing': differing,
  }


def test_ways_are_compared_turn_by_turn():
  entry = {
    'options': {name: compile_seconds.WAYS[name].options for name in WAYS},
    'programs': [
      {'ways': {WAYS[0]: way(20, 1, 4, 1), WAYS[1]: way(9, 3, 4, 2)}},
      {'ways': {WAYS[0]: way(20, 1), WAYS[1]: way(11, 2, differing=3)}},
    ],
  }
  first, second = rows_of(compile_seconds.table('digits', entry))
  assert first['/ first way'] == '1.00'
  assert second['compiling, CPU s [measured]'] == '20'
  assert second['/ first way'] == '0.50'
  # The median of 3, 1, 2 and 2, not that of 3 over that of 1.
  assert second['step / first way, s [measured]'] == '2.00'
  assert (second['arrays that differ'], second['record']) == (
    *('3', 'digits.json'),
  )


def test_a_way_that_there_is_not_is_named(tmp_path, capsys):
  arguments = ['x', '--config=configs/moving_digits.py', '--ways=faster']
  arguments.append(f'--records={tmp_path}')
  assert (
    cli.run(compile_seconds.main, compile_seconds.define_flags, arguments) == 2
  )
  assert '--ways=faster: accepted are one program' in capsys.readouterr().err


def test_records_of_another_config_are_a_problem(monkeypatch, tmp_path):
  monkeypatch.setattr(record, 'RECORDS', tmp_path)
  path = tmp_path / 'compile_seconds/x.json'
  path.parent.mkdir()
  path.write_text(json.dumps({'config': 'configs/moving_digits.py'}))
  (problem,) = record.problems()
  assert problem.startswith('compile_seconds/x.json: lacks config_hash')


@pytest.mark.slow
def test_every_program_is_compiled_and_takes_steps_in_every_way():
  config = cli.read_config(
    'configs/moving_digits.py:grid=short,size=tiny,model=tsn',
    ['--config.data.num_frames=2', '--config.data.num_train=280'],
  )
  kept = []
  found = compile_seconds.measure(
    config, ways=WAYS, turns=2, keep=lambda some: kept.append(len(some))
  )
  assert kept == [1, 2, 3]
  for program in found:
    assert list(program['ways']) == WAYS
    for one in program['ways'].values():
      assert one['compile']['cpu_s'] > 0
      assert one['kernels'] > 0
      assert len(one['steps']) == 2
    assert program['ways'][WAYS[0]]['differing'] == 0
