"""Runs a training and keeps what is needed to check and repeat it."""

import csv
import hashlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

import ml_collections
from etils import epath

from experiments.runs import settings
from mgjax import cli, files
from mgjax.cli import ConfigError
from mgjax.config import saved
from mgjax.setup import data as data_setup

RECORDS = pathlib.Path(__file__).parents[1] / 'records'
# Data sets that records may be about: name, fingerprint, what it is.
DATA_SETS = pathlib.Path(__file__).parent / 'data_sets.csv'

# Experiment whose records are step times of one config each.
STEP_TIMES = 'grid_step_times'

# What a record keeps of a run's folder.
_FILES = ('config.json', 'plan.json', 'metrics.jsonl', 'eval.json')


def run(
  name: str,
  config: str,
  *,
  workdir: epath.Path,
  overrides: Sequence[str] = (),
  log: IO[str] | None = None,
) -> pathlib.Path:
  """Trains, unless the record exists, and writes the record.

  Args:
    name: Of the record: 'experiment/run'.
    config: Value of --config.
    workdir: Folder of the run; an interrupted run in it goes on.
    overrides: Such as '--config.grid.epoch_factor=1.0'.
    log: Where the training prints; None: here.

  Returns:
    The record's folder; records/README.md says what it holds.

  Raises:
    CalledProcessError: The training failed.
    ConfigError: A value of the config cannot work, or its data set has not
      been prepared.
  """
  folder = RECORDS / name
  if (folder / 'record.json').exists():
    print(f'{name}: recorded', flush=True)
    return folder
  data_folder = data_setup.builder_dir(cli.read_config(config, overrides))
  command = [
    *('-m', 'mgjax.train', f'--config={config}', *overrides),
    f'--workdir={workdir}',
  ]
  text = f'{_pinning()}python {shlex.join(command)}'
  print(f'{name}: {text}', flush=True)
  # Before the training: a commit made meanwhile is not what is measured.
  version, load = code_version(), os.getloadavg()
  subprocess.run([sys.executable, *command], check=True, stdout=log, stderr=log)
  stored = files.read_json(workdir / 'config.json')
  entry = {
    'command': text,
    'config': config,
    'overrides': list(overrides),
    'config_hash': settings.config_hash(stored),
    'data': {
      'name': stored['data']['name'],
      'fingerprint': data_fingerprint(data_folder),
    },
    **version,
    'load_average': load,
    'summary': files.read_json(workdir / 'summary.json'),
  }
  _write(folder, workdir, entry)
  return folder


def _write(folder: pathlib.Path, workdir: epath.Path, entry: dict) -> None:
  """Writes record.json last: a folder without it is no record yet."""
  folder.mkdir(parents=True, exist_ok=True)
  for file in _FILES:
    (folder / file).write_bytes((workdir / file).read_bytes())
  (folder / 'record.json').write_text(json.dumps(entry, indent=1) + '\n')


def _pinning() -> str:
  """What a command starts with to have this thread's CPUs; '' for all."""
  mine = os.sched_getaffinity(0)
  if mine == os.sched_getaffinity(os.getpid()):  # Of the main thread.
    return ''
  return f'taskset -c {",".join(map(str, sorted(mine)))} '


def command_line(module: str) -> str:
  """The command that runs a module with this process's arguments."""
  return f'python -m {module} {shlex.join(sys.argv[1:])}'


def code_version() -> dict[str, str]:
  """The commit, and which files of the code were changed since."""
  return {
    'commit': _git('rev-parse', 'HEAD'),
    'changed_files': _git('status', '--porcelain', '--', 'mgjax', 'configs'),
  }


def new_file(folder: str, name: str) -> pathlib.Path:
  """Where a benchmark writes its record, one file.

  Raises:
    ConfigError: It is there already: a record is not replaced.
  """
  path = pathlib.Path(folder) / f'{name}.json'
  if path.exists():
    raise ConfigError(f'{path} is there already; give another --name')
  return path


