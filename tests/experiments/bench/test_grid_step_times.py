"""Step times of grids, and the speed-ups that they imply."""

import json
import re

import pytest

from experiments.bench import grid_step_times
from experiments.runs import record, settings
from mgjax import cli
from mgjax.setup import clip_costs
from tests.experiments.rows import rows_of

TINY = 'configs/moving_digits.py:grid=short,size=tiny,model=tsn'


@pytest.fixture
def step_times(monkeypatch, tmp_path):
  """Writes a record of made-up step times; returns its contents."""
  monkeypatch.setattr(record, 'RECORDS', tmp_path)

  def write(*overrides, **changes):
    environment = {'num_cpus': 2, 'device': 'cpu', 'num_devices': 1}
    entry = {'environment': environment}

    def add(values):
      grids = settings.schedule(values.config).grids
      seconds = ([4.0, 4.0], [2.0, 1.0], [1.0, 1.0])
      entry.update(
        **grid_step_times.described(values['config']),
        grids=[
          {**grid._asdict(), 'wall_s': turns}
          for grid, turns in zip(grids, seconds, strict=True)
        ],
      )

    assert (
      cli.run(add, lambda _: None, ['', f'--config={TINY}', *overrides]) == 0
    )
    entry.update(changes)
    path = tmp_path / 'grid_step_times/tsn.json'
    path.parent.mkdir()
    path.write_text(json.dumps(entry))
    return entry

  return write


def test_step_times_and_the_speedup_they_imply_by_hand(step_times, tmp_path):
  # Four epochs of 280 clips are 140 full steps; six are 30 short cycles of
  # 32, 16 and 8 clips, which take 30 x 7 and 30 x 6 seconds in the two turns,
  # and 30 x 6.5 by the grids' medians.
  step_times('--config.data.num_train=280')
  times, speedups = (rows_of(table) for table in grid_step_times.make())
  assert [row['time / full step [measured]'] for row in times] == [
    *('4.00', '1.50', '1.00')
  ]
  (row,) = speedups
  name = 'less time, implied by step times [measured]'
  assert (row[name], row['turns']) == ('0.72 ± 0.08', '2')
  grid_step_times.picture(tmp_path / 'x.png')
  assert (tmp_path / 'x.png').exists()


def test_step_times_of_a_known_config_are_trusted(step_times):
  entry = step_times('--config.data.jitter_px=32,44')
  assert entry['overrides'] == ['--config.data.jitter_px=(32, 44)']
  assert record.problems() == []


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'overrides': ['--config.optim.base_lr=0.7']}, 'its config .* is not'),
    ({'config_hash': '0' * 16}, 'its config .hash 0000000000000000. is not'),
    ({'config': 'configs/gone.py'}, 'is not that of configs/gone.py'),
  ],
)
def test_step_times_of_an_unknown_config_are_not(step_times, changes, message):
  step_times(**changes)
  (problem,) = record.problems()
  assert re.search(f'grid_step_times/tsn.json: .*{message}', problem)


@pytest.mark.slow
def test_step_times_are_those_of_every_grid_and_the_full_one():
  config = cli.read_config(
    'configs/moving_digits.py:grid=short,size=tiny,model=tsn',
    ['--config.data.num_frames=2'],
  )
  found = grid_step_times.measure(config, turns=1)
  assert tuple(found) == settings.schedule(config).grids
  for one in found.values():
    (seconds,) = one.seconds
    assert seconds > 0
    assert one.compiled_bytes > 0
    assert one.allocated_bytes is None  # A CPU's allocator does not count.


def test_share_of_the_matrix_rate_and_memory_by_hand(step_times):
  # Of 32 clips in 4 s; forward and backward take six operations for each
  # multiply-add of the forward pass.
  step_times()
  path = record.RECORDS / 'grid_step_times/tsn.json'
  entry = json.loads(path.read_text())
  config = cli.read_config(TINY)
  grid = settings.schedule(config).grids[0]
  gmacs = clip_costs.gmacs_per_clip(config, [grid])[grid]
  entry['peak_tflops'] = 6 * grid.batch * gmacs / 1000  # In one second: all.
  entry['grids'][0] |= {'compiled_bytes': 3 << 29, 'allocated_bytes': 1 << 30}
  path.write_text(json.dumps(entry))
  first, *others = rows_of(grid_step_times.times_table())
  assert first['% of matrix rate [measured]'] == '25'
  assert first['memory, GiB [compiled]'] == '1.50'
  assert first['memory, GiB [measured]'] == '1.00'
  assert {row['memory, GiB [measured]'] for row in others} == {''}
