"""FastDINOv2: three quarters of the epochs at half the side, then all of it.

python -m mgjax.plan --config=kinetics400:grid=table \\
  --config.grid.table=fastdinov2 --config.optim.warmup_epochs=0.0

The rates are the authors', for AdamW: a warm-up of a twentieth of all epochs,
then half a cosine; the first row stops it after three quarters, and the second
one starts it again over its own epochs. The peak is 0.004 x sqrt(batch / 1024).

Arguments: rates=run keeps the learning rate of the config; lr=0.004;
first_batch=1, how many times the full grid's batch the first row has. The
settings for ImageNet-100 have 40 images in both rows; those for ImageNet-1K
seem to have 1,024 and 512 (their lengths of an epoch times those are the data
set): first_batch=2.

Reported: 1.6 times less time and 2.25 times fewer operations (DINOv2, ViT-B).

Source: KevinZ0217/fast_dinov2 adf770b (NeurIPS 2025): train_imagenet_1K.sh and
  train_imagenet_100.sh (150 epochs, then a restart),
  dinov2/configs/ssl_200_size112_100_config.yaml, ssl_resume_150_miniIN.yaml and
  the two for ImageNet-1K; dinov2/utils/config.py (the root of the batch).
Differs: local crops and the patches of noise are no part of a grid. The second
  file for ImageNet-1K says 200 epochs of 112 pixels; we take the paper's 50 of
  224, as in that for ImageNet-100.
"""

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  args = arguments.parse_args(arg, rates='published', lr=0.004, first_batch=1)
  if args.rates not in ('published', 'run') or args.first_batch < 1:
    raise ConfigError(
      f'fastdinov2:{arg}: rates is published or run; first_batch is 1 or more.'
    )
  rest = {'lr_scale': 'none', 'stride_frames': 'fixed'}
  rows = [
    {
      'epochs': 0.75 * epochs,
      'side_factor': 0.5,
      'batch': args.first_batch * full.batch,
    },
    {'epochs': 0.25 * epochs, 'batch': full.batch},
  ]
  if args.rates == 'published':
    # The first one falls over all epochs, and stops after three quarters.
    for row, fall in zip(rows, (epochs, 0.25 * epochs), strict=True):
      peak = args.lr * (row['batch'] / 1024) ** 0.5
      row['lr'] = {
        'schedule': 'optax.warmup_cosine_decay_schedule(init_value=0.0, '
        f'peak_value={peak!r}, warmup_steps={0.05 * epochs!r}, '
        f'decay_steps={fall!r}, end_value=1e-06)'
      }
  return [row | rest for row in rows]
