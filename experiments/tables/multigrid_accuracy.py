"""The demo's model with and without multigrid: accuracy and time.

python -m experiments.tables.multigrid_accuracy
python -m experiments.runs.launch --table=moving_digits --seeds=3 --run=local
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import sys

from experiments import tabulate
from experiments.tables import measured
from experiments.tables.measured import Run

TABLE = 'moving_digits'
_BASELINE = f'{TABLE}/none'
RUNS = [
  Run(
    f'{TABLE}/none',
    'none',
    'configs/moving_digits.py:grid=none',
    baseline=_BASELINE,
  ),
  Run(
    f'{TABLE}/both-1.5',
    "both, 1.5 x the epochs (the paper's)",
    'configs/moving_digits.py:grid=both',
    baseline=_BASELINE,
  ),
  Run(
    f'{TABLE}/both-2',
    'both, 2 x the epochs',
    'configs/moving_digits.py:grid=both',
    ('--config.grid.epoch_factor=2.0',),
    baseline=_BASELINE,
  ),
]


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, RUNS)]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
