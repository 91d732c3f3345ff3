"""The demo's network with and without multigrid, on videos of version 1.0.0.

python -m experiments.tables.multigrid_accuracy
python -m experiments.runs.launch --table=moving_digits --seeds=3 --run=local
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import sys

from experiments import tabulate
from experiments.runs import generated
from experiments.tables import measured

TABLE = 'moving_digits'


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, generated.MOVING_DIGITS)]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
