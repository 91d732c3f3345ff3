"""A run leaves what it took, and the next plan and the next run know it."""

import contextlib
import io
import json
import threading

import pytest

from mgjax import cli
from mgjax import plan as plan_flags
from mgjax.cli import RunError
from mgjax.grids import Grid
from mgjax.planning import command, measured
from mgjax.planning.measured import Seconds
from mgjax.run import launch, loop, measuring
from mgjax.run.run_summary import tell
from mgjax.setup import data, grids, programs, wall_time
from mgjax.step.programs import evaluation_steps, first_uses
from mgjax.step.step_cache import StepCache
from tests import speck


@pytest.fixture(scope='module')
def config(data_dir):
  config = speck.get_config('grid=short')
  config.data.dir = str(data_dir)
  config.optim.total_epochs = 2
  config.optim.schedule = 'constant'
  config.optim.warmup_epochs = 0.0
  return config


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """Where the tests of this module keep what is measured."""
  file = tmp_path_factory.mktemp('measured') / 'measured.json'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(measured, 'path', lambda folder: file)
    yield file


@pytest.fixture(scope='module')
def run(config, file, tmp_path_factory):
  """A run of a network that was unknown: folder, summary, what it said."""
  workdir = tmp_path_factory.mktemp('run') / 'run'
  with contextlib.redirect_stderr(io.StringIO()) as said:
    summary = launch.train(config, workdir)
  return workdir, summary, said.getvalue()


def needed(config):
  schedule = grids.schedule(config, 240, num_devices=2)
  return schedule, first_uses(
    schedule,
    0,
    evaluation_steps(schedule, config.eval.every),
    eval_grid=grids.eval_grid(config),
    takes_statistics=programs.statistics_batches(config) > 0,
  )


def plan_of(config, *flags):
  """The JSON and the stderr of the command, for a run on two devices."""
  overrides = [
    f'--config.data.dir={config.data.dir}',
    '--config.optim.total_epochs=2',
    '--config.optim.schedule=constant',
    '--config.optim.warmup_epochs=0.0',
  ]
  argv = ['plan', '--config=tests/speck.py:grid=short', *overrides]
  argv += ['--num_devices=2', '--format=json', *flags]
  with contextlib.redirect_stdout(io.StringIO()) as out:
    assert cli.run(command.main, plan_flags.define_flags, argv) == 0
  return json.loads(out.getvalue())


def test_a_run_measures_every_program_that_it_uses(run, config, file):
  (found,) = measured.read(file)
  assert found.where.num_devices == 2 and found.where.device == 'cpu'
  _, wanted = needed(config)
  assert found.programs.keys() == {*wanted}
  for seconds in found.programs.values():
    assert seconds.run_s and (seconds.compile_s or seconds.load_s)
    assert seconds.built_as
  assert found.checkpoint_s


def test_a_run_says_what_its_time_went_to(run):
  workdir, summary, said = run
  parts = dict(summary['wall_time']['run'])
  total = parts.pop('total_s')
  assert total == pytest.approx(sum(parts.values()))
  assert all(seconds >= 0 for seconds in parts.values())
  names = ('step_s', 'data_s', 'compile_s', 'other_s', 'eval_s', 'checkpoint_s')
  times = {**summary, 'compile_s': summary['compile_wait_s']}
  assert total == pytest.approx(sum(times[name] for name in names))
  # Nothing was known, and nothing is said.
  assert summary['wall_time']['predicted'] is None
  assert 'wall_time' not in json.loads((workdir / 'plan.json').read_text())
  assert 'wall time' not in said and 'grid=none' not in said
  lines = tell(summary, workdir, 'configs/a.py').splitlines()
  assert sum(line.startswith('this run ') for line in lines) == 1
  assert not any(line.startswith('predicted') for line in lines)


@pytest.fixture
def known(run, config, file):
  """Seconds of every program, as if they had been measured."""
  schedule, wanted = needed(config)
  (network,) = measured.read(file)
  before = file.read_text()
  built_as = wall_time.programs_hash(config, schedule)
  by_key = {
    key: Seconds(2.0**-i, False, 100.0 + i, 10.0 + i, built_as)
    for i, key in enumerate(wanted)
  }
  file.unlink()
  measured.add(
    file,
    measured.Network(network.where, by_key, 0.25, '2026-01-01'),
  )
  yield by_key
  file.write_text(before)


