"""Runs a training and keeps what is needed to check and repeat it."""

import json
import pathlib
import shutil
import subprocess
import sys

RECORDS = pathlib.Path(__file__).parent / 'records'

# What a record keeps of a run's folder.
_FILES = ('config.json', 'plan.json', 'metrics.jsonl', 'eval.json')


def run(name: str, config: str, *, workdir: pathlib.Path) -> pathlib.Path:
  """Trains, unless the record exists, and writes the record.

  Args:
    name: Of the record: 'experiment/run'.
    config: Value of --config.
    workdir: Folder of the run; an interrupted run in it goes on.

  Returns:
    The record's folder: the files of the run, its summary, the command, the
    commit of the code and whether the code was changed since.

  Raises:
    CalledProcessError: The training failed.
  """
  folder = RECORDS / name
  if (folder / 'record.json').exists():
    print(f'{name}: recorded', flush=True)
    return folder
  command = ['-m', 'mgjax.train', f'--config={config}', f'--workdir={workdir}']
  print(f'{name}: python {" ".join(command)}', flush=True)
  subprocess.run([sys.executable, *command], check=True)
  folder.mkdir(parents=True, exist_ok=True)
  for file in _FILES:
    shutil.copy(workdir / file, folder / file)
  record = {
    'command': f'python {" ".join(command)}',
    'config': config,
    'commit': _git('rev-parse', 'HEAD'),
    'changed_files': _git('status', '--porcelain', '--', 'mgjax', 'configs'),
    'summary': json.loads((workdir / 'summary.json').read_text()),
  }
  (folder / 'record.json').write_text(json.dumps(record, indent=1) + '\n')
  return folder


def load(experiment: str) -> list[dict]:
  """The records of an experiment, in the order of their names."""
  return [
    json.loads(path.read_text())
    for path in sorted((RECORDS / experiment).glob('*/record.json'))
  ]


def _git(*arguments: str) -> str:
  return subprocess.run(
    ['git', *arguments], capture_output=True, text=True, check=True
  ).stdout.strip()
