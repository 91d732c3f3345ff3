"""step_seconds.py: what tells how long a step takes."""

import json

import pytest
from absl import flags

from mgjax.cli import ConfigError
from mgjax.config import fields, saved
from mgjax.grids.schedule import Grid
from mgjax.planning import step_seconds

SMALL, FULL = Grid(4, 16, 16, 32), Grid(8, 32, 32, 4)
# A step of the full grid: 40 forward, so 120 in training; of the small one, 96.
GMACS = {SMALL: 1.0, FULL: 10.0}


def seconds(*arguments):
  values = flags.FlagValues()
  step_seconds.define_flags(values)
  values(['', *arguments])
  config = fields.base()
  config.model.name = 'slow'
  return step_seconds.step_seconds(values, GMACS, FULL, saved.as_json(config))


@pytest.mark.parametrize('argument', ['--step_ms=1000', '--gmacs_per_s=120'])
def test_step_times_follow_the_multiply_adds(argument):
  assert seconds(argument) == pytest.approx({SMALL: 0.8, FULL: 1.0})


def test_a_run_tells_the_median_of_the_grids_it_timed(tmp_path):
  lines = [
    {'step': i, **SMALL._asdict(), 'step_s': s}
    for i, s in enumerate((0.5, 9.0, 0.4))
  ]
  (tmp_path / 'metrics.jsonl').write_text(
    '\n'.join(map(json.dumps, lines)) + '\n'
  )
  found = seconds(f'--workdir={tmp_path}')
  assert found == pytest.approx({SMALL: 0.5, FULL: 0.5 * 120 / 96})


def test_a_file_of_step_times_tells_the_median_of_its_turns(tmp_path):
  path = tmp_path / 'slowfast.json'
  lines = [{**SMALL._asdict(), 'wall_s': [0.5, 9.0, 0.4]}]
  path.write_text(json.dumps({'grids': lines}))
  found = seconds(f'--workdir={path}')
  assert found == pytest.approx({SMALL: 0.5, FULL: 0.5 * 120 / 96})
  for text in ('{}', 'no JSON', '[1]'):
    path.write_text(text)
    with pytest.raises(ConfigError, match='is no record of .*grid_step_times'):
      seconds(f'--workdir={path}')


def test_step_times_of_another_network_are_refused(tmp_path):
  line = {'step': 1, **SMALL._asdict(), 'step_s': 0.5, 'wall_s': [0.5]}
  other = {'model': {'name': 'slowfast'}}
  path = tmp_path / 'times.json'
  path.write_text(json.dumps({'grids': [line], 'settings': other}))
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  (tmp_path / 'config.json').write_text(json.dumps(other))
  for place in (path, tmp_path):
    with pytest.raises(ConfigError, match="name='slowfast', not of 'slow'"):
      seconds(f'--workdir={place}')
  for model, train, words in (
    ({'width': 9}, {}, r'model\.width=9, not of'),
    ({}, {'micro_batches': 2}, r'train\.micro_batches=2, not of 1'),
    ({'num_classes': 9, 'no_longer_there': 1}, {'remat': ''}, None),
  ):
    settings = {'model': {'name': 'slow', **model}, 'train': train}
    (tmp_path / 'config.json').write_text(json.dumps(settings))
    if words:
      with pytest.raises(ConfigError, match=words):
        seconds(f'--workdir={tmp_path}')
    else:
      assert seconds(f'--workdir={tmp_path}')[SMALL] == 0.5


def test_nothing_tells_nothing():
  assert seconds() is None


def test_two_speeds_or_a_folder_without_a_run_are_refused(tmp_path):
  with pytest.raises(ConfigError, match='one of --workdir'):
    seconds('--step_ms=1', '--gmacs_per_s=1')
  with pytest.raises(ConfigError, match='metrics.jsonl'):
    seconds(f'--workdir={tmp_path}')


def test_a_run_of_other_grids_is_refused(tmp_path):
  line = {'step': 1, **Grid(1, 1, 1, 1)._asdict(), 'step_s': 1.0}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  with pytest.raises(ConfigError, match='no step of a grid of this schedule'):
    seconds(f'--workdir={tmp_path}')
