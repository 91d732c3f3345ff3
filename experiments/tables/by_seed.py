"""Runs of several seeds: means with intervals, and pairs of equal seeds.

Accuracies are means over seeds with intervals of 95 % (Student's t). Runs are
compared seed by seed, and their seconds within a machine and a commit, where
neither was interrupted.
"""

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from experiments import intervals
from experiments.runs import history, record
from experiments.runs.run import Run


class Seeds(NamedTuple):
  """The records of a run, by seed.

  Attributes:
    validation: Top-1 in percent on the split that chooses.
    test: The same on the split that judges; empty where none does.
    train_s: Seconds of steps and of waits for data or for a program, of runs
      that were not interrupted.
    cpu_s: CPU seconds of the process and its children, of those of the same
      that know them.
    wall_s: Seconds by the clock from the start of the process to its end, of
      the same.
    conditions: Machine and code, of all.
    gmacs: 1e9 multiply-adds of one training's forward passes.
    cache: 'warm', 'cold' or 'mixed', of each.
    code: The commits, for a table.
  """

  validation: dict[int, float]
  test: dict[int, float]
  train_s: dict[int, float]
  cpu_s: dict[int, float]
  wall_s: dict[int, float]
  conditions: dict[int, tuple]
  gmacs: float
  cache: tuple[str, ...]
  code: str


def train_s(summary: dict) -> float:
  """Seconds of a run's steps and of its waits for data or for a program."""
  return summary['train_s'] + summary['compile_wait_s']


def read(run: Run) -> Seeds | None:
  """Reads the records of a run; None while there are none."""
  entries = {
    record.seed_of(entry): entry for entry in record.load(f'{run.name}-seed*')
  }
  if not entries:
    return None
  whole = {s: entry for s, entry in entries.items() if not entry['resumed']}
  judged_by = {s: record.test_of(entry) for s, entry in entries.items()}
  return Seeds(
    validation={s: e['summary']['top1'] for s, e in entries.items()},
    test={s: found['top1'] for s, found in judged_by.items() if found},
    train_s={s: train_s(e['summary']) for s, e in whole.items()},
    cpu_s={
      s: e['cpu_seconds']
      for s, e in whole.items()
      if e['cpu_seconds'] is not None
    },
    wall_s={
      s: e['wall_seconds']
      for s, e in whole.items()
      if e.get('wall_seconds') is not None
    },
    conditions={
      s: (*record.machine_of(entry), entry['package_tree'])
      for s, entry in entries.items()
    },
    gmacs=record.plan_of(next(iter(entries.values())))['total_gmacs'],
    cache=tuple(entry['cache']['state'] for entry in entries.values()),
    code=history.code_of(list(entries.values())),
  )


def all_of(runs: Sequence[Run]) -> dict[str, Seeds]:
  """Those of the runs that have records, by the run's name."""
  found = {run.name: read(run) for run in runs}
  return {name: seeds for name, seeds in found.items() if seeds}


def mean_text(values: Mapping[int, float], digits: int) -> str:
  """'97.2 [96.5, 97.9]'; the mean alone of one seed; '' of none."""
  if not values:
    return ''
  if len(values) == 1:
    return f'{statistics.mean(values.values()):.{digits}f}'
  return text_of(intervals.of_mean(list(values.values())), digits)


def text_of(interval: intervals.Interval, digits: int) -> str:
  estimate, low, high = (f'{value:.{digits}f}' for value in interval)
  return f'{estimate} [{low}, {high}]'


def paired(
  compare: Callable[..., intervals.Interval],
  ours: Mapping[int, float],
  theirs: Mapping[int, float],
  digits: int,
) -> str:
  """Compares the seeds that both have, for a cell of a table.

  Args:
    compare: `intervals.of_paired_difference` or `of_paired_ratio`.
    ours: By seed.
    theirs: By seed.
    digits: After the point.

  Returns:
    '-0.47 [-0.75, -0.18]'; '' where they share fewer than two seeds.
  """
  found = of_pairs(compare, ours, theirs)
  return text_of(found, digits) if found else ''


def of_pairs(
  compare: Callable[..., intervals.Interval],
  ours: Mapping[int, float],
  theirs: Mapping[int, float],
) -> intervals.Interval | None:
  """As `paired`, the numbers; None where they share fewer than two seeds."""
  seeds = sorted(ours.keys() & theirs.keys())
  if len(seeds) < 2:
    return None
  return compare(*([values[s] for s in seeds] for values in (ours, theirs)))


# The first columns of tables of runs that are judged on test.
ACCURACIES = (
  'run',
  'seeds',
  'top-1 on validation, % [measured]',
  'top-1 on test, % [measured]',
  'test, minus the baseline [measured]',
)


def accuracies(run: Run, ours: Seeds, base: Seeds | None) -> tuple[str, ...]:
  """The cells of those columns.

  Args:
    run: The run.
    ours: Its records.
    base: Those of its baseline; None: it has none, or is its own.
  """
  return (
    run.row,
    str(len(ours.validation)),
    mean_text(ours.validation, 1),
    mean_text(ours.test, 2),
    paired(intervals.of_paired_difference, ours.test, base.test, 2)
    if base
    else '',
  )


def of_seeds(found: Seeds, seeds: Collection[int]) -> Seeds:
  """The same with some of the seeds only, where values are by seed."""
  return found._replace(
    **{
      field: {s: v for s, v in getattr(found, field).items() if s in seeds}
      for field in (
        *('validation', 'test', 'train_s', 'cpu_s', 'wall_s', 'conditions'),
      )
    }
  )


def of_one_machine(
  values: Mapping[int, float], ours: Seeds, theirs: Seeds
) -> dict[int, float]:
  """Those of seeds that both runs have of one machine and one code."""
  return {
    s: value
    for s, value in values.items()
    if s in ours.conditions and ours.conditions[s] == theirs.conditions.get(s)
  }
