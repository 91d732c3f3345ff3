"""Mix & Match (MixSize): a random side, the batch inverse to its area.

python -m mgjax.plan --config=kinetics400:grid=table \\
  --config.grid.table=mix_and_match:multiple=8

The full grid is that of the largest side. Sides and shares of the clips:

  regime=224   128, 160, 192, 256, 288, 320: 2/15 each, 224: 1/5 (full side 320)
  regime=144   96: 0.2, 128: 0.6, 224: 0.1, 256: 0.1 (full side 256)

A side with a share p of the clips and a batch b is drawn with a probability in
proportion to p / b.

Arguments: regime=224; base=0, clips at 224 pixels (64 a GPU in the reference),
0: those that follow from the full grid's batch; multiple=1, of which all
batches are a multiple.

Reported: no number for training in the abstract. A ResNet-50 that is tested at
160 pixels has the baseline's accuracy with half of the operations.

Source: Hoffer et al. 2019 (arXiv:1908.08986); eladhoffer/convNet.pytorch
  ebec93d, models/resnet.py (the two sampled regimes, mixsize_config with B+),
  data.py.
Differs: the reference repeats clips instead of adding others by default (D+);
  the rule with other clips (B+) is what a grid can say. It divides the images
  among the sides, and shuffles the batches of all; here each step draws for
  itself. Its smoothing of gradients is left out.
"""

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid

BASE_PX = 224
# {share of the clips: sides}.
REGIMES = {
  224: {0.8 / 6: (128, 160, 192, 256, 288, 320), 0.2: (224,)},
  144: {0.6: (128,), 0.2: (96,), 0.1: (224, 256)},
}


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  args = arguments.parse_args(arg, regime=224, base=0, multiple=1)
  if args.regime not in REGIMES or args.base < 0 or args.multiple < 1:
    raise ConfigError(
      f'mix_and_match:{arg}: regime is 224 or 144, base is 0 or more, multiple '
      'is 1 or more.'
    )
  shares = {
    side: share
    for share, sides in REGIMES[args.regime].items()
    for side in sides
  }
  largest = max(shares)
  base = args.base or full.batch * (largest / BASE_PX) ** 2
  grids = []
  for side in sorted(shares):
    clips = round((BASE_PX / side) ** 2 * base)
    batch = max(round(clips / args.multiple), 1) * args.multiple
    grids.append(
      {
        'side_factor': side / largest,
        'batch': batch,
        'weight': shares[side] / batch,
      }
    )
  return [
    {
      'epochs': epochs,
      'random': grids,
      'lr_scale': 'none',
      'stride_frames': 'fixed',
    }
  ]
