"""Published video transformers as settings of networks, and their recipes.

Source: MCG-NJU/VideoMAE 14ef8d8, modeling_finetune.py, run_class_finetuning.py,
scripts/; facebookresearch/vjepa2 c2963a4, src/models/vision_transformer.py,
configs/eval/ and evals/video_classification_frozen (probe); transformers
5.24.0, models/vivit and models/timesformer; google-deepmind/videoprism d481d91,
models.py (CONFIGS); torchvision 0.29.1, models/video/mvit.py (mvit_v2_s).
Differs: The references cut a part of 8 to 100 % of the frame's area, of
  aspect ratios 3/4 to 4/3, out of frames that RandAugment has changed; here the
  short side is drawn and crops are changed. They erase with noise. The warm-up
  of VideoMAE precedes the whole cosine; here it replaces its beginning.
"""

import types
from typing import Any, NamedTuple

import ml_collections

from mgjax.errors import ConfigError

_SIZES = types.MappingProxyType(
  {
    's': {'depth': 12, 'width': 384, 'heads': 6},
    'b': {'depth': 12, 'width': 768, 'heads': 12},
    'l': {'depth': 24, 'width': 1024, 'heads': 16},
    'h': {'depth': 32, 'width': 1280, 'heads': 16},
    # The source's vit_giant_xformers.
    'g': {'depth': 40, 'width': 1408, 'heads': 22, 'mlp_width': 6144},
  }
)
_VIDEOMAE: dict[str, Any] = {
  'positions': 'sincos',
  'position_grid': (16, 224, 224),
  'qkv_bias': 'qv',
  'pool': 'mean',
  # trunc_normal_(std=0.02) times init_scale.
  'head_std': 0.02 * 0.001,
}
_VJEPA2: dict[str, Any] = {
  'positions': 'rope',
  'qkv_bias': 'qkv',
  'pool': 'probe',
  'probe_blocks': 3,
  'probe_heads': 16,
  'head_norm_eps': 1e-5,
  'rescaled_init': True,
}
_VIVIT: dict[str, Any] = {
  'positions': 'learned',
  'position_grid': (32, 224, 224),
  'qkv_bias': 'qkv',
  'gelu': 'tanh',
  'pool': 'class',
}
_VIDEOPRISM: dict[str, Any] = {
  'b': {'width': 768, 'heads': 12, 'position_grid': (16, 288, 288)},
  'l': {
    'width': 1024,
    'heads': 16,
    'spatial_depth': 24,
    'position_grid': (8, 288, 288),
  },
}
# 'name': where the network is not 'vit'.
NETWORKS: dict[str, dict[str, Any]] = {
  **{f'videomae_{size}': _VIDEOMAE | _SIZES[size] for size in 'sblh'},
  **{f'vjepa2_{size}': _VJEPA2 | _SIZES[size] for size in 'blhg'},
  'vivit_b': _VIVIT | _SIZES['b'],
  **{
    f'videoprism_{size}': {'name': 'videoprism', **options}
    for size, options in _VIDEOPRISM.items()
  },
  'timesformer_b': {
    'name': 'timesformer',
    'position_grid': (8, 224, 224),
    **_SIZES['b'],
  },
  'mvitv2_s': {
    'name': 'mvit',
    'blocks': (1, 2, 11, 2),
    'width': 96,
    'position_grid': (16, 224, 224),
  },
}
# Mean and standard deviation of the pixels that a family's weights are for.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_KINETICS = ((0.45,) * 3, (0.225,) * 3)
PIXELS = types.MappingProxyType(
  {
    'videomae': _IMAGENET,
    'vjepa2': _IMAGENET,
    'videoprism': ((0.0,) * 3, (1.0,) * 3),  # As they are, from 0 to 1.
    'mvitv2': _KINETICS,
    'timesformer': _KINETICS,
    'vivit': ((0.5,) * 3, (0.5,) * 3),  # From -1 to 1.
  }
)


