"""plan_budget.py: the most epochs in some hours."""

import json
import shlex
import statistics

import pytest

from configs import kinetics400, moving_digits
from experiments.runs import record
from mgjax import cli
from mgjax import plan as plan_flags
from mgjax.cli import ConfigError
from mgjax.planning import command, plan, plan_budget
from mgjax.planning.plan_budget import Candidate
from mgjax.setup import clip_costs, grids

# 1e9 multiply-adds per second.
RATE = 7800.0


def run(argv: list[str]) -> int:
  """Runs the command; returns its exit code."""
  flags = plan_flags.define_flags
  return cli.run(command.main, flags, argv, arguments='CONFIG')


def search(config, num_train, budget_hours, gmacs_per_s, full_only=False):
  """What the command does with --budget_hours and --gmacs_per_s."""
  schedule_of = lambda mode, factor, videos: grids.schedule(
    command.with_factor(config, mode, factor), videos
  )
  modes, used = plan_budget.modes_and_grids(schedule_of, num_train)
  if full_only:
    modes = ['none']
  gmacs = clip_costs.gmacs_per_clip(config, {grids.full_grid(config), *used})
  return plan_budget.search(
    schedule_of,
    modes,
    {g: 3 * g.batch * cost / gmacs_per_s for g, cost in gmacs.items()},
    num_train=num_train,
    budget_hours=float(budget_hours),
    lr_steps=config.optim.lr_steps if config.optim.schedule == 'steps' else (),
  )


@pytest.fixture(scope='module')
def candidates():
  config = kinetics400.get_config('grid=both')
  return search(config, 240_000, 100, RATE)


def test_hours_are_those_of_all_steps():
  config = moving_digits.get_config('grid=none')
  schedule = grids.schedule(config, 4000)
  (grid,) = schedule.grids
  assert plan.training_hours(schedule, {grid: 3.6}) == pytest.approx(4.0)


def test_every_mode_has_its_longest_schedule_that_fits(candidates):
  config = kinetics400.get_config()
  for mode in plan_budget.MODES:
    fit = [c for c in candidates if c.mode == mode and c.hours <= 100]
    most = max(fit, key=lambda c: c.factor)
    # The next hundredth does not fit. Epochs of the baseline are whole.
    step = 0.02 if mode == 'none' else 0.01
    longer = grids.schedule(
      command.with_factor(config, mode, most.factor + step), 240_000
    )
    full = grids.full_grid(config)
    gmacs = clip_costs.gmacs_per_clip(config, {full, *longer.grids})
    step_s = {g: 3 * g.batch * cost / RATE for g, cost in gmacs.items()}
    assert plan.training_hours(longer, step_s) > 100


def test_the_baseline_takes_what_its_multiply_adds_take(candidates):
  (whole,) = [c for c in candidates if c.mode == 'none' and c.factor == 1]
  # 239 epochs of 240000 clips, three times 50.31 GMACs each.
  gmacs = 239 * 240_000 * 3 * 50.31
  want = gmacs / RATE / 3600
  assert whole.hours == pytest.approx(want, rel=1e-3)


def test_the_best_has_the_most_epochs_that_fit(candidates):
  best = plan_budget.best(candidates, 100.0)
  assert best.mode == 'both' and best.hours <= 100
  assert best.epochs == max(c.epochs for c in candidates if c.hours <= 100)
  text = plan_budget.table(candidates, 100.0)
  assert (
    f"--config.grid.mode='both' --config.grid.epoch_factor={best.factor:g}"
    in text
  )


def test_the_flags_of_another_mode_take_the_table_away():
  found = [Candidate('both', 1.5, 12.0, 100, 0.1)]
  text = plan_budget.table(found, 1.0, has_table=True)
  assert '--config.grid.epoch_factor=1.5, without grid.table' in text
  assert 'grid.table' not in plan_budget.table(found, 1.0)
  own = [found[0]._replace(mode='table')]
  assert 'grid.table' not in plan_budget.table(own, 1.0, has_table=True)


