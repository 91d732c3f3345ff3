r"""UCF101: fine-tuning of a model on sampled frames, trained on Kinetics-400.

python -m mgjax.train --config=configs/ucf101.py:model=tsm_r50,grid=none \
  --config.init_from=runs/k400_tsm --workdir=runs/ucf101

init_from is the folder of a run of configs/kinetics400.py with the same model,
or of imported weights. Arguments after the colon: seed=N,
grid=none|short|long|both|ladder|progressive, model=tsn_r50|tsm_r50|tam_r50. The
splits are chosen when the data is prepared: --fold=1, 2 or 3.

Expected accuracy and hours: TSM's code does not state them.

Source: mit-han-lab/temporal-shift-module, README, fine-tuning on UCF101.
"""

import ml_collections

from mgjax.config import arguments, fields, rules
from mgjax.recipes import segments


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = arguments.parse_args(arg, grid='none', model='tsm_r50', seed=0)
  config = fields.base()
  config.seed = args.seed
  config.grid.mode = args.grid
  config.model.num_classes = 101
  config.data.name = 'ucf101'
  segments.fine_tune(config, args.model)
  return rules.validate(config)
