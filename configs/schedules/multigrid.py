"""The schedules of the multigrid paper, as tables: none, short, long and both.

python -m mgjax.plan --config=kinetics400:grid=table \\
  --config.grid.table=multigrid

These are the rows that grid.mode=none, short, long and both write: a start for
a schedule of one's own, and one that other tables are compared with.

Arguments: mode=both; decays=94-154-196, the epochs of the baseline at which the
learning rate falls, by default those of Kinetics as parts of the baseline's
epochs; gamma=0.1, by how much; lr=0.1, the baseline's rate; epoch_factor=1.5.

Reported: 4.5 times less training time (arXiv:1912.00998, abstract).

Source: Wu et al. 2020 (arXiv:1912.00998); PySlowFast 287ec00,
  slowfast/utils/multigrid.py.
Differs: see mgjax/grids/modes.py, whose rows these are.
"""

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid, make_schedule

MODES = ('none', 'short', 'long', 'both')
# Of Kinetics, 239 epochs.
DECAYS = tuple(epoch / 239 for epoch in (94, 154, 196))


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  args = arguments.parse_args(
    arg, mode='both', decays='', gamma=0.1, lr=0.1, epoch_factor=1.5
  )
  if args.mode not in MODES:
    raise ConfigError(f'multigrid:{arg}: mode is one of {", ".join(MODES)}.')
  try:
    decays = [_number(text) for text in args.decays.split('-') if text]
  except ValueError as error:
    raise ConfigError(
      f'multigrid:{arg}: decays are epochs with - between them, such as '
      '94-154-196.'
    ) from error
  rows = make_schedule(
    frames=full.T,
    height=full.H,
    width=full.W,
    batch=full.batch,
    epochs=epochs,
    num_train=1_000_000,  # Rows are in epochs: they are the same for any.
    mode=args.mode,
    learning_rate=args.lr,
    lr_steps=decays or [round(part * epochs) for part in DECAYS],
    lr_gamma=args.gamma,
    epoch_factor=args.epoch_factor,
  ).table
  varies = args.mode in ('long', 'both')
  return [
    {
      **row,
      # Frame strides and resized sides are those of the run.
      'stride_frames': 'between' if varies else 'fixed',
      'cycle': [
        {name: size for name, size in grid.items() if name != 'jitter_px'}
        for grid in row['cycle']
      ],
    }
    for row in rows
  ]


def _number(text: str) -> int | float:
  return float(text) if '.' in text else int(text)
