r"""Classes of uneven sizes: as they are, weighed, or sampled evenly.

python -m mgjax.data.moving_digits --config=motion_long_tail --out=data
python -m experiments.tables.class_balance
python -m experiments.runs.launch --table=class_balance --seeds=3 --run=local

Of the 16 classes the most frequent one has a hundred times the training videos
of the rarest; validation has as many of each.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import statistics
import sys

from experiments import intervals, tabulate
from experiments.runs import generated, history, record
from experiments.tables import by_seed, measured

TABLE = 'class_balance'
_RARE = 5  # Classes with the fewest training videos: 10 to 36.


def _rare_accuracy(entry: dict) -> float:
  """Mean accuracy of the rarest classes, of a loaded record."""
  stored = record.eval_of(entry)
  return statistics.mean(stored['per_class'][name] for name in rare_classes())


def rare_classes() -> list[str]:
  """Names of the classes with the fewest training videos."""
  from mgjax.data import digits, moving_digits

  spec = moving_digits.CONFIGS['motion_long_tail']
  labels = [digits.label_of(spec, 'train', i) for i in range(spec.num_train)]
  names = digits.class_names(spec.labels)
  return sorted(names, key=lambda n: labels.count(names.index(n)))[:_RARE]


def _mean_class(name: str) -> dict[int, float]:
  """Mean class accuracy of a run's records, by seed."""
  return {
    record.seed_of(entry): entry['summary']['mean_class']
    for entry in record.load(f'{name}-seed*')
  }


def make() -> list[tabulate.Table]:
  rows = []
  for run in generated.CLASS_BALANCE:
    entries = record.load(f'{run.name}-seed*')
    if not entries:
      continue
    mean_class = _mean_class(run.name)
    rows.append(
      (
        run.row,
        measured.spread(list(mean_class.values()), 1),
        by_seed.paired(
          intervals.of_paired_difference,
          mean_class,
          _mean_class(run.baseline),
          1,
        )
        if run.name != run.baseline
        else '',
        measured.spread([_rare_accuracy(entry) for entry in entries], 1),
        str(len(entries)),
        history.code_of(entries),
        f'{run.name}-seed*',
      )
    )
  header = (
    'classes',
    'mean class accuracy, % [measured]',
    'more than as they are, 95 % interval [measured]',
    f'mean of the {_RARE} rarest, % [measured]',
    'seeds',
    'code',
    'record',
  )
  return [tabulate.Table(TABLE, header, rows)]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
