"""What PROTOCOL.md asks beside the front, from tuning to older claims.

python -m experiments.tables.judged
python -m experiments.runs.launch --table=cliff --seeds=3 --run=local --jobs=2
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import statistics
import sys
from collections.abc import Sequence

from experiments import intervals, tabulate
from experiments.runs import judged
from experiments.runs.run import Run
from experiments.tables import by_seed, decisions, front


def tuning_table() -> tabulate.Table:
  """Accuracy on validation by learning rate."""
  found = by_seed.all_of(judged.TUNING)
  rows = [
    (
      run.row,
      *(f'{value:.1f}' for value in found[run.name].validation.values()),
      f'{statistics.mean(found[run.name].validation.values()):.2f}',
      'taken' if decisions.rate(run.grid) == value else '',
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


def pairs_table(name: str, runs: Sequence[Run]) -> tabulate.Table:
  """Differences on test of every two of some runs, seed by seed.

  Args:
    name: Of the table.
    runs: A row and a column for each that has records.
  """
  found = {run.row: seeds for run in runs if (seeds := by_seed.read(run))}
  difference = intervals.of_paired_difference
  rows = [
    (
      row,
      *(
        ''
        if other is ours
        else by_seed.paired(difference, ours.test, other.test, 2)
        for other in found.values()
      ),
    )
    for row, ours in found.items()
  ]
  columns = (f'minus {row} [measured]' for row in found)
  return tabulate.Table(name, ('top-1 on test', *columns), rows)


def headline_table(runs: Sequence[Run]) -> tabulate.Table:
  """A point of `both` and baselines, in pairs of seeds that chose nothing.

  Args:
    runs: The baselines, and then the point; none before that is chosen.
  """
  rows = []
  for baseline in runs[:-1]:
    found = decisions.at_headline(baseline, runs[-1])
    if not found:
      continue
    none, both, _, last = found
    # Nobody looks before the protocol's looks.
    cells = ('',) * 7
    if last:
      due = '' if last.is_last else '; one more look is due'
      cells = (
        by_seed.mean_text(none.test, 2),
        by_seed.mean_text(both.test, 2),
        found.difference(),
        f'{by_seed.text_of(last.interval, 2)} ({last.pairs} pairs)',
        f'{last.verdict}{due}',
        found.times_fewer_seconds(),
        'shown' if found.takes_less_time() else 'not shown',
      )
    rows.append(
      (
        found.point.row,
        baseline.row,
        str(len(none.test.keys() & both.test.keys())),
        *cells,
        ', '.join(dict.fromkeys([none.code, both.code])),
        f'{baseline.name}-seed*, {found.point.name}-seed*',
      )
    )
  return tabulate.Table(
    'headline_pairs',
    (
      'run',
      'baseline',
      'pairs',
      'none, top-1 on test, % [measured]',
      'both, top-1 on test, % [measured]',
      'difference [measured]',
      'difference with 97.5 %, which decides [measured]',
      'verdict at a margin of 0.5',
      'times fewer seconds [measured]',
      'less time',
      'code',
      'record',
    ),
    rows,
  )


def cliff_table() -> tabulate.Table:
  """What multigrid loses at equal epochs, by the smallest crop."""
  found = by_seed.all_of(judged.CLIFF)
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
        by_seed.mean_text(theirs.test, 2),
        by_seed.mean_text(ours.test, 2),
        by_seed.paired(
          intervals.of_paired_difference, ours.test, theirs.test, 2
        ),
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


def claimed_table() -> tabulate.Table:
  """Rows of older tables, made anew; their seconds say nothing."""
  found = by_seed.all_of(judged.CLAIMS)
  rows = []
  for run in judged.CLAIMS:
    if run.name not in found:
      continue
    ours = found[run.name]
    base = found.get(run.baseline) if run.name != run.baseline else None
    rows.append(
      (*by_seed.accuracies(run, ours, base), ours.code, f'{run.name}-seed*')
    )
  return tabulate.Table(
    'claimed', (*by_seed.ACCURACIES, 'code', 'record'), rows
  )


def make() -> list[tabulate.Table]:
  return [
    tuning_table(),
    headline_table(judged.HEADLINE),
    front.table_of('schedules', judged.SCHEDULES),
    pairs_table('schedules_pairs', judged.SCHEDULES),
    front.table_of('schedules_vit', judged.SCHEDULES_VIT),
    pairs_table('schedules_vit_pairs', judged.SCHEDULES_VIT),
    cliff_table(),
    claimed_table(),
  ]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
