"""The commands of README.md and docs/ run, and what the pages name is there."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.data import videos
from tests.data.prepare.test_annotations import write_something_v1

ROOT = pathlib.Path(__file__).parent.parent
# The README comes first: the other pages go on with what its commands made.
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# The same commands, at a size for tests: `make demo` on tiny videos; the tests
# are those of one file.
SMALL = {'SIZE': 'tiny'}


class Block(NamedTuple):
  """What stands between two fences of a page."""

  page: str
  language: str
  text: str


def blocks_of(page):
  found = re.findall(r'^```(\w*)\n(.*?)^```', page.read_text(), re.M | re.S)
  return [Block(page.name, language, text) for language, text in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# `text` is what no test can run: other machines, downloads, placeholders.
RUN = [block for block in BLOCKS if block.language == 'sh']
PROGRAMS = [
  block
  for block in BLOCKS
  if block.language == 'python'
  # The tutorial's are parts of the programs in examples.
  and block.page != 'existing_training.md'
]


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
  """The project, installed, and the videos that the pages speak of."""
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
  for name in ('conftest.py', 'compiling.py', 'grids/test_schedule.py'):
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
    path = folder / f'k400/youtube{i}_000001_000011.mp4'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(videos.encode(seed=i))
  for number, label in enumerate(('bowing', 'jumping', 'waving')):
    for i in range(4):
      path = folder / f'my_videos/{label}/{i}.mp4'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(videos.encode(seed=10 * number + i))
  (folder / 'VIDEO.mp4').write_bytes(videos.encode(num_frames=40))
  (folder / 'labels').mkdir()
  for name in write_something_v1(folder / 'labels'):
    videos.write_frames(folder / '20bn-something-something-v1' / name)
  return folder


def run_in(clone, command):
  path = f'{pathlib.Path(sys.executable).parent}{os.pathsep}'
  # Where make runs these tests, its variables (VENV) are not the clone's.
  environment = {k: v for k, v in os.environ.items() if k != 'MAKEFLAGS'}
  result = subprocess.run(
    command,
    cwd=clone,
    env={**environment, **SMALL, 'PATH': path + os.environ['PATH']},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-2000:]


def test_every_block_says_what_it_is():
  assert len(RUN) >= 10
  assert {page.name for page in PAGES} >= {'README.md', 'data.md', 'modes.md'}
  assert {block.language for block in BLOCKS} <= {'sh', 'text', 'python'}
  # A text would hide a command that a test can run.
  readme = [block.text for block in blocks_of(PAGES[0]) if block[1] == 'text']
  assert all('pip install' in text for text in readme)


def params_of(blocks):
  """The blocks as parameters; those of docs/ are slow."""
  return [
    pytest.param(
      block,
      id=f'{block.page}-{number}',
      marks=[] if block.page == 'README.md' else pytest.mark.slow,
    )
    for number, block in enumerate(blocks)
  ]


@pytest.mark.parametrize('block', params_of(RUN))
def test_block_runs(clone, block):
  run_in(clone, ['bash', '-euo', 'pipefail', '-c', block.text])
  # Two videos have one class, not the 400 that the plans after it speak of.
  shutil.rmtree(clone / 'data' / 'kinetics400', ignore_errors=True)


@pytest.mark.parametrize('block', params_of(PROGRAMS))
def test_program_runs(clone, block):
  run_in(clone, [sys.executable, '-c', block.text])


# What the pages name.

TEXTS = [
  *PAGES,
  *(ROOT / name for name in ('CONTRIBUTING.md', 'experiments/README.md')),
  ROOT / 'experiments/records/README.md',
  ROOT / 'experiments/runs/classes/README.md',
  *sorted((ROOT / 'experiments/pages').glob('*.md')),
]
NAMES = [str(path.relative_to(ROOT)) for path in TEXTS]


@pytest.mark.parametrize('page', TEXTS, ids=NAMES)
def test_links_lead_somewhere(page):
  prose = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  for link in re.findall(r'\]\(([^)#\s]+)', prose):
    if not link.startswith('http'):
      assert (page.parent / link).exists(), link


def anchors_of(page):
  """Those that a reader of Markdown makes of a page's headings."""
  prose = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  titles = re.findall(r'^#+ (.*)$', prose, re.M)
  return {re.sub(r'[^\w\- ]', '', t.lower()).replace(' ', '-') for t in titles}


@pytest.mark.parametrize('page', TEXTS, ids=NAMES)
def test_anchors_are_headings(page):
  prose = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  for link, anchor in re.findall(r'\]\(([^)#\s]*)#([^)\s]+)\)', prose):
    if not link.startswith('http'):
      assert anchor in anchors_of(page.parent / link if link else page), anchor


@pytest.mark.parametrize('page', TEXTS, ids=NAMES)
def test_files_and_modules_that_are_named_are_there(page):
  text = page.read_text()
  rooms = 'mgjax|configs|experiments|tests|docs|examples'
  for path in re.findall(rf'`((?:{rooms})/[\w./-]*)', text):
    assert (ROOT / path).exists(), path
  for module in re.findall(r'-m ((?:mgjax|experiments)[\w.]*)', text):
    path = ROOT / module.replace('.', '/')
    assert (
      path.with_suffix('.py').exists() or (path / '__main__.py').exists()
    ), module


def test_every_page_is_named_in_the_readme():
  text = PAGES[0].read_text()
  for page in (*PAGES[1:], ROOT / 'CONTRIBUTING.md'):
    assert f']({page.relative_to(ROOT)})' in text, page.name
