"""The programs of examples/: training loops that use mgjax as a library."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from tests import compiling

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / 'examples').glob('*.py'))
# Runs a program; tells where JAX compiles, and kills it where it says so.
WATCHED = """
import builtins, os, runpy, signal, sys
import jax

def say(*values, **unused):
  text = ' '.join(map(str, values))
  os.write(1, f'{text}\\n'.encode())  # At once: two threads say something.
  if text.startswith(last):
    os.kill(os.getpid(), signal.SIGKILL)

def tell(event, duration, **unused):
  if event == '/jax/core/compile/backend_compile_duration':
    say('compiled')

last = sys.argv[1]
builtins.print = say
jax.monitoring.register_event_duration_secs_listener(tell)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def run(path, folder, last='never'):
  """Runs an example until the line that starts so; its code and lines."""
  environment = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': compiling.QUICK,  # One device.
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  result = subprocess.run(
    [sys.executable, '-W', 'error', '-c', WATCHED, last, path, folder],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert result.returncode in (0, -signal.SIGKILL), result.stderr[-2000:]
  return result.returncode, result.stdout.splitlines()


def steps_of(lines):
  """(step, grid) of each line that tells of one, and where it stands."""
  found = [re.match(r'step (\d+): grid (.+), loss', line) for line in lines]
  return [(int(m[1]), m[2], i) for i, m in enumerate(found) if m]


@pytest.fixture(scope='module', params=EXAMPLES, ids=lambda path: path.stem)
def example(request):
  return request.param


@pytest.fixture(scope='module')
def whole(example, tmp_path_factory):
  """A run that nothing disturbs: its folder and lines."""
  folder = tmp_path_factory.mktemp(example.stem)
  code, lines = run(example, folder)
  assert code == 0
  return folder, lines


def test_it_learns(whole):
  name, accuracy = whole[1][-1].split()
  assert name == 'accuracy'
  assert float(accuracy) > 0.5  # Of four classes.


def test_nothing_is_compiled_after_the_first_use_of_the_last_grid(whole):
  _, lines = whole
  steps = steps_of(lines)
  first = {}
  for _, grid, line in steps:
    first.setdefault(grid, line)
  assert len(first) >= 6
  last_grid = max(first.values())
  assert lines[:last_grid].count('compiled') >= len(first)
  assert 'compiled' not in lines[last_grid:]
  assert last_grid < steps[-1][2]


def test_killed_and_started_again_it_ends_in_the_same_state(
  example, whole, tmp_path
):
  folder, lines = whole
  steps = [step for step, _, _ in steps_of(lines)]
  assert steps == list(range(len(steps)))
  kill_at = len(steps) // 2
  code, _ = run(example, tmp_path, f'step {kill_at}:')
  assert code == -signal.SIGKILL
  code, lines = run(example, tmp_path)
  assert code == 0
  resumed = [step for step, _, _ in steps_of(lines)]
  assert 0 < resumed[0] <= kill_at
  assert resumed == steps[resumed[0] :]
  (state,) = folder.glob('state.*')
  assert (tmp_path / state.name).read_bytes() == state.read_bytes()
