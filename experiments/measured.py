"""Runs of ours and the tables of what their records say."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import record, tabulate


class Run(NamedTuple):
  """Trainings that differ in the seed only."""

  name: str  # EXPERIMENT/NAME: its records are EXPERIMENT/NAME-seedN.
  row: str  # Of the table.
  config: str  # Without the seed.
  overrides: tuple[str, ...] = ()
  model: str = ''  # As costs.py knows it; '': it is counted from the config.


class Result(NamedTuple):
  """What the records of a run say.

  Attributes:
    top1: Of each seed, in percent.
    train_s: Median of the seconds spent on training steps, waits for data
      included; compilation, evaluation and checkpoints are not. A machine is
      at times busy with something else: hence the median.
    compile_s: Median of the seconds of compilation, most of it beside training.
    eval_s: Median of the seconds of evaluation.
    steps: Of one training.
    clips: Of one training.
    gmacs: 1e9 multiply-adds of one training's forward passes.
    machines: That the seeds ran on.
  """

  top1: tuple[float, ...]
  train_s: float
  compile_s: float
  eval_s: float
  steps: int
  clips: int
  gmacs: float
  machines: frozenset[tuple]

  @property
  def mean(self) -> float:
    """Mean top-1."""
    return statistics.mean(self.top1)

  @property
  def deviation(self) -> float | None:
    """Standard deviation of the top-1 over seeds; None of a single seed."""
    return statistics.stdev(self.top1) if len(self.top1) > 1 else None

  @property
  def accuracy(self) -> str:
    """'84.2 ± 0.7', in percent."""
    if self.deviation is None:
      return f'{self.mean:.1f}'
    return f'{self.mean:.1f} ± {self.deviation:.1f}'


def result(run: Run) -> Result | None:
  """Reads the records of a run; None while there are none."""
  entries = record.load(f'{run.name}-seed*')
  if not entries:
    return None
  values = lambda field: [entry['summary'][field] for entry in entries]
  return Result(
    top1=tuple(values('top1')),
    train_s=statistics.median(values('train_s')),
    compile_s=statistics.median(values('compile_s')),
    eval_s=statistics.median(values('eval_s')),
    steps=values('steps')[0],
    clips=values('clips')[0],
    gmacs=record.plan_of(entries[0])['total_gmacs'],
    machines=frozenset(record.machine_of(entry) for entry in entries),
  )


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
  axes.legend(frameon=False)


def comparable(ours: Result, theirs: Result) -> bool:
  """Whether a ratio of their times means anything.

  Both need several seeds, and all of them one machine.
  """
  return (
    len(ours.machines | theirs.machines) == 1
    and min(len(ours.top1), len(theirs.top1)) > 1
  )


def table(name: str, runs: Sequence[Run], *, baseline: str) -> tabulate.Table:
  """One row per run that has records.

  Args:
    name: Of the table.
    runs: In the order of the rows.
    baseline: Name of the run that speed-ups refer to. A measured one is blank
      unless the two are `comparable`.
  """
  read = results(runs)
  base = read.get(baseline)
  rows = []
  for run in runs:
    if run.name not in read:
      continue
    found = read[run.name]
    ratios = ('', '')
    if base:
      timed = comparable(found, base)
      ratios = (
        f'{base.train_s / found.train_s:.2f}' if timed else '',
        f'{base.gmacs / found.gmacs:.2f}',
      )
    rows.append(
      (
        run.row,
        found.accuracy,
        str(len(found.top1)),
        f'{found.steps:,}',
        f'{found.clips:,}',
        f'{found.train_s:.0f}',
        f'{found.compile_s:.0f}',
        f'{found.eval_s:.0f}',
        *ratios,
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
      'speed-up [measured]',
      'speed-up by MACs [computed]',
      'record',
    ),
    rows,
  )
