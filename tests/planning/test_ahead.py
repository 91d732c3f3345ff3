"""plan --compile --target: programs for devices that need not be there."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests import compiling

CONFIG = 'configs/moving_digits.py:grid=both,size=tiny'
SMALL = (
  *('--config.model.blocks=(1,)', '--config.data.batch_size=16'),
  *('--config.eval.batch_size=16', '--config.norm.precise_batches=1'),
)
KEYS = {
  *('kind', 'T', 'H', 'W', 'batch', 'peak_bytes', 'compile_s', 'collectives'),
  *('convolutions', 'copies', 'gmacs', 'bytes_accessed'),
}


def plan(folder, *flags, devices=8, config=CONFIG):
  """Runs the command; returns its exit code, stdout and stderr."""
  ended = subprocess.run(
    [sys.executable, '-m', 'mgjax.plan', f'--config={config}', *flags],
    env={
      **os.environ,
      'JAX_COMPILATION_CACHE_DIR': str(folder),
      'XLA_FLAGS': f'{compiling.QUICK} '
      f'--xla_force_host_platform_device_count={devices}',
    },
    capture_output=True,
    text=True,
  )
  return ended.returncode, ended.stdout, ended.stderr


def test_the_programs_of_a_grid_for_eight_cpus(tmp_path):
  flags = ('--compile', '--target=cpu', '--grids=base', *SMALL)
  code, out, err = plan(tmp_path, *flags, '--format=json')
  assert code == 0, err
  found = json.loads(out)
  assert found['target']['num_devices'] == 8
  rows = {row['kind']: row for row in found['compiled']}
  assert rows.keys() == {'train', 'stats', 'eval'}
  for kind, row in rows.items():
    assert row.keys() >= KEYS
    assert (row['T'], row['H'], row['W'], row['batch']) == (8, 32, 32, 16)
    assert row['peak_bytes'] > 0 and row['bytes_accessed'] > 0
    # On CPUs none is in three dimensions.
    assert all('012' not in name for name in row['convolutions'])
    assert f'compiling {kind} 8x32x32 b16 for cpu' in err
  assert rows['train']['gmacs'] == pytest.approx(3 * rows['eval']['gmacs'])
  sums = rows['train']['collectives']['all-reduce']
  assert sums['count'] > 0 and sums['bytes'] > 0
  assert not rows['eval']['collectives']

  # A second command compiles nothing; one that lacks a program, that one.
  (folder,) = tmp_path.glob('compiled')
  kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  code, out, err = plan(tmp_path, *flags)
  assert code == 0 and 'compiling' not in err
  assert 'compiled for cpu (8 x cpu)' in out
  assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == kept
  for path in kept:
    if json.loads(path.read_text())['compile_s'] == rows['stats']['compile_s']:
      path.write_text('{')  # Damaged.
  code, out, err = plan(tmp_path, *flags)
  assert code == 0
  assert 'compiling stats' in err and 'compiling train' not in err


@pytest.mark.parametrize(
  'flags,words',
  [
    (['--target=cpu'], '--target=cpu needs --compile'),
    (['--compile', '--grids=base'], 'needs --compile --target'),
    (['--compile', '--target=v9:2x4'], 'unknown; accepted are'),
    (
      ['--compile', '--target=cpu', '--num_devices=2'],
      '--num_devices=2, but --target=cpu is 4 device',
    ),
    (
      ['--compile', '--target=cpu', '--grids=9x9x9'],
      "'9x9x9' is no grid of this run; accepted are 'all' or base, ",
    ),
    (
      ['--compile', '--target=cpu', '--budget_hours=1'],
      'one of --target and --budget_hours',
    ),
  ],
)
def test_what_cannot_be_compiled_is_one_line(flags, words, tmp_path):
  small = ('--config.data.batch_size=16', '--config.eval.batch_size=16')
  code, out, err = plan(tmp_path, *flags, *small, devices=4)
  assert (code, out) == (2, '')
  assert err.startswith('error: ') and err.count('\n') == 1
  assert words in err


def has(module):
  parent = module.partition('.')[0]
  return bool(
    importlib.util.find_spec(parent) and importlib.util.find_spec(module)
  )


@pytest.mark.slow
@pytest.mark.skipif(
  not has('jax_plugins.xla_cuda12'), reason="pip install 'jax[cuda12]'"
)
def test_a_small_slowfast_for_eight_gpus(tmp_path):
  code, out, err = plan(
    *(tmp_path, '--compile', '--target=h100x8', '--grids=base'),
    *('--format=json', '--config.model.blocks=(1,1,1,1)'),
    '--config.model.dtype=bfloat16',
    config='configs/kinetics400.py:grid=both',
  )
  assert code == 0, err
  (train, *_) = [
    row for row in json.loads(out)['compiled'] if row['kind'] == 'train'
  ]
  assert train['fits'] and train['peak_bytes'] > 2**30
  assert train['roofline_s'] > 0
  # cuDNN's, whole, in the network's type.
  assert sum(train['convolutions'].values()) > 50
  assert all('012' in name for name in train['convolutions'])
  assert all(name.endswith(' bf16') for name in train['convolutions'])


@pytest.mark.skipif(not has('libtpu'), reason="pip install 'jax[tpu]'")
def test_the_two_cores_of_a_v4_are_one_device():
  code = (
    'from mgjax.planning import targets; '
    'targets.prepare("v4:2x2x1"); print(len(targets.find("v4:2x2x1").devices))'
  )
  found = subprocess.run(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, check=True
  )
  assert found.stdout == '4\n'


@pytest.mark.slow
@pytest.mark.skipif(not has('libtpu'), reason="pip install 'jax[tpu]'")
def test_a_tiny_network_for_eight_tpus(tmp_path):
  code, out, err = plan(
    *(tmp_path, '--compile', '--target=v5e:2x4', '--grids=base', *SMALL),
    '--format=json',
  )
  assert code == 0, err
  rows = {row['kind']: row for row in json.loads(out)['compiled']}
  assert rows['train']['fits'] and rows['train']['bytes_accessed'] > 0
  assert any('012' in name for name in rows['train']['convolutions'])
