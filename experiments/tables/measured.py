"""What the records of runs say, and the tables of it."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from matplotlib import ticker

from experiments import intervals, tabulate
from experiments.runs import history, record
from experiments.runs.run import Run
from experiments.tables import by_seed


class Result(NamedTuple):
  """What the records of a run say.

  Attributes:
    top1: Of each seed, in percent.
    train_s: Of each seed, the seconds of training steps and waits for data;
      compilation, evaluation and checkpoints are not in them.
    compile_s: Of each seed, seconds of compilation, most of it beside training.
    eval_s: Of each seed, seconds of evaluation.
    steps: Of one training.
    clips: Of one training.
    gmacs: 1e9 multiply-adds of one training's forward passes.
    frames: Of a clip of the full grid.
    clip_gmacs: 1e9 multiply-adds of the forward pass of such a clip.
    conditions: Machines and commits that the seeds ran with.
    code: The commits, for a table.
    seeds: Whose values the others are, in their order.
  """

  top1: tuple[float, ...]
  train_s: tuple[float, ...]
  compile_s: tuple[float, ...]
  eval_s: tuple[float, ...]
  steps: int
  clips: int
  gmacs: float
  frames: int
  clip_gmacs: float
  conditions: frozenset[tuple]
  code: str
  seeds: tuple[int, ...] = ()

  @property
  def mean(self) -> float:
    """Mean top-1."""
    return statistics.mean(self.top1)

  @property
  def deviation(self) -> float | None:
    """Standard deviation of the top-1 over seeds; None of a single seed."""
    return statistics.stdev(self.top1) if len(self.top1) > 1 else None

  @property
  def mean_train_s(self) -> float:
    """Mean seconds of training."""
    return statistics.mean(self.train_s)


def spread(values: Sequence[float], digits: int) -> str:
  """Mean ± standard deviation, '84.2 ± 0.7'; the mean alone of one value."""
  text = f'{statistics.mean(values):.{digits}f}'
  if len(values) > 1:
    text += f' ± {statistics.stdev(values):.{digits}f}'
  return text


def _read(entries: Sequence[dict]) -> Result:
  """Reads loaded records, that differ in the seed only."""
  values = lambda field: tuple(entry['summary'][field] for entry in entries)
  plan = record.plan_of(entries[0])
  baseline = plan['baseline']
  return Result(
    top1=values('top1'),
    train_s=values('train_s'),
    compile_s=values('compile_s'),
    eval_s=values('eval_s'),
    steps=values('steps')[0],
    clips=values('clips')[0],
    gmacs=plan['total_gmacs'],
    frames=baseline['grid']['T'],
    clip_gmacs=baseline['gmacs'] / baseline['clips'],
    conditions=frozenset(
      (*record.machine_of(entry), entry.get('commit')) for entry in entries
    ),
    code=history.code_of(entries),
    seeds=tuple(map(record.seed_of, entries)),
  )


def result(run: Run) -> Result | None:
  """Reads the records of a run; None while there are none."""
  entries = record.load(f'{run.name}-seed*')
  return _read(entries) if entries else None


def results(runs: Sequence[Run]) -> dict[str, Result]:
  """Reads the records of those runs that have some, by the run's name."""
  found = {run.name: result(run) for run in runs}
  return {name: read for name, read in found.items() if read}


def draw(axes: Any, curves: Mapping[str, Mapping[float, Result]]) -> None:
  """Draws accuracy, with its deviation over seeds, against any number.

  Args:
    axes: Of matplotlib.
    curves: For each label, results by that number.
  """
  for label, points in curves.items():
    axes.errorbar(
      list(points),
      [read.mean for read in points.values()],
      yerr=[read.deviation or 0 for read in points.values()],
      marker='o',
      capsize=3,
      label=label,
    )
  axes.set_ylabel('top-1 [%]')
  if curves:
    axes.legend(frameon=False)