def set_network(config: ml_collections.ConfigDict, name: str) -> None:
  """Sets config.model to a published transformer, and what its clips must be.

  Clips keep their size; frames and sides of all grids become multiples of the
  tubelet's frames and patch (of 2 frames and 16 x 16 pixels; VideoPrism: of one
  frame and 18 x 18; MViTv2: of 2 and 4 x 4; TimeSformer: of one and 16 x 16).
  Pixels are normalised as the family's.

  Args:
    config: Changed in place.
    name: One of NETWORKS, such as 'videomae_b' or 'vjepa2_l'.

  Raises:
    ConfigError: There is no such network.
  """
  if name not in NETWORKS:
    raise ConfigError(
      f'{name!r} is no video transformer; accepted are {", ".join(NETWORKS)}.'
    )
  options = {'name': 'vit'} | NETWORKS[name]
  config.model.name = options.pop('name')
  config.model.update(options)
  config.grid.frames_multiple = (
    config.model.tubelet_frames if 'tubelet_frames' in config.model else 1
  )
  config.grid.side_multiple = config.model.patch_px
  config.data.mean, config.data.std = PIXELS[name.partition('_')[0]]


class _FineTuning(NamedTuple):
  """VideoMAE's fine-tuning on a data set, of one size of the network."""

  epochs: int
  rate: float  # At 256 videos per step.
  videos: int  # Per step.
  drop_path: float = 0.1
  warmup_rate: float = 1e-6
  end_rate: float = 1e-6


# Source: scripts/kinetics and scripts/ssv2 of the longest pre-training.
_KINETICS_TUNING = {
  's': _FineTuning(150, 5e-4, 384),
  'b': _FineTuning(75, 5e-4, 384),
  'l': _FineTuning(35, 2e-3, 128),
  'h': _FineTuning(50, 1e-3, 512, 0.2, 1e-8, 1e-5),
}
_SSV2_TUNING = {
  's': _FineTuning(40, 1e-3, 384),
  'b': _FineTuning(30, 5e-4, 384),
}
# Families that are published with a probe on a frozen backbone.
_PROBED = ('vjepa2', 'videoprism')
# Frames, stride and side of clips, where they are not 16 x 4 frames of 224.
_CLIPS = {
  'vjepa2': (16, 4, 256),
  'vjepa2_g': (64, 2, 384),
  'videoprism': (16, 4, 288),
  'videoprism_l': (8, 8, 288),
  'vivit': (32, 2, 224),
  'timesformer': (8, 32, 224),
}
# How a network is trained from weights: argument `tune` of the recipes.
TUNES = ('', 'full', 'probe')


def use(
  config: ml_collections.ConfigDict, name: str, *, tune: str = ''
) -> None:
  """Sets a published transformer and its recipe on Kinetics or SSv2.

  Which of the two it is, is read from data.sampling: 'segments' is SSv2's.

  Args:
    config: Changed in place; data.sampling is set.
    name: One of NETWORKS.
    tune: 'full': all weights are trained, by VideoMAE's recipe; 'probe': only
      what pools by attention, and the classifier; '': as published for the
      family, full for VideoMAE, else the probe.

  Raises:
    ConfigError: There is no such network, or no such way.
  """
  set_network(config, name)
  family, _, size = name.partition('_')
  tune = tune or ('probe' if family in _PROBED else 'full')
  if tune == 'probe' and family not in _PROBED:
    raise ConfigError(
      f'tune=probe: {name} has no probe; use tune=full, or a network such as '
      'vjepa2_l'
    )
  _set_clips(config, *_CLIPS.get(name, _CLIPS.get(family, (16, 4, 224))))
  if tune == 'full':
    published = (
      _SSV2_TUNING if config.data.sampling == 'segments' else _KINETICS_TUNING
    )
    set_fine_tuning(config, published.get(size, published['b']))
  else:
    set_probe(config)


def check_tune(tune: str, model: str) -> None:
  """Refuses a recipe's argument `tune` that is none, or does nothing.

  Raises:
    ConfigError: Says what would be accepted.
  """
  if tune not in TUNES:
    raise ConfigError(f"tune={tune!r}; accepted are 'full' and 'probe'")
  if tune and model not in NETWORKS:
    raise ConfigError(
      f'tune={tune} is one of transformers; model={model} has a recipe of its '
      'own'
    )


