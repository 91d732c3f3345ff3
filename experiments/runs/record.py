"""Runs a training and keeps what is needed to check and repeat it."""

import csv
import datetime
import hashlib
import json
import math
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

import ml_collections
from etils import epath

from experiments.runs import settings, starts
from mgjax import cli, files
from mgjax.cli import ConfigError
from mgjax.config import saved
from mgjax.setup import data as data_setup

RECORDS = pathlib.Path(__file__).parents[1] / 'records'
# Data sets that records may be about: name, fingerprint, what it is.
DATA_SETS = pathlib.Path(__file__).parent / 'data_sets.csv'

# Experiments whose records are times of the steps of one config each.
STEP_TIMES = 'grid_step_times'
COMPILE_SECONDS = 'compile_seconds'

# What a record keeps of a run's folder.
_FILES = ('config.json', 'plan.json', 'metrics.jsonl', 'eval.json')
# The evaluation on the test split, in a run's folder and in a record.
_TEST = 'test.json'

_ROOT = pathlib.Path(__file__).parents[2]


def run(
  name: str,
  config: str,
  *,
  workdir: epath.Path,
  overrides: Sequence[str] = (),
  test_split: str = '',
  records: pathlib.Path | None = None,
  log: IO[str] | None = None,
  is_cold: bool = False,
) -> pathlib.Path:
  """Trains, unless the record exists, and writes the record.

  Args:
    name: Of the record: 'experiment/run'.
    config: Value of --config.
    workdir: Folder of the run; an interrupted run in it goes on.
    overrides: Such as '--config.grid.epoch_factor=1.0'.
    test_split: Split that judges the trained network; '': none does.
    records: Folder of records; None: the repository's.
    log: Where the training prints; None: here.
    is_cold: Whether it has a cache of compiled programs of its own, in its
      folder, which is empty at first.

  Returns:
    The record's folder; records/README.md says what it holds.

  Raises:
    CalledProcessError: The training or the evaluation on the test split failed.
    ConfigError: A value of the config cannot work, its data set has not been
      prepared or has no such split, nothing says what code has made the run in
      the folder, other code has, or its evaluation is not the training's.
  """
  folder = (records or RECORDS) / name
  if (folder / 'record.json').exists():
    print(f'{name}: recorded', flush=True)
    return folder
  data_folder = data_setup.builder_dir(cli.read_config(config, overrides))
  if test_split and test_split not in _splits(data_folder):
    # Before the training, which takes long.
    raise ConfigError(
      f'{name}: {data_folder} has no split {test_split!r} to judge by; it has '
      f'{", ".join(_splits(data_folder))}'
    )
  command = [
    *('-m', 'mgjax.train', f'--config={config}', *overrides),
    f'--workdir={workdir}',
  ]
  environ = {}
  if is_cold:
    environ['JAX_COMPILATION_CACHE_DIR'] = str(workdir / 'programs')
  words = [f'{name}={shlex.quote(value)} ' for name, value in environ.items()]
  text = f'{"".join(words)}{_pinning()}python {shlex.join(command)}'
  print(f'{name}: {text}', flush=True)
  if not (workdir / 'summary.json').exists():
    # Before the training: a commit made meanwhile is not what is measured.
    starts.train(command, workdir, code_version(), log, environ)
  elif not starts.read(workdir):
    raise ConfigError(
      f'{workdir} has a finished run, and nothing says what code has made it; '
      'give another --workdir'
    )
  if test_split:
    _judge(workdir, test_split, log)
  if not _is_of_training(workdir / 'eval.json'):
    raise ConfigError(
      f'{workdir}/eval.json is that of an evaluation by command, and the '
      "training's is lost; give another --workdir"
    )
  stored = files.read_json(workdir / 'config.json')
  summary = files.read_json(workdir / 'summary.json')
  entry = {
    'command': text,
    'config': config,
    'overrides': list(overrides),
    'config_hash': settings.config_hash(stored),
    'data': {
      'name': stored['data']['name'],
      'fingerprint': data_fingerprint(data_folder),
    },
    **starts.conditions(workdir),
    'cache': _cache_state(summary['programs']),
    'summary': summary,
  }
  # The run in the folder may be another's, which had ended.
  if problems := _config_problems(name, entry, stored):
    raise ConfigError(f'{workdir}: {problems[0]}')
  _write(folder, workdir, entry)
  return folder