def save_over_time(
  path: pathlib.Path, curves: Mapping[str, Sequence[Run]]
) -> None:
  """Writes a picture of accuracy against seconds of training.

  Args:
    path: Of the picture.
    curves: For each label, runs; those without records are left out.
  """

  def draw_all(axes: Any) -> None:
    found = {label: results(runs).values() for label, runs in curves.items()}
    draw(
      axes,
      {
        label: {read.mean_train_s: read for read in reads}
        for label, reads in found.items()
        if reads
      },
    )
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter('')
    axes.set_xlabel('training [s]')

  tabulate.save_picture(draw_all, path)


def comparable(ours: Result, theirs: Result) -> bool:
  """Whether a ratio of their times means anything.

  Both need several seeds, and all of them one machine and one commit.
  """
  return (
    len(ours.conditions | theirs.conditions) == 1
    and min(len(ours.top1), len(theirs.top1)) > 1
  )


def speedup(ours: Result, baseline: Result) -> str:
  """How many times longer the baseline trains, with an interval.

  Returns:
    The ratio of seconds over pairs of seeds with its 95 % interval, '2.19
    [2.11, 2.27]'. The baseline's own is '1.00'; '' where the two are not
    `comparable`, or share fewer than two seeds.
  """
  if not comparable(ours, baseline):
    return ''
  if ours is baseline:
    return '1.00'
  theirs, own = (
    dict(zip(run.seeds, run.train_s, strict=True)) for run in (baseline, ours)
  )
  return by_seed.paired(intervals.of_paired_ratio, theirs, own, 2)


def speedup_of(
  config: ml_collections.ConfigDict, baseline: ml_collections.ConfigDict
) -> tuple[str, str]:
  """`speedup` of all records of one config over those of another.

  Returns:
    The speed-up and the names of the records; blanks where there is none.
  """
  ours, theirs = record.with_config(config), record.with_config(baseline)
  if not ours or not theirs:
    return '', ''
  ratio = speedup(_read(ours), _read(theirs))
  names = [entry['name'] for entry in (*theirs, *ours)]
  return (ratio, ', '.join(names)) if ratio else ('', '')


def table(name: str, runs: Sequence[Run]) -> tabulate.Table:
  """One row per run that has records: its accuracy and its time.

  Args:
    name: Of the table.
    runs: In the order of the rows, and with them their baselines. A measured
      speed-up is blank unless the run and its baseline are `comparable`.
  """
  read = results(runs)
  rows = []
  for run in runs:
    if run.name not in read:
      continue
    found, base = read[run.name], read.get(run.baseline)
    rows.append(
      (
        run.row,
        spread(found.top1, 1),
        str(len(found.top1)),
        f'{found.steps:,}',
        f'{found.clips:,}',
        *(
          spread(seconds, 0)
          for seconds in (found.train_s, found.compile_s, found.eval_s)
        ),
        speedup(found, base) if base else '',
        f'{base.gmacs / found.gmacs:.2f}' if base else '',
        found.code,
        f'{run.name}-seed*',
      )
    )
  return tabulate.Table(
    name,
    (
      'run',
      'top-1, % [measured]',
      'seeds',
      'steps',
      'clips',
      'training, s [measured]',
      'compiling, s [measured]',
      'evaluating, s [measured]',
      'speed-up, 95 % interval [measured]',
      'speed-up by MACs [computed]',
      'code',
      'record',
    ),
    rows,
  )


def accuracy_table(name: str, runs: Sequence[Run]) -> tabulate.Table:
  """One row per run that has records: its accuracy and its cost, no times."""
  rows = [
    (
      run.row,
      str(found.frames),
      spread(found.top1, 1),
      str(len(found.top1)),
      f'{found.steps:,}',
      f'{found.clips:,}',
      f'{1e3 * found.clip_gmacs:.1f}',
      found.code,
      f'{run.name}-seed*',
    )
    for run in runs
    if (found := result(run))
  ]
  return tabulate.Table(
    name,
    (
      'network',
      'frames',
      'top-1, % [measured]',
      'seeds',
      'steps',
      'clips',
      'MACs of a clip, million [computed]',
      'code',
      'record',
    ),
    rows,
  )
