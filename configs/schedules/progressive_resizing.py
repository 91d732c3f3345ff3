"""Composer's progressive resizing: the side grows along a straight line.

python -m mgjax.plan --config=kinetics400:grid=table \\
  --config.grid.table=progressive_resizing:inc=16

The first half of the training has half of the side; then it grows until 80 %
of the training, and stays full. The batch stays.

Arguments: s0=0.5, the first scale; delay=0.5, the share of training before it
grows; finetune=0.2, that at the full side; inc=4, of which widths are a
multiple. Every width is a grid, and so a program to compile: at 224 pixels,
inc=4 has 29 of them (112, 116 ... 224), inc=16 has 8, and inc=32 has 4. The
line is the same but for the rounding: with inc=32, half of 224 becomes 128.

Reported: nothing that is for one method alone.

Source: mosaicml/composer 01f3028,
  composer/algorithms/progressive_resizing/progressive_resizing.py.
Differs: it resizes the finished clip; here the video is resized and cropped
  anew, as for any other grid (jitter_px).
"""

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  args = arguments.parse_args(arg, s0=0.5, finetune=0.2, delay=0.5, inc=4)
  if not (
    0 < args.s0 <= 1
    and min(args.delay, args.finetune) >= 0
    and args.delay + args.finetune <= 1
    and args.inc >= 1
  ):
    raise ConfigError(
      f'progressive_resizing:{arg}: s0 is in (0, 1], delay and finetune are 0 '
      'or more and at most 1 together, inc is 1 or more.'
    )
  # In units of inc; halves are rounded to even, as in the reference.
  widest = full.W / args.inc
  first, last = round(args.s0 * widest), round(widest)
  rows = []
  for width in range(first, last + 1):
    # The share of the training at which the next width is the nearer one.
    share = 1.0
    if width < last:
      grown = ((width + 0.5) / widest - args.s0) / (1 - args.s0)
      share = args.delay + grown * (1 - args.finetune - args.delay)
    rows.append(
      {
        'end_epoch': share * epochs,
        'side_factor': min(width * args.inc / full.W, 1.0),
        'batch': 'constant',
        'lr_scale': 'none',
        'stride_frames': 'fixed',
      }
    )
  return rows
