"""What PROTOCOL.md asks: tuning, accuracy over time, the cliff, schedules.

python -m experiments.tables.judged
python -m experiments.runs.launch --table=front --seeds=3 --run=local --jobs=2

Accuracies are means over seeds with intervals of 95 % (Student's t). What is
compared with the baseline is compared seed by seed. Seconds are compared within
a machine and a commit, of runs that were not interrupted.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import intervals, tabulate
from experiments.runs import history, judged, record
from experiments.runs.run import Run

# Points by which another learning rate must be better than the present one.
_BETTER = 1.0
# Level of the intervals of the headline's two looks.
_DECIDES = 0.975


class Seeds(NamedTuple):
  """The records of a run, by seed.

  Attributes:
    validation: Top-1 in percent on the split that chooses.
    test: The same on the split that judges; empty where none does.
    train_s: Seconds of steps and of waits for data or for a program, of runs
      that were not interrupted.
    cpu_s: CPU seconds of the process and its children, of those of the same
      that know them.
    conditions: Machine and code, of all.
    gmacs: 1e9 multiply-adds of one training's forward passes.
    cache: 'warm', 'cold' or 'mixed', of each.
    code: The commits, for a table.
  """

  validation: dict[int, float]
  test: dict[int, float]
  train_s: dict[int, float]
  cpu_s: dict[int, float]
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
    int(entry['name'].rpartition('-seed')[2]): entry
    for entry in record.load(f'{run.name}-seed*')
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
    conditions={
      s: (*record.machine_of(entry), entry['package_tree'])
      for s, entry in entries.items()
    },
    gmacs=record.plan_of(next(iter(entries.values())))['total_gmacs'],
    cache=tuple(entry['cache']['state'] for entry in entries.values()),
    code=history.code_of(list(entries.values())),
  )


def _all(runs: Sequence[Run]) -> dict[str, Seeds]:
  """Those of the runs that have records, by the run's name."""
  found = {run.name: read(run) for run in runs}
  return {name: seeds for name, seeds in found.items() if seeds}


def _mean(values: Mapping[int, float], digits: int) -> str:
  """'97.2 [96.5, 97.9]'; the mean alone of one seed; '' of none."""
  if not values:
    return ''
  if len(values) == 1:
    return f'{statistics.mean(values.values()):.{digits}f}'
  return _text(intervals.of_mean(list(values.values())), digits)


def _text(interval: intervals.Interval, digits: int) -> str:
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
  seeds = sorted(ours.keys() & theirs.keys())
  if len(seeds) < 2:
    return ''
  pair = ([values[s] for s in seeds] for values in (ours, theirs))
  return _text(compare(*pair), digits)


def of_one_machine(
  values: Mapping[int, float], ours: Seeds, theirs: Seeds
) -> dict[int, float]:
  """Those of seeds that both runs have of one machine and one code."""
  return {
    s: value
    for s, value in values.items()
    if s in ours.conditions and ours.conditions[s] == theirs.conditions.get(s)
  }


def rate(arm: str) -> float | None:
  """The learning rate that tuning takes; None until all of its runs are there.

  The best on validation by the mean over seeds; the present one where that is
  less than a point worse.
  """
  runs = [run for run in judged.TUNING if run.grid == arm]
  found = _all(runs)
  means = {
    value: statistics.mean(found[run.name].validation.values())
    for value, run in zip(judged.RATES, runs, strict=True)
    if run.name in found
    and len(found[run.name].validation) == judged.TUNING_SEEDS
  }
  if len(means) < len(runs):
    return None
  best = max(means, key=lambda value: means[value])
  better = means[best] - means[judged.PRESENT_RATE] >= _BETTER
  return best if better else judged.PRESENT_RATE


def tuning_table() -> tabulate.Table:
  """Accuracy on validation by learning rate."""
  found = _all(judged.TUNING)
  rows = [
    (
      run.row,
      *(f'{value:.1f}' for value in found[run.name].validation.values()),
      f'{statistics.mean(found[run.name].validation.values()):.2f}',
      'taken' if rate(run.grid) == value else '',
      found[run.name].code,
      f'{run.name}-seed*',
    )
    for run, value in zip(
      judged.TUNING, judged.RATES * len(judged.ARMS), strict=True
    )
    if run.name in found
    and len(found[run.name].validation) == judged.TUNING_SEEDS
  ]
  first = judged.TUNING[0].first_seed
  seeds = range(first, first + judged.TUNING_SEEDS)
  return tabulate.Table(
    'tuning',
    (
      'run',
      *(f'top-1 on validation, %, seed {seed} [measured]' for seed in seeds),
      'mean',
      'learning rate',
      'code',
      'record',
    ),
    rows,
  )


