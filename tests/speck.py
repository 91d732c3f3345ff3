"""A config that several processes can train in a test: seconds, 4 grids."""

from configs import moving_digits


def get_config(arg: str = ''):
  config = moving_digits.get_config(
    ','.join(filter(None, ['size=tiny,model=slow', arg]))
  )
  config.model.blocks = (1,)
  config.model.width = 4
  config.model.dropout = 0.5
  config.data.num_frames = 2
  config.data.crop_px = 32
  config.data.jitter_px = (32, 40)
  config.optim.lr_steps = (2,)
  config.optim.total_epochs = 3
  config.optim.base_lr = 0.05
  config.grid.long_factors = ((0.5, 1), (1, 1))
  config.grid.short_factors = (0.5,)
  config.norm.group_clips = 4
  config.norm.precise_batches = 1
  config.eval.crop_px = 32
  config.eval.short_side_px = 32
  config.eval.batch_size = 64
  config.eval.every = 0.0
  return config
