r"""Compares records made anew with the stored ones, run by run.

python -m experiments.runs.launch --table=moving_digits --run=local \
  --records=runs/records-20261201 --workdir=runs/records-20261201/runs
python -m experiments.runs.compare --table=moving_digits \
  --records=runs/records-20261201

Exit code 0 where they agree, 1 where a run does not:

  steps    are equal
  top-1    is equal, seed by seed, where all records have the same code,
           versions and kind of machine. Else it differs by at most two
           deviations of the difference of the means. A run's deviation is that
           of its test videos (binomial) and that of the stored seeds, added in
           quadrature. Of a data set with another fingerprint it is shown, and
           that it is of other videos
  seconds  of all records of one kind of machine and versions have a ratio of at
           most 1.1 or its inverse. Of others the ratio is shown, and that they
           are of another machine. Runs that were interrupted have none

CPU seconds are the process's and its children's; where the stored records do
not have them, those of the process that trained, on both sides.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import math
import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

from experiments import tabulate
from experiments.runs import catalogue, record
from mgjax import cli
from mgjax.cli import ConfigError

DEVIATIONS = 2.0  # That means of accuracies may differ by.
RATIO = 1.1  # That seconds may differ by.


class Line(NamedTuple):
  """A field of a run, in the words of the table.

  Attributes:
    run: Its name.
    field: What is compared.
    stored: Mean of the stored records.
    fresh: Mean of those made anew.
    change: Difference, or ratio.
    agrees: 'yes', 'no', or why that cannot be said.
  """

  run: str
  field: str
  stored: str
  fresh: str
  change: str
  agrees: str


def compare(name: str, stored: list[dict], fresh: list[dict]) -> list[Line]:
  """Compares the records of a run.

  Args:
    name: The run's.
    stored: Those of the repository, each with its 'test'; some.
    fresh: Those made anew, of the same form (see `load`); some.
  """
  entries = (*stored, *fresh)
  same = record.are_of_one_machine(entries)
  same_data = len({entry['data']['fingerprint'] for entry in entries}) == 1
  # A training is a function of these: another result is another program.
  same_code = len({entry.get('package_tree') for entry in entries}) == 1
  same_code &= entries[0].get('package_tree') is not None
  lines = []
  for field, get in (
    ('top-1, %', lambda e: _top1(e['summary'])),
    ('top-1 on test, %', lambda e: e['test'] and _top1(e['test'])),
  ):
    old, new = _all(stored, get), _all(fresh, get)
    if old and new:
      line = _accuracy(name, field, old, new, same_data)
      if same and same_data and same_code:
        ours, theirs = (_by_seed(side, get) for side in (fresh, stored))
        if both := ours.keys() & theirs.keys():
          equal = all(ours[seed] == theirs[seed] for seed in both)
          line = line._replace(agrees=_word(equal))
      lines.append(line)
  for field, getters in (
    ('training, s', [lambda e: e['summary']['train_s']]),
    (
      'CPU, s',
      [lambda e: e.get('cpu_seconds'), lambda e: e['summary'].get('cpu_s')],
    ),
  ):
    if any(entry.get('resumed') for entry in entries):
      continue
    for get in getters:
      old, new = _all(stored, get), _all(fresh, get)
      if old and new:
        lines.append(_seconds(name, field, old, new, same))
        break
  old, new = ({e['summary']['steps'] for e in side} for side in (stored, fresh))
  stored_text, fresh_text = (
    ', '.join(map(str, sorted(side))) for side in (old, new)
  )
  # Seeds have the same number, unless the data set has changed between them.
  change = f'{min(new) - min(old):+d}'
  agrees = _word(old == new)
  lines.append(Line(name, 'steps', stored_text, fresh_text, change, agrees))
  return lines


def _all(entries: list[dict], get: Callable) -> list | None:
  """A value of every record; None where one lacks it."""
  values = [get(entry) for entry in entries]
  return None if None in values else values


def _by_seed(entries: list[dict], get: Callable) -> dict[int, Any]:
  return {record.seed_of(entry): get(entry) for entry in entries}


def _top1(result: dict) -> tuple[float, int]:
  """Top-1 in percent, and the number of videos that it is of."""
  return result['top1'], result['num_scored']


def _accuracy(
  name: str,
  field: str,
  stored: list[tuple[float, int]],
  fresh: list[tuple[float, int]],
  same: bool,
) -> Line:
  """Compares means of accuracies in percent, each with its number of videos."""
  old, new = ([top1 for top1, _ in side] for side in (stored, fresh))
  difference = statistics.mean(new) - statistics.mean(old)
  num_videos = min(number for _, number in (*stored, *fresh))
  # One video more of each kind: of a thousand, none wrong is no certainty.
  right = (statistics.mean(old) / 100 * num_videos + 1) / (num_videos + 2)
  binomial = 100 * math.sqrt(right * (1 - right) / num_videos)
  seeds = statistics.stdev(old) if len(old) > 1 else 0.0
  deviation = math.hypot(binomial, seeds) * math.sqrt(
    1 / len(old) + 1 / len(new)
  )
  tolerance = DEVIATIONS * deviation
  return Line(
    *(
      name,
      field,
      f'{statistics.mean(old):.2f}',
      f'{statistics.mean(new):.2f}',
    ),
    f'{difference:+.2f} (± {tolerance:.2f})',
    _word(abs(difference) <= tolerance) if same else 'other videos',
  )


def _seconds(
  name: str, field: str, stored: list[float], fresh: list[float], same: bool
) -> Line:
  old, new = statistics.mean(stored), statistics.mean(fresh)
  agrees = 'another machine'
  if same:
    agrees = _word(1 / RATIO <= new / old <= RATIO)
  return Line(
    name, field, f'{old:.0f}', f'{new:.0f}', f'x {new / old:.2f}', agrees
  )


def _word(agrees: bool) -> str:
  return 'yes' if agrees else 'no'


def load(name: str, records: pathlib.Path) -> list[dict]:
  """The records of a run in a folder; 'test' is their evaluation on test."""
  return [
    {**entry, 'test': record.test_of(entry, records)}
    for entry in record.load(f'{name}-seed*', records)
  ]


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('table', tuple(catalogue.RUNS), None, 'Whose runs.')
  flag('records', str, None, 'Folder of the records made anew.')
  for name in ('table', 'records'):
    flags.mark_flag_as_required(name, flag_values=values)


def main(args: flags.FlagValues) -> None:
  """Prints the comparison.

  Raises:
    ConfigError: There is nothing to compare.
    SystemExit: Some do not agree; it has the exit code 1.
  """
  lines, alone = [], []
  for run in catalogue.RUNS[args.table]:
    stored = load(run.name, record.RECORDS)
    fresh = load(run.name, pathlib.Path(args.records))
    if stored and fresh:
      lines += compare(run.name, stored, fresh)
    elif fresh:
      alone.append(f'{run.name}: there is no stored record')
    elif stored:
      alone.append(f'{run.name}: there is no fresh record')
  if not lines:
    raise ConfigError(
      f'--records={args.records} has no record of {args.table} that is stored, '
      'too; launch makes them'
    )
  print(*alone, sep='\n', file=sys.stderr, end='\n' if alone else '')
  columns = ('run', 'field', 'stored', 'fresh', 'fresh to stored', 'agrees')
  print(tabulate.markdown(tabulate.Table(args.table, columns, lines)))
  if any(line.agrees == 'no' for line in lines):
    sys.exit(1)


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