def _judge(workdir: epath.Path, split: str, log: IO[str] | None) -> None:
  """Evaluates a trained network on a split; the result becomes test.json.

  `mgjax.evaluate` writes eval.json, which is the training's before and after. A
  kill at any line is made good by the next call.

  Raises:
    CalledProcessError: The evaluation failed.
    ConfigError: Other code has trained the network.
  """
  newest, kept = workdir / 'eval.json', workdir / 'eval-of-training.json'
  test = workdir / _TEST
  if _is_of_training(newest):
    files.write_bytes(kept, newest.read_bytes())
  elif not kept.exists():
    return
  if not test.exists():
    # Else it is that of a call which was killed, or another by hand.
    if files.read_json(newest).get('overrides') != {'eval.split': split}:
      starts.check_code(workdir, code_version())
      command = [
        *('-m', 'mgjax.evaluate', f'--workdir={workdir}'),
        f'--config.eval.split={split}',
      ]
      if code := starts.call(command, log).code:
        raise subprocess.CalledProcessError(code, command)
    files.write_bytes(test, newest.read_bytes())
  files.write_bytes(newest, kept.read_bytes())


def _is_of_training(path: epath.Path) -> bool:
  """Whether a training has written this eval.json, not `mgjax.evaluate`."""
  # Which says what it did.
  return 'config_eval' not in files.read_json(path)


def _cache_state(programs: dict[str, int]) -> dict:
  """How much of a run was compiled, and how much was there already.

  Args:
    programs: 'compiled' and 'from_disk', of the run's last start.

  Returns:
    These two and 'state': 'cold' where all programs were compiled, 'warm' where
    none was, else 'mixed'.
  """
  compiled, from_disk = programs['compiled'], programs['from_disk']
  state = 'mixed' if compiled and from_disk else 'cold' if compiled else 'warm'
  return {**programs, 'state': state}


def _write(folder: pathlib.Path, workdir: epath.Path, entry: dict) -> None:
  """Writes record.json last: a folder without it is no record yet."""
  folder.mkdir(parents=True, exist_ok=True)
  judged = [_TEST] if (workdir / _TEST).exists() else []
  for file in [*_FILES, *judged]:
    (folder / file).write_bytes((workdir / file).read_bytes())
  files.write_text(folder / 'record.json', json.dumps(entry, indent=1) + '\n')


def _pinning() -> str:
  """What a command starts with to have this thread's CPUs; '' for all."""
  if not hasattr(os, 'sched_getaffinity'):  # macOS: `launch` pins no run.
    return ''
  mine = os.sched_getaffinity(0)
  if mine == os.sched_getaffinity(os.getpid()):  # Of the main thread.
    return ''
  return f'taskset -c {",".join(map(str, sorted(mine)))} '


def command_line(module: str) -> str:
  """The command that runs a module with this process's arguments."""
  return f'python -m {module} {shlex.join(sys.argv[1:])}'


def code_version() -> dict[str, str]:
  """The commit, which files of the code were changed since, and the code.

  'package_tree' and 'configs_tree' are Git's hashes of the folders mgjax and
  configs as they are on the disk: where they equal those of a commit, so does
  the code.

  Raises:
    ConfigError: Git does not know them.
  """
  try:
    return {
      'commit': git('rev-parse', 'HEAD'),
      'changed_files': git('status', '--porcelain', '--', 'mgjax', 'configs'),
      'package_tree': tree_on_disk('mgjax'),
      'configs_tree': tree_on_disk('configs'),
    }
  except (OSError, subprocess.CalledProcessError) as error:
    said = getattr(error, 'stderr', '').strip() or str(error)
    raise ConfigError(
      f'a record says its commit, and Git does not know that of {_ROOT} '
      f'({said.splitlines()[0]}); work in a clone'
    ) from error


