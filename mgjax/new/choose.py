"""Settings of a training on a few videos, from what the videos are."""

import math
from typing import Any, NamedTuple

import numpy as np

from mgjax.new.look import Videos

# A batch is at most this share of an epoch: fewer steps than that say little.
_BATCHES_PER_EPOCH = 8
# Seconds that a clip spans at most: as in published recipes on Kinetics.
_SPAN_S = 2.2
# From so many training videos of the most frequent class for one of the rarest
# on, rare classes are shown more often.
_UNEVEN = 1.5
# And how far: see config.data.class_balance. Not by weights in the loss: in a
# batch of a few clips a rare one would outweigh all others.
_CLASS_BALANCE = 1.0


# Room on the disk that a cache of decoded frames may ask for by itself, its
# margin included.
_MOST_CACHE_GIB = 2.0
# For videos that are longer than the others of their split.
_CACHE_MARGIN = 1.2


class Setting(NamedTuple):
  """A line of the config file.

  Attributes:
    field: Dotted name.
    value: Its value.
    why: The comment above it; '': as the line before.
  """

  field: str
  value: Any
  why: str = ''


class Clip(NamedTuple):
  """What weights were trained on.

  Attributes:
    frames: Of a clip.
    side_px: Of its crop.
    has_batch_norm: Whether the network has batch norm.
    in_segments: Whether its frames are one of each of equal parts of a video.
  """

  frames: int
  side_px: int
  has_batch_norm: bool
  in_segments: bool = False


def settings(
  videos: Videos, *, flip: bool, weights: Clip | None, num_devices: int = 1
) -> list[Setting]:
  """All settings that depend on the videos, but the grid.

  Args:
    videos: The videos.
    flip: Whether a mirrored video still shows its class.
    weights: What a training starts from; None: it starts from scratch.
    num_devices: Devices that share each batch.
  """
  start = _from_scratch(videos) if weights is None else []
  clip = weights or _small_clip(videos)
  batch = batch_size(videos.total('train'), 32 if weights else 16, num_devices)
  least_epochs, least_steps = (20, 200) if weights else (30, 300)
  epochs = max(
    least_epochs, math.ceil(least_steps * batch / videos.total('train'))
  )
  return [
    *start,
    *_clip(videos, clip, flip),
    *_training(videos, batch, epochs, num_devices),
    *(_rates_from_scratch(epochs) if weights is None else []),
    *(_batch_norm(batch) if clip.has_batch_norm else []),
    *_evaluation(videos, clip, epochs, num_devices),
    Setting('train.checkpoint_every_s', 60.0, 'A kill costs a minute at most.'),
  ]


def _small_clip(videos: Videos) -> Clip:
  """A clip that a small network learns from in minutes."""
  side = min(112, int(np.quantile(videos.short_px, 0.25))) // 16 * 16
  frames = 16 if np.quantile(videos.num_frames, 0.25) >= 16 else 8
  return Clip(frames, max(32, side), has_batch_norm=True)


