"""Trains the demo's model with and without multigrid, several seeds each.

python -m experiments.compare

The runs alternate between the modes, so that a drift of the machine's speed
touches both alike. Records go to experiments/records/moving_digits; runs that
have one are skipped. experiments/tables.py makes the table.
"""

import pathlib

from experiments import record
from mgjax.data import moving_digits

EXPERIMENT = 'moving_digits'
MODES = ('both', 'none')
SEEDS = (0, 1, 2)


def main() -> None:
  moving_digits.prepare('data', 'motion')
  for seed in SEEDS:
    for mode in MODES:
      name = f'{mode}-seed{seed}'
      record.run(
        f'{EXPERIMENT}/{name}',
        f'configs/moving_digits.py:grid={mode},seed={seed}',
        workdir=pathlib.Path('runs') / EXPERIMENT / name,
      )


if __name__ == '__main__':
  main()
