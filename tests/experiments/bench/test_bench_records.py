"""Records of the benchmarks are of the networks and grids of today."""

import json
import shutil

import pytest

from experiments.bench import decode_speed, step_time
from experiments.runs import record


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