def test_a_budget_below_the_warm_up_is_one_line(capsys):
  arguments = [
    '--config=kinetics400:grid=both',
    '--config.optim.total_epochs=20',
  ]
  arguments += ['--config.optim.lr_steps=8,13,16', '--budget_hours=1']
  assert run(['plan', *arguments, '--step_ms=500']) == 2
  said = capsys.readouterr().err
  assert said.startswith('error: --budget_hours=1: no schedule is that short')
  assert 'warmup_epochs' in said and said.count('\n') == 1


@pytest.mark.parametrize('schedule', ['steps', 'cosine'])
def test_the_flags_of_a_shorter_baseline_move_its_decays(schedule):
  name = 'configs/moving_digits.py:grid=both'
  overrides = [f'--config.optim.schedule={schedule}']
  config = cli.read_config(name, overrides)
  found = search(config, 4000, 0.1, 15, full_only=True)
  best = plan_budget.best(found, 0.1)
  assert best.factor < 1
  # Eight epochs, with a decay after six.
  want = command.with_factor(config, 'none', best.factor)
  assert want.optim.total_epochs < 8 and want.optim.lr_steps < (6,)
  (line,) = (
    line
    for line in plan_budget.table(found, 0.1).splitlines()
    if line.startswith('>  the most')
  )
  printed = shlex.split(line.split('hours: ')[1])
  read = cli.read_config(name, [*overrides, *printed])
  assert read.optim.total_epochs == want.optim.total_epochs
  if schedule == 'steps':
    assert read.optim.lr_steps == want.optim.lr_steps
  else:
    assert 'lr_steps' not in line


@pytest.mark.parametrize('num_train', [1, 2, 20])
def test_few_videos_have_schedules_too(num_train):
  """Some of their phases are empty, or shorter than their cycle."""
  config = kinetics400.get_config('grid=both')
  found = search(config, num_train, 100, RATE)
  assert {c.mode for c in found} == set(plan_budget.MODES)


def test_what_cannot_be_answered_is_refused():
  config = moving_digits.get_config()
  with pytest.raises(ConfigError, match='the shortest takes'):
    search(config, 4000, 1e-6, 1)


def test_hours_without_a_speed_are_refused(capsys):
  argv = ['plan', '--config=configs/moving_digits.py', '--budget_hours=1']
  assert run(argv) == 2
  assert 'give --workdir, --step_ms or --gmacs' in capsys.readouterr().err


def test_the_command_prints_what_can_be_parsed(capsys):
  argv = [
    *('plan', '--config=configs/moving_digits.py', '--budget_hours=0.1'),
    *('--gmacs_per_s=30', '--format=json', '--config.data.num_train=4000'),
  ]
  assert run(argv) == 0
  for line in json.loads(capsys.readouterr().out):
    assert Candidate(**line).hours > 0


def test_step_times_come_from_a_record(capsys):
  """--workdir takes a record of experiments/, as it takes a run."""
  folder = record.RECORDS / 'moving_digits/both-1.5-seed0'
  argv = [
    *('plan', '--config=configs/moving_digits.py', '--budget_hours=0.1'),
    *(f'--workdir={folder}', '--format=json', '--config.data.num_train=4000'),
  ]
  assert run(argv) == 0
  found = [Candidate(**line) for line in json.loads(capsys.readouterr().out)]
  full_s = [
    line['step_s']
    for line in map(
      json.loads, (folder / 'metrics.jsonl').read_text().splitlines()
    )
    if line.get('H') == 64 and line['T'] == 16 and 'step_s' in line
  ]
  (hours,) = (c.hours for c in found if (c.mode, c.factor) == ('none', 1))
  # Eight epochs of 500 steps of eight clips.
  assert hours == pytest.approx(4000 * statistics.median(full_s) / 3600)


@pytest.mark.parametrize(
  'argument,message',
  [('--format=png', 'table or json'), ('--diff', 'one of --diff')],
)
def test_flags_that_do_not_go_together_are_refused(argument, message, capsys):
  argv = [
    *('plan', '--config=configs/moving_digits.py', '--budget_hours=1'),
    *('--gmacs_per_s=30', argument),
  ]
  assert run(argv) == 2
  assert message in capsys.readouterr().err
