r"""Charades by SlowFast 16x8, with and without multigrid training.

python -m mgjax.train --config=configs/charades.py:grid=both,seed=0 \
  --config.init_from=runs/k400 --config.init_head=new --workdir=runs/charades

Arguments after the colon: grid=none|short|long|both|ladder|progressive,
model=slowfast|slow|i3d|c2d or a longer name such as slowfast_r101_8x8 (see
mgjax/recipes/published.py; 16x8 where the name does not say), seed=N. The
published results start from weights trained on Kinetics-400.

Expected mean average precision, in percent, 10 x 3 views: 38.9 with grid=none,
38.6 with grid=both (PySlowFast's MODEL_ZOO.md). Hours: none are published.

Source: PySlowFast 287ec00, configs/Charades/SLOWFAST_16x8_R50.yaml.
"""

import ml_collections

from mgjax.config import rules
from mgjax.recipes import published


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  config = published.from_args(arg, frames='16x8')
  published.set_fine_tuning(config)
  config.model.num_classes = 157

  config.data.name = 'charades'
  config.data.target_fps = 0.0  # PySlowFast counts the extracted frames.
  config.data.jitter_px = (256, 340)

  config.optim.loss = 'sigmoid'
  config.optim.base_lr = 0.0375
  config.optim.lr_steps = (41, 49)
  config.optim.total_epochs = 57
  config.optim.warmup_epochs = 4.0
  config.optim.weight_decay = 1e-4

  config.eval.every = 6.0
  config.eval.num_views = 10
  config.eval.num_crops = 3
  config.eval.ensemble = 'max'
  return rules.validate(config)
