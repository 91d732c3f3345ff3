"""Published video transformers, as settings of our networks.

Source: MCG-NJU/VideoMAE 14ef8d8, modeling_finetune.py; facebookresearch/vjepa2
c2963a4, src/models/vision_transformer.py, and its evaluation configs (probe);
transformers 5.24.0, models/vivit and models/timesformer; google-deepmind/
videoprism d481d91, models.py (CONFIGS); torchvision 0.29.1,
models/video/mvit.py (mvit_v2_s).
"""

import types
from typing import Any

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
}
_VJEPA2: dict[str, Any] = {
  'positions': 'rope',
  'qkv_bias': 'qkv',
  'pool': 'probe',
  'probe_blocks': 3,
  'probe_heads': 16,
  'head_norm_eps': 1e-5,
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


def set_network(config: ml_collections.ConfigDict, name: str) -> None:
  """Sets config.model to a published transformer, and what its grids must be.

  Clips keep their size; frames and sides of all grids become multiples of the
  tubelet's frames and patch (of 2 frames and 16 x 16 pixels; VideoPrism: of one
  frame and 18 x 18; MViTv2: of 2 and 4 x 4; TimeSformer: of one and 16 x 16).

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
