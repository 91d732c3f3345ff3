"""The demo's model with and without multigrid: accuracy and time.

python -m experiments.multigrid_accuracy
python -m experiments.launch --table=moving_digits --seeds=3 --run=local
"""

import sys

from experiments import measured, tabulate
from experiments.measured import Run

TABLE = 'moving_digits'
RUNS = [
  Run(f'{TABLE}/{mode}', mode, f'configs/moving_digits.py:grid={mode}')
  for mode in ('none', 'both')
]


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, RUNS, baseline=RUNS[0].name)]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
