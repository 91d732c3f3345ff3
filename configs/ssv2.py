r"""Something-Something V2 by SlowFast 16x8, with and without multigrid.

python -m mgjax.train --config=configs/ssv2.py:grid=both,seed=0 \
  --workdir=runs/ssv2

Arguments after the colon: grid=none|short|long|both|ladder|progressive,
model=slowfast|slow|i3d|c2d or a longer name such as slowfast_r101_8x8 (see
configs/published.py; 16x8 where the name does not say), seed=N. The published
results start from weights trained on Kinetics-400.

Source: PySlowFast 287ec00, configs/SSv2/SLOWFAST_16x8_R50.yaml.
Differs: PySlowFast tests its multigrid model at 224 pixels, its baseline at
  256, and takes the left of the frame; here both see the centre at 256.
"""

import ml_collections

from configs import default, published


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  config = published.from_args(arg, frames='16x8')
  published.set_fine_tuning(config)
  config.model.num_classes = 174

  config.data.name = 'something_something_v2'
  config.data.sampling = 'segments'  # Of num_frames; strides do not matter.
  config.data.jitter_px = (256, 320)
  config.data.flip = False  # Left and right are part of the labels.

  config.optim.base_lr = 0.03
  config.optim.lr_steps = (14, 18)
  config.optim.total_epochs = 22
  config.optim.warmup_epochs = 0.19
  config.optim.weight_decay = 1e-6

  config.eval.every = 2.0
  config.eval.num_views = 1
  config.eval.num_crops = 1
  return default.validate(config)
