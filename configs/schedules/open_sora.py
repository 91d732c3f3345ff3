"""Open-Sora 2, stage 1: buckets of frames and sides, drawn by the step.

python -m mgjax.plan --config=kinetics400:grid=table \\
  --config.grid.table=open_sora --config.norm.group_clips=0

The full grid is 129 x 1024². It is never drawn: it says what the factors of the
buckets are factors of, and its batch is that of 129 x 256², 3 a GPU in the
reference. There are 33 buckets at 256² pixels, of 1, 5, 9 ... 129 frames, and
one each for images of 768² and 1024².

In the reference the data choose: a clip goes to the largest bucket that it
fits, with the bucket's keep probability, else on to the next smaller side. So a
bucket that never fills has no step. Here the step draws the bucket. How often
follows from an assumption about the data: all lengths are equally frequent, 1
in 33 clips is an image, and every image is large enough for 1024². The keep
probabilities then divide the images: 0.5 to 1024², 0.5 of the rest to 768²,
what is left to 256². A bucket with a share p of the clips and a batch b is
drawn with a probability in proportion to p / b.

Arguments: images, the share of images, 1/33 if it is left out; multiple=1, of
which all batches are a multiple.

Reported: nothing of training time.

Source: hpcaitech/Open-Sora 7ad6a96, configs/diffusion/train/stage1.py (the
  buckets), opensora/datasets/bucket.py (the choice).
Differs: who draws, as above. The aspect ratio is the full grid's; there, each
  bucket has several, of about the same area. A shorter video repeats its
  frames.
"""

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid

FRAMES, SIDE, BATCH = 129, 1024, 3
# (greatest number of frames, batch of a GPU) at 256² pixels.
BATCHES = ((1, 45), (33, 12), (65, 6), (97, 4), (129, 3))
# {side: batch of a GPU} of larger images.
IMAGES = {1024: 7, 768: 13}
KEEP = 0.5


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  args = arguments.parse_args(arg, images=1 / 33, multiple=1)
  if not 0 <= args.images < 1 or args.multiple < 1:
    raise ConfigError(
      f'open_sora:{arg}: images is in [0, 1), multiple is 1 or more.'
    )
  # (frames, side, batch, share of the clips).
  buckets = []
  left = args.images
  for side, batch in IMAGES.items():
    buckets.append((1, side, batch, left * KEEP))
    left -= left * KEEP
  lengths = range(1, FRAMES + 1, 4)
  of_videos = (1 - args.images) / (len(lengths) - 1)
  for frames in lengths:
    batch = next(b for most, b in BATCHES if frames <= most)
    share = left if frames == 1 else of_videos
    buckets.append((frames, 256, batch, share))
  grids = []
  for frames, side, batch, share in buckets:
    clips = batch * full.batch / BATCH
    batch = max(round(clips / args.multiple), 1) * args.multiple
    if share:
      grids.append(
        {
          # At least one frame of a shorter full grid.
          'frames_factor': max(frames / FRAMES, 1 / full.T),
          'side_factor': side / SIDE,
          'batch': batch,
          'weight': share / batch,
        }
      )
  return [
    {
      'epochs': epochs,
      'random': grids,
      'lr_scale': 'none',
      'stride_frames': 'fixed',
    }
  ]