def _set_clips(
  config: ml_collections.ConfigDict, frames: int, stride: int, side: int
) -> None:
  """Sets the frames and crops that a family's recipe has."""
  data, evaluation = config.data, config.eval
  data.num_frames, data.stride_frames = frames, stride
  data.crop_px = side
  # As 256 to 320 pixels are to a crop of 224.
  data.jitter_px = (side * 8 // 7, side * 10 // 7)
  evaluation.crop_px = evaluation.short_side_px = side
  evaluation.num_crops = 3
  evaluation.num_views = 2 if data.sampling == 'segments' else 5
  evaluation.batch_size = 16


def set_fine_tuning(
  config: ml_collections.ConfigDict, published: _FineTuning
) -> None:
  """Sets VideoMAE's recipe: AdamW, layer-wise rates, two clips of a video."""
  config.init_head = 'new'  # Where init_from is given.
  config.model.drop_path = published.drop_path
  config.data.samples_per_video = 2
  config.data.batch_size = 2 * published.videos
  optim = config.optim
  optim.base_lr, optim.base_batch = published.rate, 2 * 256
  optim.warmup_epochs, optim.warmup_lr = 5.0, published.warmup_rate
  optim.end_lr, optim.total_epochs = published.end_rate, published.epochs
  optim.layer_decay = 0.75
  optim.weight_decay, optim.decay_on = 0.05, 'kernels'
  optim.label_smoothing = 0.1
  _set_adamw(config)
  set_augmentation(config)
  config.augment.mixup_alpha, config.augment.cutmix_alpha = 0.8, 1.0


def set_probe(config: ml_collections.ConfigDict) -> None:
  """Sets V-JEPA 2's recipe of an attentive probe on a frozen backbone.

  Differs: The reference trains twenty probes at once, of rates from 1e-4 to
    5e-3 and weight decays from 0.01 to 0.8, and takes the best; here one is
    trained, of values inside. Its probe sees the tokens of several clips of a
    video together (2 of SSv2, 8 of Kinetics), here those of one.
  """
  config.init_head = 'new'  # Where init_from is given.
  config.data.batch_size = 256
  config.data.flip = False
  optim = config.optim
  optim.train = 'head'
  optim.base_lr = 1e-3
  optim.warmup_epochs, optim.end_lr, optim.total_epochs = 0.0, 0.0, 20
  optim.weight_decay, optim.decay_on = 0.1, 'all'
  _set_adamw(config)
  set_augmentation(config)


def _set_adamw(config: ml_collections.ConfigDict) -> None:
  """Sets AdamW with a cosine, and a ladder with the same rates."""
  optim = config.optim
  optim.name, optim.b1, optim.b2, optim.eps = 'adamw', 0.9, 0.999, 1e-8
  # Of the larger batches of coarse grids; the baseline's is as published.
  optim.batch_rule = 'sqrt'
  optim.schedule = 'cosine'
  optim.lr_steps = ()  # Only a schedule of steps reads them.
  half = max(1, optim.total_epochs // 2)
  config.grid.ladder = (
    (0.5, optim.total_epochs, optim.base_lr, 'cosine'),
    (1, half, optim.base_lr / 2, 'cosine'),
  )


def set_augmentation(config: ml_collections.ConfigDict) -> None:
  """Sets rand-m7-n4-mstd0.5-inc1 and random erasing, of both references."""
  augment = config.augment
  augment.randaugment_ops, augment.randaugment_magnitude = 4, 7.0
  augment.randaugment_policy = 'timm'
  augment.randaugment_probability = 0.5
  augment.randaugment_magnitude_std = 0.5
  augment.erase_probability = 0.25


def set_small_fine_tuning(config: ml_collections.ConfigDict) -> None:
  """Sets VideoMAE's recipe for a data set of thousands of videos.

  Source: scripts/ucf101, whose rate and warm-up these are at 256 videos.
  Differs: Fewer epochs, one clip of a video, and Kinetics' layer decay and drop
    path.
  """
  set_fine_tuning(config, _FineTuning(30, 5e-4, 16))
  config.data.samples_per_video = 1
  config.data.batch_size, config.optim.base_batch = 32, 256
  config.optim.warmup_epochs = 3.0
