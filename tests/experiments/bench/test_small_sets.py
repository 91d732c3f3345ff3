"""What a cache of decoded frames saves small sets."""

import pytest

from experiments.bench import small_sets
from tests.experiments.rows import rows_of


def test_times_are_compared_with_those_of_the_steps_alone():
  run = lambda mode, gib, step_s, data_s: {
    **{'mode': mode, 'cache_gib': gib, 'steps': 10, 'cpu_s': 1.0},
    **{'step_s': step_s, 'data_s': data_s, 'train_s': step_s + data_s},
    'num_from_disk': {'none': 1, 'both': 2}[mode],
    'predicted_speedup': {'macs': 3.0},
  }
  result = {
    # 10 x 2 s and 4 x 1 + 6 x 1 s alone.
    'steps': {
      'none': [{'count': 10, 'alone_s': [2.0, 9.0, 1.0]}],
      'both': [
        {'count': 4, 'alone_s': [1.0]},
        {'count': 6, 'alone_s': [1.0]},
      ],
    },
    'runs': [
      # The first of a kind has compiled.
      {**run('none', 0.0, 99.0, 9.0), 'num_from_disk': 0},
      {**run('both', 0.0, 99.0, 9.0), 'num_from_disk': 1},
      run('none', 0.0, 24.0, 6.0),
      run('none', 1.0, 22.0, 2.0),
      run('none', 1.0, 20.0, 0.0),
      run('both', 0.0, 14.0, 6.0),
      run('both', 1.0, 10.0, 1.0),
    ],
  }
  runs, speedups = (rows_of(table) for table in small_sets.tables(result))
  assert [row['steps / steps alone'] for row in runs] == [
    *('1.20', '1.05', '1.40', '1.00')
  ]
  assert [row['waiting for data, s [measured]'] for row in runs] == [
    *('6.0', '1.0', '6.0', '1.0')
  ]
  assert list(speedups[0].values()) == ['10', '3.00', '2.00', '1.50', '2.00']


@pytest.mark.slow
def test_a_small_set_is_trained_on_with_and_without_a_cache(tmp_path):
  found = small_sets.measure(tmp_path, 'tiny', 4, turns=1, step_turns=1)
  kinds = [(run['mode'], run['cache_gib']) for run in found['runs']]
  assert kinds == [('none', 0), ('none', 1), ('both', 0), ('both', 1)]
  for run in found['runs']:
    grids = found['steps'][run['mode']]
    assert run['steps'] == sum(grid['count'] for grid in grids)
    # The first run of each kind compiles; the other one finds the programs.
    if run['cache_gib']:
      assert run['num_from_disk'] == len(grids)
    else:
      assert run['num_from_disk'] < len(grids)
    has_frames = any((tmp_path / 'frames').glob(f'{run["mode"]}-1-0/**/*'))
    assert has_frames
  assert not list((tmp_path / 'frames').glob('*-0-0'))
  found['runs'] += [
    run | {'num_from_disk': len(found['steps'][run['mode']])}
    for run in found['runs'][::2]
  ]
  assert [len(table.rows) for table in small_sets.tables(found)] == [4, 1]
