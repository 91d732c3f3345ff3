"""A run is composed once, whoever asks for it."""

import jax
import pytest
from etils import epath

from mgjax.cli import ConfigError
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.planning import compiled, measured
from mgjax.setup import grids, initial_weights, job, network, programs
from mgjax.step import compilation, train_state
from tests import speck


@pytest.fixture(scope='module')
def config(data_dir):
  config = speck.get_config('grid=both')
  config.data.dir = str(data_dir)
  return config


def test_a_job_has_the_parts_that_any_other_composition_has(config, tmp_path):
  mesh = parallel.make_mesh()
  parts = job.compose(config, mesh)
  workdir = epath.Path(tmp_path / 'run')
  run = job.make_job(config, workdir, Peers(), False)
  assert run.schedule.phases == parts.schedule.phases
  assert run.network.abstract == parts.network.abstract
  assert run.eval_steps == {run.schedule.total_steps}
  assert not workdir.exists()  # Whoever composes writes nothing.


def test_the_state_is_made_as_it_was_announced(config):
  mesh = parallel.make_mesh()
  made = network.compose(config, mesh)
  state = train_state.first_state(made.make_state, 0, {}, mesh)
  describe = lambda x: (x.shape, x.dtype, x.sharding.is_fully_replicated)
  got, want = (
    jax.tree.map(describe, state),
    jax.tree.map(describe, made.abstract),
  )
  assert got == want


def test_the_plan_measures_the_programs_of_the_run(
  config, monkeypatch, capsys, tmp_path
):
  file = tmp_path / 'measured.json'
  monkeypatch.setattr(measured, 'path', lambda folder: file)
  asked = []
  compile_program = compilation.compile_program
  monkeypatch.setattr(
    compilation,
    'compile_program',
    lambda lowered, *args, **options: (
      asked.append(lowered.as_text())
      or compile_program(lowered, *args, **options)
    ),
  )
  parts = job.compose(config, parallel.make_mesh())
  found = compiled.measure(config, parts.schedule, num_devices=2)
  steps = programs.lower_programs(
    *(config, parts.schedule, parts.network, parts.mesh, 0),
    {parts.schedule.total_steps},
  )
  assert {(row['kind'], row['T'], row['H'], row['batch']) for row in found} == {
    (kind, grid.T, grid.H, grid.batch) for kind, grid in steps
  }
  assert min(row['peak_bytes'] for row in found) > 0
  err = capsys.readouterr().err
  for program, lower in steps.items():
    assert lower().as_text() in asked
    assert f'compiling {program}' in err
  (network,) = measured.read(file)
  assert network.where.num_devices == 2
  full = grids.full_grid(config)
  assert network.programs.keys() == {*steps, ('train', full)}
  for seconds in network.programs.values():
    # What was compiled here was then read from the disk; what an earlier test
    # has compiled was so at once.
    assert seconds.run_s and seconds.load_s


def test_more_devices_than_there_are_cannot_compile(config):
  schedule = grids.schedule(config, 240)
  with pytest.raises(ConfigError, match='--num_devices=3, but --compile finds'):
    compiled.measure(config, schedule, num_devices=3)


def test_a_run_without_weights_to_start_from_reads_none(config):
  abstract = network.compose(config, parallel.make_mesh()).abstract
  assert initial_weights.initial_variables(config, abstract) == {}


def test_no_statistics_are_taken_where_all_layers_keep_theirs(config):
  assert programs.statistics_batches(config) == 1
  frozen = config.copy_and_resolve_references()
  frozen.norm.frozen = 'all'
  assert programs.statistics_batches(frozen) == 0
