"""Short runs end with the parameters that they have always ended with.

tests/golden/parameters.json has the parameters' hash for some versions of JAX
and CPUs: another compiler or another set of instructions adds up in another
order. There, norms are compared.
"""

import hashlib
import json
import math
import os
import pathlib
import platform
import subprocess
import sys

import jax
import pytest

GOLDEN = pathlib.Path('tests/golden/parameters.json')
RUNS = {'multigrid': 1, 'everything': 1, 'tam': 1, 'two_devices': 2}  # Devices.
# Of a norm, relative to itself or, for small ones, to that of all parameters:
# sums of float32 in another order are other numbers after some 50 steps.
RELATIVE, OF_ALL = 5e-3, 2e-4


def machine() -> str:
  """What a hash holds for: versions of JAX and the CPU's instructions."""
  flags = ''
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('flags'):
        flags = ' '.join(sorted(line.split(':')[1].split()))
        break
  except OSError:
    pass
  cpu = hashlib.sha256(f'{platform.machine()} {flags}'.encode()).hexdigest()
  cores = len(os.sched_getaffinity(0))
  return f'jax {jax.__version__}, cpu {cpu[:16]}, {cores} cores'


@pytest.mark.parametrize(
  'name',
  [
    'everything',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ('multigrid', 'tam', 'two_devices')
    ),
  ],
)
def test_a_short_run_ends_with_the_same_parameters(name, data_dir, tmp_path):
  flags = f'--xla_force_host_platform_device_count={RUNS[name]}'
  found = subprocess.run(
    [
      *(sys.executable, '-m', 'tests.parameters_worker'),
      *(name, str(data_dir), str(tmp_path / 'run')),
    ],
    env={**os.environ, 'XLA_FLAGS': flags},
    check=True,
    stdout=subprocess.PIPE,
  )
  found = json.loads(found.stdout)
  expected = json.loads(GOLDEN.read_text())[name]
  of_all = math.hypot(*expected['norms'].values())
  assert found['norms'] == pytest.approx(
    expected['norms'], rel=RELATIVE, abs=OF_ALL * of_all
  )
  if machine() in expected['parameters']:
    assert found['parameters'] == expected['parameters'][machine()]