def tree_on_disk(folder: str) -> str:
  """Git's hash of a folder of the project, what is not committed included."""
  with tempfile.TemporaryDirectory() as scratch:
    # Not the user's own index, in which a commit may be under way.
    index = {'GIT_INDEX_FILE': f'{scratch}/index'}
    git('read-tree', 'HEAD', **index)
    git('add', '--all', '--', folder, **index)
    return git('write-tree', f'--prefix={folder}/', **index)


class Benchmark:
  """The record of a benchmark, one file: where it is written, what it says.

  A record is not replaced: that is said before anything is measured.
  """

  def __init__(self, folder: str, name: str, module: str) -> None:
    """Begins a record.

    Args:
      folder: Of the records; it is made.
      name: The file is NAME.json.
      module: The benchmark's, `__spec__.name`.

    Raises:
      ConfigError: There is such a file, no such folder can be made, or the
        commit is not known.
    """
    self.path = pathlib.Path(folder) / f'{name}.json'
    if self.path.exists():
      raise ConfigError(f'{self.path} is there already; give another --name')
    files.make_folder(self.path.parent, f'--records={folder}')
    self._begin = {
      'command': command_line(module),
      'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      **code_version(),
    }
    self._load = os.getloadavg()[0]

  def write(self, **found: Any) -> dict[str, Any]:
    """Writes the record and returns it.

    Args:
      **found: What was measured, on what.
    """
    load = {'load_average': [self._load, os.getloadavg()[0]]}
    entry = self._begin | load | found
    write_file(self.path, entry)
    return entry


def write_file(path: pathlib.Path, entry: dict) -> None:
  """Writes the record of a benchmark."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(entry, indent=1) + '\n')
  print(f'wrote {path}', file=sys.stderr)


def exists(name: str, records: pathlib.Path | None = None) -> bool:
  """Whether there is a record of this name; `records` as for `run`."""
  return ((records or RECORDS) / name / 'record.json').exists()


def load(pattern: str, records: pathlib.Path | None = None) -> list[dict]:
  """Records in the order of their names.

  Args:
    pattern: An experiment, or a glob pattern of names: 'digits/none-seed*'.
    records: Their folder; None: the repository's.

  Returns:
    The contents of record.json, with the record's 'name'.
  """
  if '/' not in pattern:
    pattern = f'{pattern}/*'  # So '*' is all of them.
  records = records or RECORDS
  return [
    {
      'name': str(path.parent.relative_to(records)),
      **files.read_json(path),
    }
    for path in sorted(records.glob(f'{pattern}/record.json'))
  ]


def config_of(entry: dict) -> dict:
  """The config that a loaded record was trained with."""
  return files.read_json(RECORDS / entry['name'] / 'config.json')


def plan_of(entry: dict) -> dict:
  """The plan of a loaded record."""
  return files.read_json(RECORDS / entry['name'] / 'plan.json')


def eval_of(entry: dict) -> dict:
  """The last evaluation of a loaded record, on the validation split."""
  return files.read_json(RECORDS / entry['name'] / 'eval.json')


def test_of(entry: dict, records: pathlib.Path | None = None) -> dict | None:
  """The evaluation of a loaded record on a test split; None: there is none."""
  path = (records or RECORDS) / entry['name'] / _TEST
  return files.read_json(path) if path.exists() else None


_MACHINE = (
  *('device', 'num_devices', 'num_processes', 'machine', 'num_cpus', 'cpu'),
  *('cpu_model', 'python', 'jax', 'jaxlib'),
)


def machine_of(entry: dict) -> tuple:
  """What two loaded records must share for their times to be comparable."""
  environment = entry['summary']['environment']
  # 'cpu' has been recorded since November 2026 only. The older records, those
  # of moving_digits and the first of frames_accuracy, are of one machine with
  # two cores, so None equals None here; cores and versions, which they have,
  # must still agree, and they never compare to a record that names its cpu.
  # Likewise 'cpu_model', since December 2026.
  return tuple(environment.get(key) for key in _MACHINE)


def are_of_one_machine(entries: Sequence[dict]) -> bool:
  """Whether loaded records can be of one machine.

  Unlike with `machine_of`, a record that has no 'cpu_model' may be of any.
  """
  place = _MACHINE.index('cpu_model')
  machines = [list(machine_of(entry)) for entry in entries]
  models = {machine.pop(place) for machine in machines}
  return len(models - {None}) <= 1 and len(set(map(tuple, machines))) == 1


def seed_of(entry: dict) -> int:
  """The seed of a loaded record, from its config, or else from its name."""
  found = re.search(r'\bseed=(\d+)', entry.get('config', ''))
  return int(found[1] if found else entry['name'].rpartition('-seed')[2])


def processor_text(machine: dict) -> str:
  """What a table says of a machine that a record has: '2 cores of AMD EPYC'."""
  cores = machine['num_cpus']
  return f'{cores} core{"s" * (cores > 1)} of {machine["cpu"]}'


def load_average_of(result: dict) -> list[float]:
  """That of a benchmark's record; older ones have it with the machine."""
  return result.get('load_average') or result['machine']['load']


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
  splits = [
    (name, split['shardLengths'], split['numBytes'])
    for name, split in _splits(folder).items()
  ]
  digest = hashlib.sha256(json.dumps(sorted(splits)).encode())
  for path in sorted(folder.iterdir()):
    if path.name.endswith('.labels.txt') or path.name.startswith('manifest'):
      digest.update(f'{path.name}\n'.encode() + path.read_bytes())
  return digest.hexdigest()[:16]