def batch_size(num_train: int, most: int, num_devices: int = 1) -> int:
  """Clips of a step: a power of two, at most an eighth of an epoch.

  Args:
    num_train: Training videos.
    most: The most that the recipe is for.
    num_devices: Devices that share each batch: the next multiple of them.
  """
  share = max(1, num_train // _BATCHES_PER_EPOCH)
  power = 2 ** int(math.log2(min(most, share)))
  return math.ceil(power / num_devices) * num_devices


def _from_scratch(videos: Videos) -> list[Setting]:
  frames = _small_clip(videos).frames
  return [
    Setting(
      'model.name',
      'slowfast',
      'The small SlowFast of `make demo`: large networks need more videos, or '
      'weights to start from (--preset=finetune).',
    ),
    Setting('model.blocks', (1, 1, 1)),
    Setting('model.width', 16),
    Setting('model.beta_inv', 4),
    Setting('model.alpha', frames // 4),
    Setting('model.dropout', 0.2),
  ]


def _frames(videos: Videos, clip: Clip) -> list[Setting]:
  if clip.in_segments:
    return [
      Setting(
        'data.num_frames',
        clip.frames,
        f'A clip: a frame of each of {clip.frames} equal parts of the video, '
        'as the weights have it.',
      )
    ]
  rate = float(np.median(videos.fps))
  fps = round(rate, 2)
  # Of short videos, too, most of a clip is no repetition.
  seconds = float(np.quantile(videos.num_frames / videos.fps, 0.25))
  # 64 frames are four times 16, whatever the rate's last digit.
  stride = max(1, int(min(seconds, _SPAN_S) * rate / clip.frames + 1e-6))
  return [
    Setting(
      'data.num_frames',
      clip.frames,
      f'A clip: {clip.frames} frames, {stride} apart at {fps:g} frames per '
      f'second: {clip.frames * stride / fps:.1f} s. A quarter of the videos '
      f'last up to {seconds:.1f} s.',
    ),
    Setting('data.stride_frames', stride),
    Setting('data.target_fps', fps),
  ]


def _clip(videos: Videos, clip: Clip, flip: bool) -> list[Setting]:
  return [
    *_frames(videos, clip),
    Setting(
      'data.crop_px',
      clip.side_px,
      'Frames are resized to a random short side in jitter_px, and cropped.',
    ),
    Setting('data.jitter_px', (clip.side_px, clip.side_px * 5 // 4)),
    Setting(
      'data.flip',
      flip,
      'Whether half of the clips are mirrored. Wrong where left and right are '
      'part of a class.',
    ),
    _decoded_cache(videos),
  ]


def _decoded_cache(videos: Videos) -> Setting:
  room = math.ceil(10 * _CACHE_MARGIN * videos.decoded_gib) / 10
  if room <= _MOST_CACHE_GIB:
    why = (
      'Room for the decoded frames of all videos, in a folder beside this '
      'file, so that each video is decoded once.'
    )
  else:
    why = (
      'Videos are decoded for every clip: the decoded frames of all of them '
      f'would take {room:.1f} GiB of the disk, with a margin.'
    )
    room = 0.0
  return Setting('data.decoded_cache_gib', room, why)


def _training(
  videos: Videos, batch: int, epochs: int, num_devices: int
) -> list[Setting]:
  num_train, uneven = videos.total('train'), videos.unevenness
  steps = math.ceil(epochs * num_train / batch)
  balance, why = 0.0, 'an epoch shows every video once.'
  if uneven >= _UNEVEN:
    balance = _CLASS_BALANCE
    why = (
      'all classes are shown equally often. Look at the mean class accuracy. '
      'In its place, optim.class_balance = 0.5 would weigh clips in the loss.'
    )
  return [
    Setting(
      'data.class_balance',
      balance,
      f'The most frequent class has {uneven:.1f} times the training videos of '
      f'the rarest: {why}',
    ),
    Setting(
      'data.batch_size',
      batch,
      (
        f'At most an eighth of the {num_train} training videos: with larger '
        'batches an epoch has too few steps.'
        if batch * _BATCHES_PER_EPOCH <= num_train
        else f'A clip for each of {num_devices} device(s): few videos.'
      ),
    ),
    Setting(
      'optim.total_epochs',
      epochs,
      f'{steps} steps on the full grid; fewer than some hundred teach little.',
    ),
    Setting('optim.warmup_epochs', float(max(1, epochs // 10))),
  ]


def _rates_from_scratch(epochs: int) -> list[Setting]:
  return [
    Setting(
      'optim.base_lr',
      0.05,
      'Learning rates are those of 8 clips in a step, and follow the batch.',
    ),
    Setting('optim.warmup_lr', 0.01),
    Setting('optim.base_batch', 8),
    Setting('optim.lr_steps', (epochs * 3 // 4,)),
  ]


def _batch_norm(batch: int) -> list[Setting]:
  # Eight as in the recipes; fewer where the batch has no such groups.
  group = max(n for n in range(1, 9) if batch % n == 0)
  return [
    Setting('norm.group_clips', group, 'Clips that batch norm sees.'),
    Setting('norm.precise_batches', 20),
  ]


def _evaluation(
  videos: Videos, clip: Clip, epochs: int, num_devices: int
) -> list[Setting]:
  return [
    Setting(
      'eval.every',
      float(math.ceil(epochs / 5)),
      'Epochs from one evaluation to the next.',
    ),
    Setting(
      'eval.num_views',
      2,
      'A video is scored in two clips, '
      + (
        'of different frames of each part.'
        if clip.in_segments
        else 'from its beginning and its middle.'
      ),
    ),
    Setting('eval.num_crops', 1),
    Setting('eval.crop_px', clip.side_px),
    Setting('eval.short_side_px', clip.side_px),
    Setting(
      'eval.batch_size', batch_size(videos.total('train'), 16, num_devices)
    ),
  ]
