r"""Accuracy against training time: each mode at several numbers of epochs.

python -m experiments.tables.epoch_factors
python -m experiments.runs.launch --table=epoch_factors --seeds=3 --run=local \
  --jobs=2

The ablation of the multigrid paper (its table of epoch factors), on generated
videos: the baseline, the short cycle, the long one and both, at 0.5, 1 and 1.5
times the baseline's epochs. The network is the demo's, on smaller pictures.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import math
import pathlib
import statistics
import sys
from collections.abc import Sequence

import numpy as np

from experiments import tabulate
from experiments.runs import generated
from experiments.tables import measured
from experiments.tables.measured import Result

TABLE = 'epoch_factors'

_RUNS = generated.EPOCH_FACTORS


def speedup_at_equal_accuracy(
  found: Result, baselines: Sequence[Result]
) -> str:
  """How many times longer the baseline trains for the same accuracy.

  Between its runs, the accuracy of the baseline (the mean over seeds) is taken
  to be linear in the logarithm of its training time. A run of the baseline that
  is no better than a shorter one does not count.

  Args:
    found: A run.
    baselines: The baseline's, at several numbers of epochs.

  Returns:
    '2.10 ± 0.12', the mean over the run's seeds (one that the baseline is above
    or below everywhere counts as its nearest run) and its standard error, by
    what the seeds of the run and those of the baseline's runs differ in;
    '> 2.10' where the run's mean accuracy is more than the baseline reaches;
    '' where it is less than that of its shortest run, and where the times are
    not comparable.
  """
  runs = sorted(baselines, key=lambda run: run.mean_train_s)
  if not all(measured.comparable(found, run) for run in runs):
    return ''
  if not runs or found.mean < runs[0].mean:
    return ''
  best = runs[:1]
  for run in runs[1:]:
    if run.mean > best[-1].mean:
      best.append(run)
  if found.mean > best[-1].mean:
    return f'> {best[-1].mean_train_s / found.mean_train_s:.2f}'
  top1 = np.array([run.mean for run in best])
  log_s = np.log([run.mean_train_s for run in best])

  def ratios(top1: np.ndarray, log_s: np.ndarray) -> np.ndarray:
    needed = np.interp(found.top1, np.maximum.accumulate(top1), log_s)
    return np.exp(needed) / np.array(found.train_s)

  ratio = ratios(top1, log_s).mean()
  errors = [_standard_error(ratios(top1, log_s))]
  for i, run in enumerate(best):
    moved = np.arange(len(best)) == i
    by_accuracy = ratios(top1 + moved * _standard_error(run.top1), log_s)
    by_time = ratios(top1, log_s + moved * _standard_error(np.log(run.train_s)))
    errors += [by_accuracy.mean() - ratio, by_time.mean() - ratio]
  return f'{ratio:.2f} ± {math.hypot(*errors):.2f}'


def _standard_error(values: Sequence[float]) -> float:
  """Of the mean of some values."""
  return statistics.stdev(map(float, values)) / len(values) ** 0.5


def make() -> list[tabulate.Table]:
  results = measured.results(_RUNS)
  # The baseline's own are what the others are measured by.
  own = [run.name for run in _RUNS if run.grid == 'none']
  baselines = [results[name] for name in own if name in results]
  if len(baselines) < len(own):
    baselines = []  # A curve of fewer runs would claim too much.
  table = measured.table(TABLE, _RUNS)
  rows = [
    (
      *row,
      '' if name in own else speedup_at_equal_accuracy(result, baselines),
    )
    for row, (name, result) in zip(table.rows, results.items(), strict=True)
  ]
  columns = (
    *table.columns,
    'speed-up at equal accuracy ± standard error [measured]',
  )
  return [tabulate.Table(TABLE, columns, rows)]


def picture(path: pathlib.Path) -> None:
  """Accuracy against training time, a line for each mode."""
  measured.save_over_time(
    path,
    {
      mode: [run for run in _RUNS if run.grid == mode]
      for mode in generated.MODES
    },
  )


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
