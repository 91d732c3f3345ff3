"""Every shell block of the README runs, in its order, in a clean folder."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.data import videos
from tests.data.prepare.test_annotations import write_something_v1

ROOT = pathlib.Path(__file__).parent.parent
FENCES = re.findall(
  r'^```(\w*)\n(.*?)^```', (ROOT / 'README.md').read_text(), re.M | re.S
)
BLOCKS = [block for _, block in FENCES]
# The same commands, at a size for tests: `make demo` on tiny videos; the tests
# are those of one file.
SMALL = {'SIZE': 'tiny'}


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
  """The project, installed, and the videos that the README speaks of."""
  folder = tmp_path_factory.mktemp('clone') / 'mgjax'
  for name in ('mgjax', 'configs', 'experiments'):
    shutil.copytree(
      ROOT / name,
      folder / name,
      ignore=shutil.ignore_patterns('__pycache__', 'records'),
    )
  for name in ('Makefile', 'pyproject.toml', 'requirements.txt'):
    shutil.copy2(ROOT / name, folder)
  (folder / 'tests').mkdir()
  for name in ('conftest.py', 'test_schedule.py'):
    shutil.copy2(ROOT / 'tests' / name, folder / 'tests')
  python = folder / '.venv/bin/python'
  python.parent.mkdir(parents=True)
  python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  python.chmod(0o755)
  version = '.'.join(map(str, sys.version_info[:2]))
  (folder / f'.venv/installed-{version}').touch()

  for i, (split, name) in enumerate([('train', 'train'), ('validate', 'val')]):
    line = f'dancing,youtube{i},1,11,{split}'
    (folder / f'{name}.csv').write_text(
      f'label,youtube_id,time_start,time_end,split\n{line}\n'
    )
    for path in (
      f'k400/youtube{i}_000001_000011.mp4',
      f'my_videos/{"validation" if i else "train"}/waving/{i}.mp4',
    ):
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      (folder / path).write_bytes(videos.encode(seed=i))
  (folder / 'VIDEO.mp4').write_bytes(videos.encode(num_frames=40))
  (folder / 'labels').mkdir()
  for name in write_something_v1(folder / 'labels'):
    videos.write_frames(folder / '20bn-something-something-v1' / name)
  return folder


def test_every_block_is_one_for_the_shell():
  assert len(BLOCKS) >= 8
  assert {language for language, _ in FENCES} == {'sh'}


@pytest.mark.parametrize('number', range(len(BLOCKS)))
def test_block_runs(clone, number):
  path = f'{pathlib.Path(sys.executable).parent}{os.pathsep}'
  # Where make runs these tests, its variables (VENV) are not the clone's.
  environment = {k: v for k, v in os.environ.items() if k != 'MAKEFLAGS'}
  result = subprocess.run(
    ['bash', '-euo', 'pipefail', '-c', BLOCKS[number]],
    cwd=clone,
    env={**environment, **SMALL, 'PATH': path + os.environ['PATH']},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  # Two videos have one class, not the 400 that the plans after it speak of.
  shutil.rmtree(clone / 'data' / 'kinetics400', ignore_errors=True)
