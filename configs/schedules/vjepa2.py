"""V-JEPA 2, ViT-g: 16 frames of 256² for most of the steps, then 64 of 384².

python -m mgjax.plan --config=kinetics400:grid=table \\
  --config.grid.table=vjepa2 --config.data.num_frames=64 \\
  --config.data.crop_px=384 --config.data.jitter_px=440,550 \\
  --config.optim.warmup_epochs=0.0

The full grid is that of the second row, 64 x 384² in the paper: 18,432 tokens
of 2 x 16 x 16, after 2,048. The batch stays (3,072 clips in the paper). The
rates are the paper's, for AdamW and that batch: 1e-4 to 5.25e-4 over the first
twentieth of the steps, constant, then linear to 1e-6.

Arguments: steps=240000 and cooldown=12000, of the two rows; rates=run keeps the
learning rate of the config; ipe_scale=1.25 as in the released settings, which
plan the last fall over 1.25 times the steps that they train for, so that it
ends at 1.058e-4.

Reported: 8.4 times less time than at the full grid throughout
(arXiv:2506.09985).

Source: facebookresearch/vjepa2 c2963a4,
  configs/train/vitg16/pretrain-256px-16f.yaml (800 epochs of 300 steps, of
  which 40 warm up; 16 nodes of 8 GPUs with 24 clips) and
  cooldown-384px-64f.yaml (40 epochs of 300 steps; 64 nodes of 8 GPUs with 6
  clips); src/utils/schedulers.py.
Differs: the rate of a step is that before it; the reference counts the step
  first, so that ours is one step late.
"""

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  del full, epochs
  args = arguments.parse_args(
    arg, steps=240_000, cooldown=12_000, rates='published', ipe_scale=1.0
  )
  if args.rates not in ('published', 'run') or not args.ipe_scale >= 1:
    raise ConfigError(
      f'vjepa2:{arg}: rates is published or run; ipe_scale is 1 or more.'
    )
  first, peak, last = 1e-4, 5.25e-4, 1e-6
  end = peak + (last - peak) / args.ipe_scale
  coarse = {'steps': args.steps, 'frames_factor': 1 / 4, 'side_factor': 2 / 3}
  fine = {'steps': args.cooldown}
  if args.rates == 'published':
    coarse['lr'] = [[0, first], [40 / 800, peak], [1, peak]]
    fine['lr'] = [[0, peak], [1, end]]
  # Four frames a second in both.
  rest = {'batch': 'constant', 'lr_scale': 'none', 'stride_frames': 'fixed'}
  return [coarse | rest, fine | rest]
