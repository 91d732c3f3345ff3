"""Every shell block of the README runs, in its order, in a clean folder."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = re.findall(
  r'^```sh\n(.*?)^```', (ROOT / 'README.md').read_text(), re.M | re.S
)


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
  folder = tmp_path_factory.mktemp('clone') / 'mgjax'
  for name in ('mgjax', 'configs', 'experiments'):
    shutil.copytree(
      ROOT / name,
      folder / name,
      ignore=shutil.ignore_patterns('__pycache__', 'records'),
    )
  return folder


def test_there_are_blocks():
  assert len(BLOCKS) >= 3


@pytest.mark.parametrize('number', range(len(BLOCKS)))
def test_block_runs(clone, number):
  path = f'{pathlib.Path(sys.executable).parent}{os.pathsep}'
  result = subprocess.run(
    ['bash', '-euo', 'pipefail', '-c', BLOCKS[number]],
    cwd=clone,
    env={**os.environ, 'PATH': path + os.environ['PATH']},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize('target', ['demo', 'test'])
def test_make_knows_the_readmes_targets(target):
  result = subprocess.run(
    ['make', '--dry-run', target], cwd=ROOT, capture_output=True, text=True
  )
  assert result.returncode == 0
  assert f'make {target}' in (ROOT / 'README.md').read_text()