def front_table(name: str, runs: Sequence[Run]) -> tabulate.Table:
  """Accuracy and seconds of runs, beside those of their baseline.

  Args:
    name: Of the table.
    runs: In the order of the rows; the baseline of each is among them.
  """
  found = _all(runs)
  rows = []
  for run in runs:
    if run.name not in found:
      continue
    ours = found[run.name]
    base = found.get(run.baseline) if run.name != run.baseline else None
    ratio = intervals.of_paired_ratio
    rows.append(
      (
        run.row,
        str(len(ours.validation)),
        _mean(ours.validation, 1),
        _mean(ours.test, 2),
        paired(intervals.of_paired_difference, ours.test, base.test, 2)
        if base
        else '',
        _mean(ours.train_s, 0),
        _mean(ours.cpu_s, 0),
        ', '.join(sorted(set(ours.cache))),
        paired(
          ratio,
          of_one_machine(base.train_s, base, ours),
          of_one_machine(ours.train_s, base, ours),
          2,
        )
        if base
        else '',
        f'{base.gmacs / ours.gmacs:.2f}' if base else '1.00',
        ours.code,
        f'{run.name}-seed*',
      )
    )
  return tabulate.Table(
    name,
    (
      'run',
      'seeds',
      'top-1 on validation, % [measured]',
      'top-1 on test, % [measured]',
      'test, minus the baseline [measured]',
      'training, s [measured]',
      'CPU, s [measured]',
      'programs',
      'times fewer seconds [measured]',
      'times fewer MACs [computed]',
      'code',
      'record',
    ),
    rows,
  )


def pairs_table(name: str, runs: Sequence[Run]) -> tabulate.Table:
  """Differences on test of every two of some runs, seed by seed.

  Args:
    name: Of the table.
    runs: A row and a column for each that has records.
  """
  found = {run.row: seeds for run in runs if (seeds := read(run))}
  difference = intervals.of_paired_difference
  rows = [
    (
      row,
      *(
        '' if other is ours else paired(difference, ours.test, other.test, 2)
        for other in found.values()
      ),
    )
    for row, ours in found.items()
  ]
  columns = (f'minus {row} [measured]' for row in found)
  return tabulate.Table(name, ('top-1 on test', *columns), rows)


def chosen(runs: Sequence[Run], seeds: int) -> Run | None:
  """The point of `both` that the headline judges, by validation alone.

  Of those at least as accurate as the baseline (the mean over seeds), the one
  with the fewest seconds; where there is none, the most accurate one.

  Args:
    runs: A front.
    seeds: How many every point has when it is complete.

  Returns:
    None until the front is complete, each point with the seconds of a run.
  """
  found = _all(runs)
  if any(
    run.name not in found
    or len(found[run.name].validation) < seeds
    or not found[run.name].train_s
    for run in runs
  ):
    return None
  mean = lambda run: statistics.mean(found[run.name].validation.values())
  seconds = lambda run: statistics.mean(found[run.name].train_s.values())
  points = [run for run in runs if run.grid == 'both']
  baseline = next(run for run in runs if run.name == points[0].baseline)
  equal = [run for run in points if mean(run) >= mean(baseline)]
  return min(equal, key=seconds) if equal else max(points, key=mean)


class Look(NamedTuple):
  """What the protocol says of the headline at the last look that was due.

  Attributes:
    pairs: That it is of.
    interval: Of the mean difference, at the level that decides.
    verdict: 'holds', 'fails' or 'open'.
  """

  pairs: int
  interval: intervals.Interval
  verdict: str


