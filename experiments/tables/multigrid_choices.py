r"""What multigrid's parts are worth: one of them changed at a time.

python -m experiments.tables.multigrid_choices
python -m experiments.runs.launch --table=multigrid_choices --seeds=3 \
  --run=local --jobs=2

The ablations of the multigrid paper, on generated videos: batch-norm groups,
the fine-tuning phase, learning rates that follow the batch, another schedule of
the learning rate; and multigrid for a 2-D network on sampled frames. Speed-ups
of the runs with cosine decay and of the 2-D network are those over a baseline
of the same kind; of all others, over that of epoch_factors.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import sys

from experiments import tabulate
from experiments.tables import epoch_factors, measured
from experiments.tables.measured import Run

TABLE = 'multigrid_choices'
_CONFIG = epoch_factors.CONFIG
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
    f'{_CONFIG},grid=both',
    ('--config.norm.group_clips=0',),
    baseline=_NONE.name,
  ),
  Run(
    f'{TABLE}/no-fine-tuning',
    'both, a long cycle instead of fine-tuning',
    f'{_CONFIG},grid=both',
    ('--config.grid.fine_tune=False',),
    baseline=_NONE.name,
  ),
  Run(
    f'{TABLE}/constant-rate',
    "both, the baseline's learning rate for every batch",
    f'{_CONFIG},grid=both',
    ('--config.grid.scale_lr=False',),
    baseline=_NONE.name,
  ),
  Run(
    f'{TABLE}/cosine-none',
    'none, cosine',
    f'{_CONFIG},grid=none',
    _COSINE,
    baseline=f'{TABLE}/cosine-none',
  ),
  Run(
    f'{TABLE}/cosine-both',
    'both, cosine',
    f'{_CONFIG},grid=both',
    # As step decay has it here.
    (*_COSINE, '--config.grid.num_long_cycles=1'),
    baseline=f'{TABLE}/cosine-none',
  ),
  Run(
    f'{TABLE}/tam-none',
    'TAM on 16 segments, none',
    f'{_CONFIG},model=tam,grid=none',
    _SEGMENTS,
    baseline=f'{TABLE}/tam-none',
  ),
  Run(
    f'{TABLE}/tam-both',
    'TAM on 16 segments, both',
    f'{_CONFIG},model=tam,grid=both',
    _SEGMENTS,
    baseline=f'{TABLE}/tam-none',
  ),
]


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, RUNS)]


def picture(path: pathlib.Path) -> None:
  """The accuracy of every run, with its deviation over seeds."""
  read = measured.results(RUNS)

  def draw(axes):
    for run in RUNS:
      if found := read.get(run.name):
        axes.errorbar(
          found.mean, run.row, xerr=found.deviation or 0, fmt='ko', capsize=3
        )
    axes.invert_yaxis()  # In the table's order.
    axes.set_xlabel('top-1 [%]')

  tabulate.save_picture(draw, path)


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
