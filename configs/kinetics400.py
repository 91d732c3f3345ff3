r"""Kinetics-400 by the stepwise recipe, with and without multigrid training.

python -m mgjax.train --config=configs/kinetics400.py:grid=both,seed=0 \
  --workdir=runs/k400

Arguments after the colon: grid=none|short|long|both|ladder|progressive,
model=slowfast|slow|i3d|c2d or a longer name such as slow_r50_4x16,
slowfast_r101_16x8_50_50 or i3d_nln_r50_8x8 (see configs/published.py; 8x8
where the name does not say), seed=N. grid=none is the baseline; nothing else
changes with it.

Source: PySlowFast 287ec00, configs/Kinetics/SLOWFAST_8x8_R50_stepwise.yaml;
  the other models have its recipe and their own networks and frames.
Differs: PySlowFast tests its multigrid models at 224 pixels and its baselines
  at 256; here both are tested at 256.
"""

import ml_collections

from configs import default, published


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  config = published.from_args(arg, frames='8x8')
  config.model.num_classes = 400

  config.data.name = 'kinetics400'
  config.data.crop_px = 224
  config.data.jitter_px = (256, 320)
  config.data.batch_size = 64

  config.optim.base_lr = 0.1
  config.optim.lr_steps = (94, 154, 196)
  config.optim.total_epochs = 239
  config.optim.warmup_epochs = 34.0
  config.optim.warmup_lr = 0.01
  config.optim.weight_decay = 1e-4

  config.eval.every = 10.0
  config.eval.num_views = 10
  config.eval.num_crops = 3
  config.eval.crop_px = 256
  return default.validate(config)