def write_file(path: pathlib.Path, entry: dict) -> None:
  """Writes such a record."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(entry, indent=1) + '\n')
  print(f'wrote {path}', file=sys.stderr)


def exists(name: str) -> bool:
  """Whether there is a record of this name."""
  return (RECORDS / name / 'record.json').exists()


def load(pattern: str) -> list[dict]:
  """Records in the order of their names.

  Args:
    pattern: An experiment, or a glob pattern of names: 'digits/none-seed*'.

  Returns:
    The contents of record.json, with the record's 'name'.
  """
  if '/' not in pattern:
    pattern = f'{pattern}/*'  # So '*' is all of them.
  return [
    {
      'name': str(path.parent.relative_to(RECORDS)),
      **files.read_json(path),
    }
    for path in sorted(RECORDS.glob(f'{pattern}/record.json'))
  ]


def config_of(entry: dict) -> dict:
  """The config that a loaded record was trained with."""
  return files.read_json(RECORDS / entry['name'] / 'config.json')


def plan_of(entry: dict) -> dict:
  """The plan of a loaded record."""
  return files.read_json(RECORDS / entry['name'] / 'plan.json')


def eval_of(entry: dict) -> dict:
  """The last evaluation of a loaded record."""
  return files.read_json(RECORDS / entry['name'] / 'eval.json')


def machine_of(entry: dict) -> tuple:
  """What two loaded records must share for their times to be comparable."""
  environment = entry['summary']['environment']
  keys = (
    'device',
    'num_devices',
    'num_processes',
    'machine',
    'num_cpus',
    'cpu',
    'python',
    'jax',
    'jaxlib',
  )
  # 'cpu' has been recorded since November 2026 only. The older records, those
  # of moving_digits and the first of frames_accuracy, are of one machine with
  # two cores, so None equals None here; cores and versions, which they have,
  # must still agree, and they never compare to a record that names its cpu.
  # What else the machine was doing is in no record of a training.
  return tuple(environment.get(key) for key in keys)


def load_files(experiment: str) -> dict[str, dict]:
  """Records that are one file each, EXPERIMENT/NAME.json, by name."""
  return {
    path.stem: files.read_json(path)
    for path in sorted((RECORDS / experiment).glob('*.json'))
  }


def data_fingerprint(folder: pathlib.Path) -> str:
  """Sixteen hexadecimal digits that differ where prepared data sets do.

  From the number of videos and of bytes in each split, the class names, and
  the manifest, where there is one. Bytes stand for contents: videos that
  differ have other lengths when encoded, and hashing a large set takes hours.
  """
  info = files.read_json(folder / 'dataset_info.json')
  splits = [
    (split['name'], split['shardLengths'], split['numBytes'])
    for split in info['splits']
  ]
  digest = hashlib.sha256(json.dumps(sorted(splits)).encode())
  for path in sorted(folder.iterdir()):
    if path.name.endswith('.labels.txt') or path.name.startswith('manifest'):
      digest.update(f'{path.name}\n'.encode() + path.read_bytes())
  return digest.hexdigest()[:16]


def problems() -> list[str]:
  """Says which records cannot be trusted, and why; [] if all can.

  A record's config must be the one that its config file and overrides make
  today (a field that has been added since does not matter), and the data set
  of a training one of data_sets.csv.
  """
  found = []
  with DATA_SETS.open(newline='') as file:
    data_sets = {(d['name'], d['fingerprint']) for d in csv.DictReader(file)}
  for entry in load('*'):
    lacking = {'config_hash', 'data', 'overrides'} - set(entry)
    if lacking:
      found.append(f'{entry["name"]}: lacks {", ".join(sorted(lacking))}')
      continue
    found += _config_problems(entry['name'], entry, config_of(entry))
    data = entry['data']
    if (data['name'], data['fingerprint']) not in data_sets:
      found.append(
        f'{entry["name"]}: data set {data["name"]} with fingerprint '
        f'{data["fingerprint"]} is not in {DATA_SETS.name}'
      )
  # Of steps on random clips: no data set.
  for name, entry in load_files(STEP_TIMES).items():
    name = f'{STEP_TIMES}/{name}.json'
    lacking = {'config', 'overrides', 'config_hash', 'settings'} - set(entry)
    if lacking:
      found.append(f'{name}: lacks {", ".join(sorted(lacking))}')
    else:
      found += _config_problems(name, entry, entry['settings'])
  return found


def _config_problems(name: str, entry: dict, stored: dict) -> list[str]:
  """Says what is wrong with the config of a record, if anything is.

  Args:
    name: Of the record.
    entry: Has the config's name, overrides and hash.
    stored: The settings that it was measured with.
  """
  if _is_known_config(entry, stored):
    return []
  return [
    f'{name}: its config (hash {entry["config_hash"]}) is not that of '
    f'{" ".join([entry["config"], *entry["overrides"]])}'
  ]


def _is_known_config(entry: dict, stored: dict) -> bool:
  try:
    config = saved.as_json(cli.read_config(entry['config'], entry['overrides']))
  except ConfigError:
    return False
  return settings.config_hash(stored) == entry['config_hash'] and _are_same(
    config, stored
  )


def _are_same(config: dict, stored: dict) -> bool:
  """Whether a config is a stored one, which may lack younger fields."""
  return settings.config_hash(
    saved.current_form(stored)
  ) == settings.config_hash(config)


def with_config(config: ml_collections.ConfigDict) -> list[dict]:
  """Records of a config, whatever their seed."""
  wanted = {**saved.as_json(config), 'seed': 0}
  found = []
  for entry in load('*'):
    stored = {**config_of(entry), 'seed': 0}
    if _are_same(wanted, stored):
      found.append(entry)
  return found


def _git(*arguments: str) -> str:
  return subprocess.run(
    ['git', *arguments], capture_output=True, text=True, check=True
  ).stdout.strip()
