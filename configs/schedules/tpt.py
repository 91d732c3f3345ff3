"""Temporal Progressive Training (TPT): clips get longer, sides stay.

python -m mgjax.plan --config=kinetics400:grid=table --config.grid.table=tpt

A quarter of the frames, then half of them, then all. The batch stays.

The lengths are ours: the abstract says that longer clips are introduced
along the training, and not when. Half, a quarter and a quarter of the epochs
train on half of the frames in all, the cost that is reported for Kinetics.

Arguments: quarter=0.5 and half=0.25, the shares of the first two rows.

Reported: 2 times less training cost on Kinetics-400 and 3 times less on
Something-Something V2, at VideoMAE's accuracy.

Source: Li et al., Efficient VideoMAE via Temporal Progressive Training, CVPR
  workshops 2025, pp. 2659-2668: the abstract; no code is at hand.
Differs: unknown, but for the lengths.
"""

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  del full
  args = arguments.parse_args(arg, quarter=0.5, half=0.25)
  rest = 1 - args.quarter - args.half
  if min(args.quarter, args.half, rest) < 0:
    raise ConfigError(
      f'tpt:{arg}: quarter and half are 0 or more, and at most 1 together.'
    )
  shares = {1 / 4: args.quarter, 1 / 2: args.half, 1: rest}
  return [
    {
      'epochs': share * epochs,
      'frames_factor': factor,
      'batch': 'constant',
      'lr_scale': 'none',
      # A clip of fewer frames is a shorter one.
      'stride_frames': 'fixed',
    }
    for factor, share in shares.items()
    if share > 0
  ]