def want(config, known, loaded=True):
  """The breakdown, step by step."""
  schedule, wanted = needed(config)
  describe = data.describe(config)
  views = config.eval.num_views * config.eval.num_crops
  batches = -(-describe.splits['validation'] * views // config.eval.batch_size)
  steps = range(schedule.total_steps)
  parts = {
    'steps_s': sum(known['train', schedule(step)].run_s for step in steps),
    'compilation_s': sum(
      known[k].load_s if loaded else known[k].compile_s for k in wanted
    ),
    'statistics_s': known['stats', schedule.phases[-1].base].run_s,
    'evaluation_s': batches * known['eval', grids.eval_grid(config)].run_s,
    'checkpoints_s': 0.25,
  }
  return parts | {'total_s': sum(parts.values())}


def test_the_plan_takes_the_numbers_of_the_file(known, config):
  found = plan_of(config)['wall_time']
  run = dict(found['run'])
  cold = run.pop('cold_compilation_s')
  assert run == pytest.approx(want(config, known))
  assert cold == want(config, known, loaded=False)['compilation_s']
  short = dict(found['modes']['short'])
  assert short.pop('steps') < found['modes']['none']['steps']
  assert short == found['run']
  assert found['modes']['none']['total_s'] == pytest.approx(
    found['baseline']['total_s']
  )
  for program in found['programs']:
    grid = Grid(*(program[name] for name in Grid._fields))
    seconds = known[program['kind'], grid]
    assert program['run_s'] == seconds.run_s and program['run_is_measured']
    assert program['compile_s'] == seconds.load_s and program['on_disk']
  assert found['unknown'] == []


@pytest.mark.parametrize(
  'flag', ['weight_decay=0.5', 'decay_on=all', 'reduce_dtype=bfloat16']
)
def test_other_settings_of_the_optimizer_are_compiled_anew(known, config, flag):
  found = plan_of(config, f'--config.optim.{flag}')['wall_time']
  run = dict(found['run'])
  run.pop('cold_compilation_s')
  assert run == pytest.approx(want(config, known, loaded=False))
  # The rate is no part of a program.
  found = plan_of(config, '--config.optim.base_lr=0.5')['wall_time']
  assert found['run']['total_s'] == want(config, known)['total_s']


def test_other_modes_are_inferred_where_they_have_other_grids(known, config):
  modes = plan_of(config)['wall_time']['modes']
  assert modes.keys() <= {'none', 'short', 'long', 'both'}
  assert all(found['total_s'] > 0 for found in modes.values())
  assert 'both' in modes


@pytest.mark.parametrize(
  'flag',
  [
    *('--config.model.width=8', '--config.norm.frozen=but_first'),
    *('--config.optim.name=adamw', '--config.train.micro_batches=2'),
    *('--config.model.dtype=bfloat16', '--config.train.remat=block'),
    *('--num_devices=1', '--config.augment.hue=0.1'),
    '--config.optim.train=head',
  ],
)
def test_what_was_not_measured_is_unknown(known, config, flag):
  flags = [flag]
  if 'frozen' in flag:
    flags.append('--config.init_from=x')
  assert plan_of(config, *flags)['wall_time'] is None


def test_seconds_of_steps_that_the_user_gives_win(known, run, config):
  workdir, _, _ = run
  found = plan_of(config, f'--workdir={workdir}')
  assert found['wall_time']['run']['steps_s'] == pytest.approx(
    3600 * found['time']['hours']
  )
  assert (
    found['wall_time']['run']['compilation_s']
    == (want(config, known)['compilation_s'])
  )


def test_a_damaged_file_is_no_file(known, config, file, capsys):
  file.write_text('{')
  assert plan_of(config)['wall_time'] is None
  err = capsys.readouterr().err
  assert err.count(f'{file} has no times of programs') == 1


def test_the_next_run_says_before_it_starts_how_long_it_takes(
  known, config, tmp_path, capsys
):
  summary = launch.train(config, tmp_path / 'run')
  plan = json.loads((tmp_path / 'run/plan.json').read_text())
  said = capsys.readouterr().err
  predicted = dict(summary['wall_time']['predicted'])
  assert predicted == plan['wall_time']['run']
  predicted.pop('cold_compilation_s')
  assert predicted == pytest.approx(want(config, known))
  expected, started = said.index('add to it)'), said.index(' steps, ')
  assert expected < started
  lines = tell(summary, tmp_path, 'configs/a.py').splitlines()
  assert sum(line.startswith('predicted ') for line in lines) == 1


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_prediction(
  known, config, tmp_path, capsys, monkeypatch
):
  config = config.copy_and_resolve_references()
  config.train.checkpoint_every_steps = 5
  interrupt_at(monkeypatch, step=7)
  with pytest.raises(RunError, match='in the middle'):
    launch.train(config, tmp_path / 'run')
  before = json.loads((tmp_path / 'run/plan.json').read_text())['wall_time']
  monkeypatch.undo()
  capsys.readouterr()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(measured, 'path', lambda folder: tmp_path / 'empty.json')
    summary = launch.train(config, tmp_path / 'run')
  assert 'add to it)' not in capsys.readouterr().err
  assert summary['wall_time']['predicted'] == before['run']


def interrupt_at(monkeypatch, step):
  """Lets a run fail before a step."""
  take = loop.Training._step

  def fail(self, number, *arguments):
    if number == step:
      raise RunError('in the middle')
    return take(self, number, *arguments)

  monkeypatch.setattr(loop.Training, '_step', fail)


def test_a_run_that_fails_leaves_what_it_measured(
  config, tmp_path, monkeypatch
):
  monkeypatch.setattr(measured, 'path', lambda folder: tmp_path / 'm.json')
  interrupt_at(monkeypatch, step=7)
  with pytest.raises(RunError, match='in the middle'):
    launch.train(config, tmp_path / 'run')
  (found,) = measured.read(tmp_path / 'm.json')
  schedule, _ = needed(config)
  for grid in schedule.grids:
    assert found.programs['train', grid].run_s


def test_what_runs_beside_a_compilation_is_noted_as_such():
  key, done, seen = ('train', Grid(1, 2, 3, 4)), threading.Event(), []
  with StepCache({key: done.wait}) as programs:
    found = measuring.Measuring(programs)
    note = found.noting(*key, lambda *arguments: seen.append(arguments))
    done.set()
  note({'loss': 1.0}, 0.5)  # A step that began before.
  assert seen == [({'loss': 1.0}, 0.5)]
  assert found.programs() == {key: Seconds(0.5, contended=True)}
  found.noting(*key)({}, 0.25)
  assert found.programs() == {key: Seconds(0.25)}
