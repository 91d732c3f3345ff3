"""Records made anew agree with the stored ones, or the command says where."""

import json
import math

import pytest

from experiments.runs import compare
from mgjax import cli

MACHINE = {'device': 'cpu', 'num_cpus': 2, 'cpu': 'a processor'}


def entry(top1=96.0, train_s=100.0, steps=1000, test=None, **fields):
  """A loaded record."""
  return {
    'summary': {
      'top1': top1,
      'num_scored': 1000,
      'train_s': train_s,
      'cpu_s': 150.0,
      'steps': steps,
      'environment': fields.pop('environment', MACHINE),
    },
    'data': {'fingerprint': fields.pop('fingerprint', 'a')},
    'test': test,
    **fields,
  }


def agreement(stored, fresh):
  lines = compare.compare('digits/none', stored, fresh)
  return {line.field: line.agrees for line in lines}


def test_a_record_agrees_with_itself():
  assert agreement([entry()], [entry()]) == {
    'top-1, %': 'yes',
    'training, s': 'yes',
    'CPU, s': 'yes',
    'steps': 'yes',
  }


def test_accuracies_agree_within_two_deviations_of_videos_and_seeds():
  # 96 % of 1000 videos (961 of 1002); the seeds' deviation is 1.
  right = 961 / 1002
  binomial = 100 * math.sqrt(right * (1 - right) / 1000)
  tolerance = 2 * math.hypot(binomial, 1.0) * math.sqrt(1 / 3 + 1)
  stored = [entry(top1) for top1 in (95.0, 96.0, 97.0)]
  within = agreement(stored, [entry(96.0 - 0.99 * tolerance)])
  beyond = agreement(stored, [entry(96.0 - 1.01 * tolerance)])
  assert (within['top-1, %'], beyond['top-1, %']) == ('yes', 'no')
  # Of one stored seed nothing is known but its videos.
  tolerance = 2 * binomial * math.sqrt(2)
  for factor, word in ((0.99, 'yes'), (1.01, 'no')):
    found = agreement([entry()], [entry(96.0 + factor * tolerance)])
    assert found['top-1, %'] == word


def test_the_same_code_has_the_same_accuracies():
  of = lambda seed, top1, tree='t': entry(
    top1, name=f'digits/none-seed{seed}', package_tree=tree
  )
  stored = [of(0, 90.0), of(1, 96.0)]
  top1 = lambda *fresh: agreement(stored, fresh)['top-1, %']
  assert top1(of(1, 96.0)) == 'yes'
  assert top1(of(0, 90.1), of(1, 96.0)) == 'no'
  # Of other code a difference within what seeds and videos do is none.
  assert top1(of(0, 90.1, 'u'), of(1, 96.0, 'u')) == 'yes'


def test_an_accuracy_of_all_videos_may_be_missed_by_one():
  found = agreement([entry(100.0)], [entry(99.9)])
  assert found['top-1, %'] == 'yes'


def test_seconds_agree_within_a_tenth_on_one_machine_only():
  of = lambda fresh: agreement([entry()], [fresh])['training, s']
  assert (of(entry(train_s=109.0)), of(entry(train_s=111.0))) == ('yes', 'no')
  assert (of(entry(train_s=92.0)), of(entry(train_s=90.0))) == ('yes', 'no')
  other = {**MACHINE, 'cpu': 'another'}
  assert of(entry(train_s=300.0, environment=other)) == 'another machine'
  # Older records do not tell the model.
  model = lambda name: entry(environment={**MACHINE, 'cpu_model': name})
  assert of(model('1')) == 'yes'
  assert agreement([model('1')], [model('2')])['training, s'] == (
    'another machine'
  )


def test_cpu_seconds_are_of_one_kind_on_both_sides():
  old, new = entry(), entry(cpu_seconds=300.0)
  cpu = lambda *sides: [
    line[2:4]
    for line in compare.compare('digits/none', *sides)
    if line.field == 'CPU, s'
  ]
  assert cpu([old], [new]) == [('150', '150')]
  assert cpu([new], [new]) == [('300', '300')]
  # Nobody knows those of a run that was killed and went on.
  killed = entry(cpu_seconds=None, resumed=True)
  assert cpu([old], [killed]) == []


def test_runs_that_were_interrupted_have_no_seconds():
  killed = entry(train_s=900.0, cpu_seconds=900.0, resumed=True)
  found = agreement([entry(cpu_seconds=300.0)], [killed])
  assert found == {'top-1, %': 'yes', 'steps': 'yes'}


def test_accuracies_on_other_videos_are_shown_and_decide_nothing():
  found = agreement([entry()], [entry(50.0, fingerprint='b')])
  assert found['top-1, %'] == 'other videos'


def test_steps_agree_where_they_are_equal():
  assert agreement([entry()], [entry(steps=1001)])['steps'] == 'no'


def test_an_accuracy_on_test_is_compared_where_both_have_one():
  judged = lambda top1: entry(test={'top1': top1, 'num_scored': 10_000})
  field = 'top-1 on test, %'
  assert field not in agreement([entry()], [judged(90.0)])
  assert agreement([judged(90.0)], [judged(90.5)])[field] == 'yes'
  assert agreement([judged(90.0)], [judged(91.0)])[field] == 'no'


@pytest.fixture
def compared(records, tmp_path):
  """Returns a function that compares a fresh training of these numbers."""

  def add(name, **numbers):
    records(
      name,
      'configs/moving_digits.py:grid=none,seed=0',
      change=lambda entry, _: entry['summary'].update(
        {'num_scored': 1000, **numbers}
      ),
    )

  def run(table='moving_digits', **numbers):
    add('moving_digits/none-seed0')
    add('fresh/moving_digits/none-seed0', **numbers)
    argv = [f'--table={table}', f'--records={tmp_path / "fresh"}']
    return cli.run(
      compare.main, compare.define_flags, ['compare', *argv], takes_config=False
    )

  return run


def test_the_command_prints_what_agrees(compared, capsys):
  assert compared(train_s=105.0) == 0
  printed = capsys.readouterr().out
  assert (
    '| moving_digits/none | training, s | 100 | 105 | x 1.05 | yes |' in printed
  )


def test_the_command_ends_with_1_where_something_does_not(compared, capsys):
  with pytest.raises(SystemExit) as ended:
    compared(steps=999)
  assert ended.value.code == 1
  assert '| steps | 1000 | 999 | -1 | no |' in capsys.readouterr().out


def test_the_command_names_the_runs_that_were_not_made_anew(
  compared, records, capsys
):
  records('moving_digits/both-2-seed0', 'configs/moving_digits.py:grid=both')
  assert compared() == 0
  printed = capsys.readouterr().err
  assert printed == 'moving_digits/both-2: there is no fresh record\n'


def test_nothing_to_compare_is_said_in_one_line(compared, capsys):
  assert compared(table='epoch_factors') == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'has no record of epoch_factors that is stored, too' in line


def test_a_folder_of_fresh_records_is_the_stored_ones_form(records, tmp_path):
  records('fresh/digits/a-seed0', 'configs/moving_digits.py:grid=none,seed=0')
  path = tmp_path / 'fresh/digits/a-seed0/test.json'
  path.write_text(json.dumps({'top1': 1.0}))
  (found,) = compare.load('digits/a', tmp_path / 'fresh')
  assert found['name'] == 'digits/a-seed0'
  assert found['test'] == {'top1': 1.0}
