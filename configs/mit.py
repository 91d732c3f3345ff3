r"""Moments in Time by bLVNet-TAM and other models on sampled frames.

python -m mgjax.train --config=configs/mit.py:model=blvnet_tam_50,grid=ladder \
  --workdir=runs/mit

Arguments after the colon: grid=none|short|long|both|ladder|progressive, seed=N
and model: blvnet_tam_50, blvnet_tam_101 (16 x 2 segments, with grid=ladder
8 x 2 first), tsn_r50, tsm_r50, tam_r50 (8 segments, TSM's recipe), or others
of mgjax/recipes/segments.py. The published result starts from ImageNet weights.

Expected top-1 (top-5), in percent: 31.4 (59.3) for bLVNet-TAM (Akbari et al.
2021, arXiv:2104.11178, which does not say at how many frames). Hours: none are
published.

Source: Fan et al. 2019 (arXiv:1912.00869), section 4; see
  mgjax/recipes/segments.py.
Differs: The code of bLVNet-TAM does not come with settings of this data set;
  those of Something-Something are taken, with flips.
"""

import ml_collections

from mgjax.config import arguments, fields, rules
from mgjax.recipes import segments


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = arguments.parse_args(arg, grid='both', model='blvnet_tam_50', seed=0)
  config = fields.base()
  config.seed = args.seed
  config.grid.mode = args.grid
  config.model.num_classes = 339
  config.data.name = 'moments_in_time'
  segments.use(config, args.model)
  config.eval.every = 5.0
  return rules.validate(config)