def look(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Look | None:
  """Decides the headline.

  Args:
    ours: Accuracy on test of `both`, by seed.
    theirs: That of `none`.

  Returns:
    None before the first look: its seeds are not all there.
  """
  found = None
  for number in judged.HEADLINE_LOOKS:
    first = judged.HEADLINE_FIRST_SEED
    seeds = range(first, first + number)
    if not ours.keys() & theirs.keys() >= set(seeds):
      break
    interval = intervals.of_paired_difference(
      *([values[s] for s in seeds] for values in (ours, theirs)), level=_DECIDES
    )
    verdict = 'open'
    if interval.low > -judged.MARGIN:
      verdict = 'holds'
    elif interval.high < -judged.MARGIN:
      verdict = 'fails'
    found = Look(number, interval, verdict)
    if verdict != 'open':
      break
  return found


def headline_table(runs: Sequence[Run]) -> tabulate.Table:
  """The baseline and a point of `both`, in pairs of seeds that chose nothing.

  Args:
    runs: The two, the baseline first; none before the point is chosen.
  """
  found = _all(runs)
  rows = []
  if runs and len(found) == len(runs):
    none, both = runs
    theirs, ours = found[none.name], found[both.name]
    # A pair is of one machine and one code.
    test, their_test = (
      of_one_machine(arm.test, ours, theirs) for arm in (ours, theirs)
    )
    last = look(test, their_test)
    rows.append(
      (
        both.row,
        str(len(test.keys() & their_test.keys())),
        _mean(theirs.test, 2),
        _mean(ours.test, 2),
        paired(intervals.of_paired_difference, test, their_test, 2),
        f'{_text(last.interval, 2)} ({last.pairs} pairs)' if last else '',
        last.verdict if last else '',
        paired(
          intervals.of_paired_ratio,
          of_one_machine(theirs.train_s, ours, theirs),
          of_one_machine(ours.train_s, ours, theirs),
          2,
        ),
        ', '.join(dict.fromkeys([theirs.code, ours.code])),
        f'{none.name}-seed*, {both.name}-seed*',
      )
    )
  return tabulate.Table(
    'headline_pairs',
    (
      'run',
      'pairs',
      'none, top-1 on test, % [measured]',
      'both, top-1 on test, % [measured]',
      'difference [measured]',
      'difference with 97.5 %, which decides [measured]',
      'verdict at a margin of 0.5',
      'times fewer seconds [measured]',
      'code',
      'record',
    ),
    rows,
  )


def cliff_table() -> tabulate.Table:
  """What multigrid loses at equal epochs, by the smallest crop."""
  found = _all(judged.CLIFF)
  rows = []
  for none, both in zip(judged.CLIFF[::2], judged.CLIFF[1::2], strict=True):
    if none.name not in found or both.name not in found:
      continue
    theirs, ours = found[none.name], found[both.name]
    pixels = judged.pixels_of(both)
    rows.append(
      (
        f'{pixels} x {pixels}',
        str(pixels // 2),
        str(len(ours.test)),
        _mean(theirs.test, 2),
        _mean(ours.test, 2),
        paired(intervals.of_paired_difference, ours.test, theirs.test, 2),
        ', '.join(dict.fromkeys([theirs.code, ours.code])),
        f'{none.name}-seed*, {both.name}-seed*',
      )
    )
  return tabulate.Table(
    'cliff',
    (
      'crop, pixels',
      'smallest crop, pixels',
      'seeds',
      'none, top-1 on test, % [measured]',
      'both, top-1 on test, % [measured]',
      'difference [measured]',
      'code',
      'record',
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  return [
    tuning_table(),
    front_table('front', judged.FRONT),
    front_table('front_80', judged.FRONT_80),
    headline_table(judged.HEADLINE),
    front_table('schedules', judged.SCHEDULES),
    pairs_table('schedules_pairs', judged.SCHEDULES),
    front_table('schedules_vit', judged.SCHEDULES_VIT),
    pairs_table('schedules_vit_pairs', judged.SCHEDULES_VIT),
    cliff_table(),
  ]


def picture(path: pathlib.Path) -> None:
  """Top-1 on test against seconds of training, both arms, with intervals."""

  def draw(axes: Any) -> None:
    for arm in judged.ARMS:
      runs = [run for run in judged.FRONT if run.grid == arm]
      points = [s for s in _all(runs).values() if s.test and s.train_s]
      if not points:
        continue
      axes.errorbar(
        [statistics.mean(point.train_s.values()) for point in points],
        [statistics.mean(point.test.values()) for point in points],
        yerr=[_half(point.test) for point in points],
        xerr=[_half(point.train_s) for point in points],
        marker='o',
        capsize=3,
        label=arm,
      )
    axes.set_xlabel('training [s]')
    axes.set_ylabel('top-1 on test [%]')
    if axes.has_data():
      axes.legend(frameon=False)

  tabulate.save_picture(draw, path)


def _half(values: Mapping[int, float]) -> float:
  """Half of the interval of a mean; 0 of a single value."""
  if len(values) < 2:
    return 0.0
  interval = intervals.of_mean(list(values.values()))
  return interval.high - interval.estimate


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
