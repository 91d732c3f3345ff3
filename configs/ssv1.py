r"""Something-Something V1 by models on sampled frames.

python -m mgjax.train --config=configs/ssv1.py:model=blvnet_tam_50,grid=ladder \
  --workdir=runs/ssv1

Arguments after the colon: grid=none|short|long|both|ladder|progressive, seed=N
and model:
  tsn_r50, tsm_r50, tam_r50       8 segments, TSM's recipe (and other networks
                                  and depths of mgjax/recipes/segments.py)
  blvnet_tam_50, blvnet_tam_101   16 x 2 segments, with grid=ladder 8 x 2 first
All as for V2 (configs/ssv2.py). The published results start from ImageNet.

Expected top-1, in percent, one view:
  tsm_r50            45.6: TSM's README
  blvnet_tam_50      46.4 at 8 x 2 frames, 48.4 at 16 x 2; blvnet_tam_101: 47.8,
                     49.6: IBM/bLVNet-TAM's README
Expected hours: none are published.

Source: See mgjax/recipes/segments.py.
Differs: As configs/ssv2.py.
"""

import ml_collections

from mgjax.config import arguments, fields, rules
from mgjax.recipes import segments


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = arguments.parse_args(arg, grid='both', model='tsm_r50', seed=0)
  config = fields.base()
  config.seed = args.seed
  config.grid.mode = args.grid
  config.model.num_classes = 174
  config.data.name = 'something_something_v1'
  segments.use(config, args.model)
  config.data.flip = False  # Left and right are part of the labels.
  config.eval.every = 2.0
  return rules.validate(config)
