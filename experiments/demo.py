r"""Shows what a training of moving digits is worth beside recorded ones.

python -m experiments.demo --workdir=runs/demo \
  --config=configs/moving_digits.py:grid=both,size=demo

Before the training in --workdir has ended, this says what accuracy to expect.
Afterwards it prints a table: this run, recorded runs of the same settings, and
the baseline after the same seconds, between two lengths of the front
(PROTOCOL.md). --compare trains a baseline on this machine as well: in as many
epochs, rounded up, as it can have in the seconds of the run. Accuracies are
those on the validation split.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import itertools
import math
import pathlib
import statistics
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags

from experiments.runs import judged, record, starts
from experiments.runs.run import Run
from experiments.tables.by_seed import Seeds, read, train_s
from mgjax import cli, environment, files
from mgjax.cli import ConfigError
from mgjax.config import saved
from mgjax.planning import columns
from mgjax.run import run_folder

Row = tuple[str, str, str]
_HEADER = ('', 'training, s', 'top-1, %')


def recorded(config: ml_collections.ConfigDict) -> tuple[Run, Seeds] | None:
  """The run of the front that has a config's settings, and its records.

  Args:
    config: Its seed and its data set do not matter.

  Returns:
    None where there is no such run, or no record of it.
  """
  wanted = _settings(config)
  for run in judged.FRONT:
    if _settings(cli.read_config(run.config, run.overrides)) == wanted:
      found = read(run)
      return (run, found) if found and found.train_s else None
  return None


def _settings(config: ml_collections.ConfigDict) -> dict:
  stored = saved.as_json(config)
  grid = dict(stored['grid'])
  if grid['mode'] == 'none':
    del grid['epoch_factor']  # It has none.
  # The demo's videos are those of `motion`, without its test split.
  data = {**stored['data'], 'name': ''}
  return {**stored, 'seed': 0, 'grid': grid, 'data': data}


def after(seconds: float) -> tuple[float, tuple[Run, Run]] | None:
  """Top-1 of the recorded baseline in so many seconds of training.

  Between two lengths of the front, on the line through their means: each length
  is a training of its own, with its decay at its end.

  Returns:
    Percent, and the two runs; None where there are none around.
  """
  points = sorted(
    (
      (statistics.mean(found.train_s.values()), found.validation.values(), run)
      for run in judged.FRONT
      if run.grid == 'none' and (found := read(run)) and found.train_s
    ),
    key=lambda point: point[0],
  )
  for (begin, low, short), (end, high, long) in itertools.pairwise(points):
    if begin <= seconds <= end:
      share = (seconds - begin) / (end - begin)
      low, high = statistics.mean(low), statistics.mean(high)
      return low + share * (high - low), (short, long)
  return None


def expectation(config: ml_collections.ConfigDict) -> str:
  """What accuracy to expect of a training, in a line."""
  found = recorded(config)
  chance = 100 / config.model.num_classes
  if not found:
    return f'No such training is recorded; chance is {chance:.1f} %.'
  return (
    f'Expect a top-1 of {_top1(found[1])} on validation, as in the recorded '
    f'trainings; chance is {chance:.1f} %.'
  )


def _top1(seeds: Seeds) -> str:
  """'93.1 (92.0 to 94.5, 3 seeds)'."""
  values = seeds.validation.values()
  text = f'{statistics.mean(values):.1f}'
  if len(values) == 1:
    return f'{text} (1 seed)'
  return f'{text} ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)'


def table(
  config: ml_collections.ConfigDict, summary: dict, baseline: dict | None
) -> list[str]:
  """A run beside the recorded ones, as lines of text.

  Args:
    config: The run's.
    summary: The summary.json of the run.
    baseline: That of a baseline which was trained here; None: there is none.
  """
  rows: list[Row] = [_HEADER, _row('this run', summary)]
  if baseline:
    epochs = baseline['epochs']
    rows.append(_row(f'baseline here, {epochs} epochs', baseline))
  notes = []
  if found := recorded(config):
    run, seeds = found
    mean = statistics.mean(seeds.train_s.values())
    rows.append((f'recorded: {run.row}', f'{mean:.0f}', _top1(seeds)))
    if run.grid != 'none' and (other := after(mean)):
      top1, (short, long) = other
      between = f'{top1:.1f} (between {short.row} and {long.row})'
      rows.append(('recorded: baseline', f'{mean:.0f}', between))
    notes = [_machine(run)]
  lines = [line.rstrip() for line in columns.aligned(rows, left=(0, 2))]
  return [*lines, *notes]


def _row(name: str, summary: dict) -> Row:
  return name, f'{train_s(summary):.0f}', f'{summary["top1"]:.1f}'


def _machine(run: Run) -> str:
  """Where a run was recorded, and whether its seconds are those of here."""
  entry = record.load(f'{run.name}-seed*')[0]
  theirs = entry['summary']['environment']
  kind = [theirs.get('cpu'), theirs.get('num_cpus')]
  text = (
    f'Recorded on {kind[1]} core(s) of {kind[0]}, commit {entry["commit"][:7]}'
  )
  if kind == [environment.cpu_name(), environment.num_cpus()]:
    return f'{text}: a machine like this one.'
  return f'{text}: compare its seconds with one another only.'


def baseline_epochs(
  summary: dict, lines: Sequence[dict], grid: dict, epochs: int
) -> int:
  """Epochs that the baseline can have in the seconds of a run, rounded up.

  Args:
    summary: The summary.json of the run.
    lines: Its metrics.
    grid: 'T', 'H', 'W' and 'batch' of the full grid, which the baseline's steps
      have.
    epochs: Of the whole baseline.

  Raises:
    ConfigError: The run has measured no step of the full grid.
  """
  steps = [
    line['step_s']
    for line in lines
    if 'step_s' in line and all(line[axis] == grid[axis] for axis in grid)
  ]
  if not steps:
    raise ConfigError(
      'the run has no line about a step of the full grid in metrics.jsonl, so '
      'the length of a baseline of the same seconds is not known; train longer'
    )
  epoch_s = statistics.median(steps) * summary['baseline_steps'] / epochs
  return max(1, math.ceil(train_s(summary) / epoch_s))


def train_baseline(
  config: ml_collections.ConfigDict,
  words: Sequence[str],
  workdir: pathlib.Path,
) -> dict:
  """Trains the baseline for the seconds of a run; returns its summary.json.

  Args:
    config: The run's.
    words: The arguments that say it: --config=FILE.py and its overrides.
    workdir: The run's folder; the baseline's is beside it.

  Raises:
    ConfigError: The run says nothing of the length.
    SystemExit: The training failed; it has the training's exit code.
  """
  folder = workdir.with_name(f'{workdir.name}-baseline')
  if not (folder / 'summary.json').exists():
    epochs = baseline_epochs(
      files.read_json(workdir / 'summary.json'),
      run_folder.read_metrics(workdir),
      files.read_json(workdir / 'plan.json')['baseline']['grid'],
      config.optim.total_epochs,
    )
    factor = epochs / config.optim.total_epochs
    steps = ','.join(f'{factor * step:g}' for step in config.optim.lr_steps)
    warmup = min(1.0, factor) * config.optim.warmup_epochs
    command = [
      *('-m', 'mgjax.train', *words, f'--workdir={folder}'),
      '--config.grid.mode=none',
      f'--config.optim.total_epochs={epochs}',
      f'--config.optim.lr_steps=({steps},)',
      f'--config.optim.warmup_epochs={warmup:g}',
    ]
    if code := starts.call(command).code:
      sys.exit(code)
  return files.read_json(folder / 'summary.json')


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('workdir', str, None, 'Folder of the training.')
  flags.mark_flag_as_required('workdir', flag_values=values)
  flag('compare', bool, False, 'Whether to train a baseline here.')


def main(args: flags.FlagValues) -> None:
  """Prints what to expect, or what came out.

  Raises:
    ConfigError: The flags cannot work.
    SystemExit: The training of the baseline failed; it has its exit code.
  """
  workdir = pathlib.Path(args.workdir)
  if not (workdir / 'summary.json').exists():
    print(expectation(args.config))
    return
  baseline = None
  if args.compare and args.config.grid.mode != 'none':
    words = [word for word in sys.argv[1:] if word.startswith('--config')]
    if not all('=' in word for word in words):
      raise ConfigError('--compare takes --config=... with an equals sign')
    baseline = train_baseline(args.config, words, workdir)
  summary = files.read_json(workdir / 'summary.json')
  print('', *table(args.config, summary, baseline), sep='\n')


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags))
