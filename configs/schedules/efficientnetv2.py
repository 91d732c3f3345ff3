"""EfficientNetV2: sides and augmentation grow in equal stages.

python -m mgjax.plan --config=kinetics400:grid=table \\
  --config.grid.table=efficientnetv2 --config.augment.randaugment_ops=2

At the full side of 300 pixels, S has the sides 171, 214, 257, 300. The batch
stays. A stage has a stronger augmentation than the one before: the magnitude of
RandAugment goes from 5 to `ram`, the alphas of mixup and CutMix from 0 to
theirs. RandAugment itself is the config's: augment.randaugment_ops=2.

Arguments, those of S: ram=10, mixup=0.0, cutmix=0.0, stages=4, and ibase=128,
the side before the first stage; half of the full side where that is no larger.
For M they are ram=15,mixup=0.2,cutmix=0.2 at a full side of 384, for L 20, 0.5
and 0.5.

Reported: 5 to 11 times faster training than other networks (arXiv:2104.00298,
figure 1); the network has a part in that.

Source: google/automl 2fb46e7, efficientnetv2/main_tf2.py, lines 248-275 (the
  stages), effnetv2_configs.py (sizes and strengths), hparams.py (ibase).
Differs: magnitudes above 10, those of M and L, are refused: mgjax's RandAugment
  takes 0 to 10.
"""

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  args = arguments.parse_args(
    arg, ram=10.0, mixup=0.0, cutmix=0.0, stages=4, ibase=128
  )
  if args.stages < 1:
    raise ConfigError(f'efficientnetv2:{arg}: stages is 1 or more.')
  side = min(full.H, full.W)
  first = args.ibase if args.ibase < side else side / 2
  rows = []
  for stage in range(args.stages):
    done = (stage + 1) / args.stages
    # Evenly spaced from the first stage to the last.
    part = stage / max(args.stages - 1, 1)
    rows.append(
      {
        # Whole epochs, but for a run whose length is none.
        'end_epoch': int(done * epochs) if done < 1 else epochs,
        'side_factor': int(first + (side - first) * done) / side,
        'augment': {
          'randaugment_magnitude': 5 + (args.ram - 5) * part,
          'mixup_alpha': args.mixup * part,
          'cutmix_alpha': args.cutmix * part,
        },
        'batch': 'constant',
        'lr_scale': 'none',
        'stride_frames': 'fixed',
      }
    )
  return rows