def _splits(folder: pathlib.Path) -> dict[str, dict]:
  """What a prepared data set says of its splits, by name."""
  info = files.read_json(folder / 'dataset_info.json')
  return {split['name']: split for split in info['splits']}


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
    found += _evaluation_problems(entry)
  # Of steps on random clips: no data set.
  for experiment in (STEP_TIMES, COMPILE_SECONDS):
    for name, entry in load_files(experiment).items():
      name = f'{experiment}/{name}.json'
      lacking = {'config', 'overrides', 'config_hash', 'settings'} - set(entry)
      if lacking:
        found.append(f'{name}: lacks {", ".join(sorted(lacking))}')
      else:
        found += _config_problems(name, entry, entry['settings'])
  return found


def _evaluation_problems(entry: dict) -> list[str]:
  """Says which evaluations of a record are not those of its training."""
  from mgjax.evaluation import results  # Imports JAX, which others need not.

  summary, found = entry['summary'], []
  checks = [(_FILES[-1], {'step': summary['steps'], 'top1': summary['top1']})]
  if test := test_of(entry):
    checks.append((_TEST, {'step': summary['steps']}))
    if (split := test.get('overrides', {}).get('eval.split')) != 'test':
      found.append(f'{entry["name"]}/{_TEST}: its split is {split}')
  for name, wanted in checks:
    result = files.read_json(RECORDS / entry['name'] / name)
    if 'correct' in result:
      right = results.correct_videos(result).sum()
      wanted = {'top1': 100 * right / result['num_scored'], **wanted}
    found += [
      f'{entry["name"]}/{name}: {field} is {result[field]}, not {value}'
      for field, value in wanted.items()
      if not math.isclose(result[field], value, rel_tol=1e-9)
    ]
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
    config = settings.kept(cli.read_config(entry['config'], entry['overrides']))
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
  wanted = {**settings.kept(config), 'seed': 0}
  found = []
  for entry in load('*'):
    stored = {**config_of(entry), 'seed': 0}
    if _are_same(wanted, stored):
      found.append(entry)
  return found


def git(*arguments: str, **environment: str) -> str:
  """What a command of Git says of this project.

  Raises:
    CalledProcessError: It failed.
    OSError: There is no Git.
  """
  return subprocess.run(
    ['git', *arguments],
    capture_output=True,
    text=True,
    check=True,
    cwd=_ROOT,
    env={**os.environ, **environment},
  ).stdout.strip()
