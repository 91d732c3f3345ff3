"""The notebook of examples/ runs, cell by cell, without Jupyter."""

import json
import os
import pathlib
import re
import subprocess
import sys

from mgjax import cli
from tests import compiling

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / 'examples/own_videos.ipynb').read_text())
CELLS = [c for c in NOTEBOOK['cells'] if c['cell_type'] == 'code']
# A kernel does no more with code than this, where no line is a magic.
PROGRAM = '\n'.join(''.join(cell['source']) for cell in CELLS)


def execute(folder, program):
  return subprocess.run(
    [sys.executable, '-c', program],
    cwd=folder,
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'MGJAX_NOTEBOOK': 'tiny',
      'MPLBACKEND': 'agg',
      'XLA_FLAGS': compiling.QUICK,
    },
    capture_output=True,
    text=True,
  )


def test_the_notebook_is_one_of_jupyter_without_results():
  assert (NOTEBOOK['nbformat'], NOTEBOOK['nbformat_minor']) == (4, 5)
  ids = [cell['id'] for cell in NOTEBOOK['cells']]
  assert len(set(ids)) == len(ids)
  for cell in NOTEBOOK['cells']:
    assert cell['cell_type'] in ('code', 'markdown')
  for cell in CELLS:
    assert cell['outputs'] == [] and cell['execution_count'] is None
  # Lines that only a kernel understands.
  assert not re.search(r'^\s*[%!]', PROGRAM, re.M)


def test_the_notebook_asks_its_commands_for_what_they_have(tmp_path):
  """All cells but for the commands, which are collected, and their results."""
  commands = tmp_path / 'commands.txt'
  (tmp_path / 'mine/heat').mkdir(parents=True)
  (tmp_path / 'mine/config.py').touch()
  predictions = [
    {'label': name, 'class': i, 'probability': 1 / 3}
    for i, name in enumerate(('right', 'clockwise', 'grow'))
  ]
  label = {'start_s': 0, 'end_s': 1, 'predictions': predictions}
  (tmp_path / 'mine/long.jsonl').write_text(json.dumps(label))
  without = re.sub(r'^def run\(.*?(?=^\w|^if )', '', PROGRAM, flags=re.M | re.S)
  without = re.sub(r"^show\('mine.*$", '', without, flags=re.M)
  run = (
    'import json\n'
    f'def run(*c): print(json.dumps([str(w) for w in c]),'
    f' file=open({str(commands)!r}, "a"))\n'
  )
  result = execute(tmp_path, run + without)
  assert result.returncode == 0, result.stderr[-2000:]
  assert len(list(tmp_path.rglob('my_videos/*/*.mp4'))) == 9
  called = [json.loads(line) for line in commands.read_text().splitlines()]
  assert [c[2] for c in called] == [
    'mgjax.new',
    'mgjax.train',
    'mgjax.predict',
    'mgjax.predict',
  ]
  for _, _, module, *arguments in called:
    check(module, arguments)


def check(module, arguments):
  """Every flag of a command is one that the command has."""
  values = cli.flags.FlagValues()
  name = f'{module}.__main__' if module == 'mgjax.new' else module
  __import__(name)
  sys.modules[name].define_flags(values)
  own = [a for a in arguments if not re.match('--config[.=]', a)]
  cli._parse(values, ['', *own])


def test_the_notebook_runs_from_the_first_cell_to_the_last(tmp_path):
  result = execute(tmp_path, PROGRAM)
  assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
  for name in ('run/report.png', 'heat/1.png', 'heat/1-2.png', 'long.jsonl'):
    assert (tmp_path / 'mine' / name).stat().st_size > 100
  assert re.search(r'0.0 - +\d\.\d s  (right|clockwise|grow) ', result.stdout)
