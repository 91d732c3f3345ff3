"""What multigrid's parts are worth: one of them changed at a time.

python -m experiments.multigrid_choices
python -m experiments.launch --table=multigrid_choices --seeds=3 --run=local

The ablations of the multigrid paper, on generated videos: batch-norm groups,
the fine-tuning phase, learning rates that follow the batch, another schedule of
the learning rate; and multigrid for a 2-D network on sampled frames.
"""

import sys

from experiments import epoch_factors, measured, tabulate
from experiments.measured import Run

TABLE = 'multigrid_choices'
_CONFIG = 'configs/moving_digits.py'
_COSINE = ('--config.optim.schedule=cosine',)
_SEGMENTS = ('--config.data.sampling=segments',)

# Runs of another table are not repeated.
_NONE, _BOTH = (
  next(
    run._replace(row=row)
    for run in epoch_factors.RUNS
    if run.name == f'{epoch_factors.TABLE}/{name}'
  )
  for row, name in (('none', 'none-1'), ('both', 'both-1.5'))
)

RUNS = [
  _NONE,
  _BOTH,
  Run(
    f'{TABLE}/no-groups',
    'both, batch norm over whole batches',
    f'{_CONFIG}:grid=both',
    ('--config.norm.group_clips=0',),
  ),
  Run(
    f'{TABLE}/no-fine-tuning',
    'both, a long cycle instead of fine-tuning',
    f'{_CONFIG}:grid=both',
    ('--config.grid.fine_tune=False',),
  ),
  Run(
    f'{TABLE}/constant-rate',
    "both, the baseline's learning rate for every batch",
    f'{_CONFIG}:grid=both',
    ('--config.grid.scale_lr=False',),
  ),
  Run(f'{TABLE}/cosine-none', 'none, cosine', f'{_CONFIG}:grid=none', _COSINE),
  Run(f'{TABLE}/cosine-both', 'both, cosine', f'{_CONFIG}:grid=both', _COSINE),
  Run(
    f'{TABLE}/tam-none',
    'TAM on 8 segments, none',
    f'{_CONFIG}:grid=none,model=tam,size=small',
    _SEGMENTS,
  ),
  Run(
    f'{TABLE}/tam-both',
    'TAM on 8 segments, both',
    f'{_CONFIG}:grid=both,model=tam,size=small',
    _SEGMENTS,
  ),
]


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, RUNS, baseline=RUNS[0].name)]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
