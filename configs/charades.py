r"""Charades by SlowFast 16x8, with and without multigrid training.

python -m mgjax.train --config=configs/charades.py:grid=both,seed=0 \
  --workdir=runs/charades

Arguments after the colon: grid=none|short|long|both|ladder|progressive,
model=slowfast|slow|i3d|c2d, seed=N. The published results start from weights
trained on Kinetics-400.

Source: PySlowFast 287ec00, configs/Charades/SLOWFAST_16x8_R50.yaml.
"""

import ml_collections

from configs import default


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = default.parse_args(arg, grid='both', model='slowfast', seed=0)
  config = default.base()
  config.seed = args.seed
  config.grid.mode = args.grid

  config.model.name = args.model
  config.model.num_classes = 157

  config.data.name = 'charades'
  config.data.num_frames = 64
  config.data.stride_frames = 2
  config.data.target_fps = 0.0  # PySlowFast counts the extracted frames.
  config.data.crop_px = 224
  config.data.jitter_px = (256, 340)
  config.data.jitter_inverse = True
  config.data.batch_size = 16

  config.optim.base_lr = 0.0375
  config.optim.lr_steps = (41, 49)
  config.optim.total_epochs = 57
  config.optim.warmup_epochs = 4.0
  config.optim.warmup_lr = 1e-4
  config.optim.weight_decay = 1e-4

  config.eval.every = 6.0
  config.eval.num_views = 10
  config.eval.num_crops = 3
  config.eval.crop_px = 256
  config.eval.batch_size = 16
  return default.validate(config)
