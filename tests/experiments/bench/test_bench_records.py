"""Records of the benchmarks are of the networks and grids of today."""

import json
import shutil

import pytest

from experiments.bench import (
  dead_process,
  decode_speed,
  kinetics_like,
  step_time,
)
from experiments.runs import record
from mgjax import cli
from tests.experiments.bench.test_decode_speed import NEW, result


@pytest.fixture
def benchmark_records(monkeypatch, tmp_path):
  """The repository's records of benchmarks, to be changed."""
  for name in ('step_time', 'decode_speed'):
    shutil.copytree(record.RECORDS / name, tmp_path / name)
  monkeypatch.setattr(record, 'RECORDS', tmp_path)
  return tmp_path


def change_json(path, change):
  contents = json.loads(path.read_text())
  change(contents)
  path.write_text(json.dumps(contents))


def test_step_times_of_another_network_are_a_problem(benchmark_records):
  assert step_time.problems() == []
  change_json(
    benchmark_records / 'step_time/cpu-float32-slow.json',
    lambda entry: entry.update(parameters=1),
  )
  (problem,) = step_time.problems()
  assert 'cpu-float32-slow.json: parameters 1, but' in problem


def test_decode_speed_of_other_grids_is_a_problem(benchmark_records):
  assert decode_speed.problems() == []
  change_json(
    benchmark_records / 'decode_speed/result.json',
    lambda result: result['grids'][0].update(stride_frames=[2, 2]),
  )
  (problem,) = decode_speed.problems()
  assert problem.startswith('decode_speed/result.json: its grids are not')


@pytest.mark.parametrize('bench', [decode_speed, dead_process])
def test_a_benchmark_writes_a_page_and_replaces_no_record(
  bench, tmp_path, monkeypatch, capsys
):
  name = bench.__name__.rpartition('.')[-1]
  found = {
    'decode_speed': result(NEW)['grids'],
    'dead_process': {'deaths': [], 'exchanges': []},
  }[name]
  monkeypatch.setattr(kinetics_like, 'prepare_data', lambda *_: None)
  monkeypatch.setattr(bench, 'measure', lambda *_: found)

  def run(*arguments):
    argv = [name, f'--records={tmp_path}', *arguments]
    return cli.run(bench.main, bench.define_flags, argv, takes_config=False)

  assert run() == 0
  path = tmp_path / name / 'result.json'
  first = path.read_text()
  assert (tmp_path / name / 'README.md').read_text() == bench.format_report(
    json.loads(first)
  )
  assert json.loads(first)['date'] and json.loads(first)['package_tree']
  monkeypatch.setattr(bench, 'measure', None)  # Nothing is measured.
  capsys.readouterr()
  assert run() == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f'{path} is there already; give another --name' in line
  assert path.read_text() == first


def test_a_second_measurement_of_step_times_has_a_name(tmp_path, monkeypatch):
  monkeypatch.setattr(step_time, 'find_torch', lambda _: None)
  monkeypatch.setattr(step_time, 'launch', lambda *_: {'launches': [{}]})
  monkeypatch.setattr(step_time, 'table', lambda _: '')
  for argument in ((), ('--name=again',)):
    argv = ['step_time', '--models=tsn', '--launches=1', *argument]
    argv.append(f'--records={tmp_path}')
    main, define_flags = step_time.main, step_time.define_flags
    assert cli.run(main, define_flags, argv, takes_config=False) == 0
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'again-cpu-float32-tsn.json',
    'cpu-float32-tsn.json',
  ]
