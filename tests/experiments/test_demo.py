"""What the demo shows beside its training."""

import json
import subprocess
import sys

import pytest

from experiments import demo
from experiments.runs import starts
from mgjax import cli

FULL = {'T': 16, 'H': 64, 'W': 64, 'batch': 8}


def config_of(factor, grid='both'):
  return cli.read_config(
    f'configs/moving_digits.py:grid={grid},size=demo',
    [
      '--config.data.name=moving_digits/motion_demo',
      f'--config.grid.epoch_factor={factor}',
    ],
  )


def summary_of(seconds, top1, epochs=6):
  return {
    'train_s': seconds - 2.0,
    'compile_wait_s': 2.0,
    'top1': top1,
    'epochs': epochs,
    'baseline_steps': 4000,
  }


def test_the_recorded_runs_of_its_length_say_what_to_expect(add):
  config = config_of(0.75)
  nothing = 'No such training is recorded; chance is 6.2 %.'
  assert demo.expectation(config) == nothing
  for seed, top1 in enumerate((64.0, 66.0, 68.0)):
    add('front/both-0.75', seed, top1)
  assert demo.expectation(config) == (
    'Expect a top-1 of 66.0 (64.0 to 68.0, 3 seeds) on validation, as in the '
    'recorded trainings; chance is 6.2 %.'
  )
  assert demo.expectation(config_of(0.8)) == nothing
  assert demo.expectation(config_of(0.75, grid='none')) == nothing
  # To which the factor is nothing.
  add('front/none-1', 0, 97.0)
  assert '97.0 (1 seed)' in demo.expectation(config_of(0.75, grid='none'))


def test_the_baseline_beside_it_is_that_after_the_same_seconds(add):
  for name, top1, seconds in (
    ('both-0.75', 66.0, 300.0),
    ('none-0.25', 61.0, 200.0),
    ('none-0.5', 81.0, 600.0),
    ('none-1', 97.0, 800.0),
  ):
    add(f'front/{name}', 0, top1, train_s=seconds)
  lines = demo.table(config_of(0.75), summary_of(150.0, 65.5), None)
  assert lines == [
    '                                   training, s  top-1, %',
    'this run                                   150  65.5',
    'recorded: both, 0.75 x the epochs          300  66.0 (1 seed)',
    'recorded: baseline                         300  66.0 (between none, 0.25 '
    'x the epochs and none, 0.5 x the epochs)',
    'Recorded on 1 core(s) of a, commit abcdef0: compare its seconds with one '
    'another only.',
  ]
  assert demo.after(100.0) is None and demo.after(900.0) is None
  assert demo.after(700.0)[0] == pytest.approx(89.0)


def test_a_machine_of_the_same_kind_is_told(add, monkeypatch):
  add('front/both-0.75', 0, 66.0)
  monkeypatch.setattr(demo.environment, 'cpu_name', lambda: 'a')
  monkeypatch.setattr(demo.environment, 'num_cpus', lambda: 1)
  *_, last = demo.table(config_of(0.75), summary_of(150.0, 65.5), None)
  assert last.endswith('abcdef0: a machine like this one.')


def test_a_baseline_that_was_trained_here_stands_in_the_table(add):
  lines = demo.table(
    config_of(0.75), summary_of(150.0, 65.5), summary_of(170.0, 70.0, epochs=2)
  )
  assert [line.split()[-2:] for line in lines[1:]] == [
    ['150', '65.5'],
    ['170', '70.0'],
  ]


def line_of(grid, step_s):
  return {**grid, 'step_s': step_s}


STEP = {
  **{'step': 1, 'loss': 1.0, 'train_s': 1.0, 'lr': 0.1},
  **line_of(FULL, 0.2),
}


def test_the_baseline_has_whole_epochs_for_the_seconds_rounded_up():
  lines = [
    line_of(FULL, 0.1),
    line_of(FULL, 0.2),
    line_of(FULL, 9.0),
    line_of({**FULL, 'T': 8}, 0.01),
    {**FULL, 'eval_top1': 50.0},
  ]
  # 500 steps of 0.2 s are an epoch.
  for seconds, epochs in ((5.0, 1), (100.0, 1), (100.1, 2), (350.0, 4)):
    found = demo.baseline_epochs(summary_of(seconds, 50.0), lines, FULL, 8)
    assert found == epochs
  with pytest.raises(cli.ConfigError, match='no line about a step of the full'):
    demo.baseline_epochs(summary_of(5.0, 50.0), lines[3:], FULL, 8)


def test_the_baseline_is_trained_with_its_decay_in_proportion(
  tmp_path, monkeypatch
):
  run = tmp_path / 'run'
  run.mkdir()
  (run / 'summary.json').write_text(json.dumps(summary_of(150.0, 65.5)))
  (run / 'plan.json').write_text(json.dumps({'baseline': {'grid': FULL}}))
  (run / 'metrics.jsonl').write_text(json.dumps(STEP) + '\n')
  config = config_of(0.75)
  words = ['--config=configs/moving_digits.py:size=demo']
  calls = []

  def train(command):
    calls.append(command)
    (tmp_path / 'run-baseline').mkdir()
    (tmp_path / 'run-baseline/summary.json').write_text('{"top1": 70.0}')
    return starts.Call(0, 1.0, 1.0)

  monkeypatch.setattr(demo.starts, 'call', train)
  assert demo.train_baseline(config, words, run) == {'top1': 70.0}
  assert calls == [
    [
      *('-m', 'mgjax.train', *words, f'--workdir={tmp_path}/run-baseline'),
      '--config.grid.mode=none',
      '--config.optim.total_epochs=2',
      '--config.optim.lr_steps=(1.5,)',
      '--config.optim.warmup_epochs=0.25',
    ]
  ]
  baseline = cli.read_config(calls[0][2].partition('=')[2], calls[0][4:])
  assert baseline.optim.total_epochs == 2
  # It is there: it is not trained again.
  assert demo.train_baseline(config, words, run) == {'top1': 70.0}
  assert len(calls) == 1


def test_a_baseline_that_fails_ends_the_demo_with_its_code(
  tmp_path, monkeypatch
):
  (tmp_path / 'summary.json').write_text(json.dumps(summary_of(150.0, 65.5)))
  (tmp_path / 'plan.json').write_text(json.dumps({'baseline': {'grid': FULL}}))
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(STEP) + '\n')
  monkeypatch.setattr(
    demo.starts, 'call', lambda command: starts.Call(75, 1.0, 1.0)
  )
  with pytest.raises(SystemExit) as error:
    demo.train_baseline(config_of(0.75), [], tmp_path)
  assert error.value.code == 75


@pytest.mark.slow
def test_a_tiny_demo_ends_with_a_baseline_of_its_own(data_dir, tmp_path):
  def call(module, *more):
    found = subprocess.run(
      [
        *(sys.executable, '-m', module),
        '--config=configs/moving_digits.py:size=tiny',
        *(f'--config.data.dir={data_dir}', f'--workdir={tmp_path / "run"}'),
        *more,
      ],
      capture_output=True,
      text=True,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout

  # Nothing of that size is recorded.
  assert call('experiments.demo').startswith('No such training is recorded')
  call('mgjax.train')
  *_, header, own, baseline = call('experiments.demo', '--compare').splitlines()
  assert header.split() == ['training,', 's', 'top-1,', '%']
  assert own.startswith('this run') and baseline.startswith('baseline here, ')
  summary = json.loads((tmp_path / 'run-baseline/summary.json').read_text())
  assert summary['mode'] == 'none' and summary['top1'] > 0
