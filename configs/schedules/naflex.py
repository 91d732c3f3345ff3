"""timm's NaFlex: every step draws a number of tokens, all equally probable.

python -m mgjax.plan --config=kinetics400:grid=table --config.grid.table=naflex

The numbers are 128, 256, 576, 784 and 1,024 tokens of a frame; the full grid is
that of 1,024, 512² pixels at a patch of 16. Its sides become 11, 16, 24, 28 and
32 patches of 32. The batch holds as many tokens as the full grid's, rounded
down to a multiple: 128, 64, 24, 16 and 16 clips where the full grid's is 16.

Argument: divisor=8, which divides all batches.

Reported: nothing of training time.

Source: huggingface/pytorch-image-models 0893f5d, timm/data/naflex_dataset.py
  (the draws, the batch), timm/data/naflex_transforms.py (a square image of 128
  tokens has 11 x 11 patches).
Differs: there, images keep their aspect ratio and are padded to the number of
  tokens; here all clips have the full grid's. timm draws the batches of an
  epoch once and shuffles them for every other one; here each step draws for
  itself. Its loss is multiplied by the batch (naflex-loss-scale); ours is a
  mean.
"""

import math

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid

TOKENS = (128, 256, 576, 784, 1024)


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  args = arguments.parse_args(arg, divisor=8)
  if args.divisor < 1:
    raise ConfigError(f'naflex:{arg}: divisor is 1 or more.')
  budget = full.batch * TOKENS[-1]
  return [
    {
      'epochs': epochs,
      'random': [
        {
          'side_factor': math.isqrt(tokens) / math.isqrt(TOKENS[-1]),
          'batch': max(budget // tokens // args.divisor, 1) * args.divisor,
        }
        for tokens in TOKENS
      ],
      'lr_scale': 'none',
      'stride_frames': 'fixed',
    }
  ]
