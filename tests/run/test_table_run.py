"""A run of a table: grids that steps draw, strengths that change, a kill."""

import json
import signal
import subprocess
import sys

import pytest

from mgjax import cli
from mgjax.config import saved
from mgjax.run import run_folder
from mgjax.setup import grids
from tests.run import test_resume as resume

# The quick tests kill runs of other grids: test_resume.py.
pytestmark = pytest.mark.slow

TABLE = [
  {
    'steps': 9,
    'random': [
      {'side_factor': 0.5, 'batch': 16},
      {'frames_factor': 0.5, 'batch': 16},
      {'weight': 2},
    ],
    'lr': [[0, 0.01], [1, 0.05]],
    'augment': {'mixup_alpha': 0.3},
  },
  {'epochs': 0.4, 'lr': {'schedule': 'cosine', 'base_lr': 0.05}},
]
CONFIG = 'moving_digits:size=tiny,grid=table,model=slow'


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data_dir):
  """Folders of two runs: one undisturbed, one killed and started again."""
  folder = tmp_path_factory.mktemp('table')
  (folder / 'table.json').write_text(json.dumps({'table': TABLE}))

  def start(workdir):
    return subprocess.Popen(
      [
        *(sys.executable, '-m', 'mgjax.train', f'--config={CONFIG}'),
        f'--config.grid.table={folder / "table.json"}',
        f'--workdir={workdir}',
        f'--config.data.dir={data_dir}',
        '--config.train.checkpoint_every_steps=3',
        '--config.optim.warmup_epochs=0',
        '--config.norm.precise_batches=1',
      ],
      stderr=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  whole, killed = folder / 'whole', folder / 'killed'
  resume.finish(start(whole))
  process = start(killed)
  resume.wait_for_step(process, killed, 5, 0)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  # The run has the rows in its folder: the same in another form go on with it.
  (folder / 'table.json').write_text(json.dumps({'table': TABLE}))
  resume.finish(start(killed))
  return whole, killed


def test_a_killed_run_of_random_grids_ends_as_if_it_had_not_been(runs):
  resume.assert_same_run(*runs)


def test_steps_have_the_grids_rates_and_clips_of_the_schedule(runs):
  config = saved.read_saved(runs[0])
  schedule = grids.schedule(config, 240)
  lines = [m for m in run_folder.read_metrics(runs[0]) if 'loss' in m]
  assert [m['step'] for m in lines] == list(range(1, schedule.total_steps + 1))
  for step, line in enumerate(lines):
    found = tuple(line[name] for name in ('T', 'H', 'W', 'batch'))
    assert found == tuple(schedule(step))
    assert line['lr'] == pytest.approx(schedule.lr(step))
    assert line['clips'] == schedule.clips_before(step + 1)
  assert len({tuple(schedule(s)) for s in range(9)}) > 1


def test_the_folder_keeps_the_rows_and_not_the_name_of_their_file(runs):
  config = saved.read_saved(runs[0])
  assert json.loads(json.dumps(config.grid.table)) == TABLE
  named = cli.read_config(CONFIG, ('--config.grid.table=fastdinov2',))
  assert grids.with_table(named).grid.table[0]['side_factor'] == 0.5


def test_one_program_is_compiled_for_each_grid_and_none_later(runs):
  plan = json.loads((runs[0] / 'plan.json').read_text())
  summary = json.loads((runs[0] / 'summary.json').read_text())
  assert plan['num_train_programs'] == len(plan['grids']) == 3
  assert summary['num_compiled'] == summary['num_grids'] == 3
