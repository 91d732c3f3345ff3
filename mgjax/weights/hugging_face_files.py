"""What a network is to transformers: config.json, and how clips are prepared.

The inverse of hugging_face.py, which reads such folders.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mgjax.errors import ConfigError
from mgjax.weights import hugging_face

# Of a network with positions, or of a name of its own.
_KINDS = {
  'sincos': 'videomae',
  'rope': 'vjepa2',
  'learned': 'vivit',
  'timesformer': 'timesformer',
}
_CLASSES = {
  'videomae': 'VideoMAEForVideoClassification',
  'vjepa2': 'VJEPA2ForVideoClassification',
  'vivit': 'VivitForVideoClassification',
  'timesformer': 'TimesformerForVideoClassification',
}
# Options that transformers has with some values only.
_ACCEPTED: Mapping[str, Mapping[str, tuple]] = {
  'videomae': {
    'pool': ('mean', 'first'),
    'qkv_bias': ('qv', ''),
    'gelu': ('exact',),
  },
  'vjepa2': {'pool': ('probe',), 'qkv_bias': ('qkv', ''), 'gelu': ('exact',)},
  'vivit': {'pool': ('class',), 'qkv_bias': ('qkv', '')},
  'timesformer': {},
}


def config_of(
  options: Mapping[str, Any],
  *,
  crop_px: int,
  num_frames: int,
  labels: Sequence[str] = (),
) -> dict[str, Any]:
  """The configuration of a network for transformers.

  Args:
    options: Fields of config.model.
    crop_px: Height and width of clips. V-JEPA 2 counts rows and columns by it.
    num_frames: Of clips.
    labels: Names of the classes, in their order; (): they have none.

  Raises:
    ConfigError: transformers has no such network; names the option.
  """
  kind = _kind_of(options)
  for name, accepted in _ACCEPTED[kind].items():
    _refuse_others(options, name, accepted)
  names = list(labels) or hugging_face.default_labels(options['num_classes'])
  config = {
    'model_type': kind,
    'architectures': [_CLASSES[kind]],
    'num_hidden_layers': options['depth'],
    'hidden_size': options['width'],
    'num_attention_heads': options['heads'],
    'hidden_act': 'gelu',
    'layer_norm_eps': options['layer_norm_eps'],
    'id2label': {str(i): name for i, name in enumerate(names)},
    'label2id': {name: i for i, name in enumerate(names)},
  }
  hidden = options['mlp_width'] or 4 * options['width']
  if kind == 'vjepa2':
    _refuse_others(options, 'probe_heads', (0, options['heads']))
    return config | _of_vjepa2(options, hidden, crop_px, num_frames)
  frames, height, width = options['position_grid']
  config |= {
    'intermediate_size': hidden,
    'num_channels': 3,
    # The grid of the table: transformers takes clips of this size only.
    'num_frames': frames,
    'image_size': height if height == width else [height, width],
  }
  if kind == 'videomae':
    return config | {
      'patch_size': options['patch_px'],
      'tubelet_size': options['tubelet_frames'],
      'qv_bias': options['qkv_bias'] == 'qv',
      'use_mean_pooling': options['pool'] == 'mean',
    }
  if kind == 'vivit':
    patch = options['patch_px']
    return config | {
      'tubelet_size': [options['tubelet_frames'], patch, patch],
      'qkv_bias': options['qkv_bias'] == 'qkv',
      'hidden_act': 'gelu_fast' if options['gelu'] == 'tanh' else 'gelu',
    }
  return config | {
    'patch_size': options['patch_px'],
    'qkv_bias': True,
    'attention_type': 'divided_space_time',
  }


def _of_vjepa2(
  options: Mapping[str, Any], hidden: int, crop_px: int, num_frames: int
) -> dict[str, Any]:
  return {
    'patch_size': options['patch_px'],
    'tubelet_size': options['tubelet_frames'],
    'drop_path_rate': options['drop_path'],
    'mlp_ratio': _ratio(hidden, options['width']),
    'in_chans': 3,
    'frames_per_clip': num_frames,
    'crop_size': crop_px,
    'qkv_bias': options['qkv_bias'] == 'qkv',
    'num_pooler_layers': options['probe_blocks'],
    # The predictor of the pre-training is made with every model, and not used.
    'pred_hidden_size': options['heads'] * 12,
    'pred_num_attention_heads': options['heads'],
    'pred_num_hidden_layers': 1,
  }


def preprocessor_of(
  kind: str,
  *,
  short_side_px: int,
  crop: tuple[int, int],
  mean: Sequence[float],
  std: Sequence[float],
) -> tuple[str, dict[str, Any]]:
  """How transformers prepares the frames of clips.

  Args:
    kind: model_type.
    short_side_px: To which frames are resized.
    crop: Height and width of the middle that is cut out.
    mean: Subtracted from RGB in [0, 1].
    std: By which that is divided.

  Returns:
    The name of the file, and what it says.
  """
  common = {
    'do_resize': True,
    'size': {'shortest_edge': short_side_px},
    'do_center_crop': True,
    'crop_size': {'height': crop[0], 'width': crop[1]},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(mean),
    'image_std': list(std),
  }
  if kind == 'vjepa2':
    name = {'video_processor_type': 'VJEPA2VideoProcessor'}
    return 'video_preprocessor_config.json', name | common
  name = {'image_processor_type': 'VideoMAEImageProcessor'}
  if kind == 'vivit':
    # Its own would bring pixels to [-1, 1] before the normalisation.
    name = {'image_processor_type': 'VivitImageProcessor', 'offset': False}
  return 'preprocessor_config.json', name | common


def _kind_of(options: Mapping[str, Any]) -> str:
  """model_type of a network here, of those that are written."""
  is_vit = options['name'] == 'vit'
  kind = _KINDS.get(options['positions'] if is_vit else options['name'])
  if kind is None:
    raise ConfigError(
      '--to=huggingface writes VideoMAE (vit with sincos positions), V-JEPA 2 '
      '(with rope positions), ViViT (with learned ones) and timesformer, not '
      f'{options["name"]}'
    )
  return kind


def constants(kind: str, layer_norm_eps: float) -> dict[str, Any]:
  """Options of config.model that transformers has no entry for.

  Args:
    kind: model_type.
    layer_norm_eps: Of the entry of this name.
  """
  eps = {'videomae': 1e-5, 'vjepa2': layer_norm_eps}.get(kind)
  return {} if eps is None else {'head_norm_eps': eps}


def _refuse_others(
  options: Mapping[str, Any], name: str, accepted: tuple
) -> None:
  if options[name] not in accepted:
    raise ConfigError(
      f'--to=huggingface: model.{name} is {options[name]!r}; of networks with '
      f'positions={options["positions"]!r} transformers has those with '
      f'{" or ".join(map(repr, accepted))} only'
    )


def _ratio(hidden: int, width: int) -> float:
  """A ratio of which transformers makes int(width * ratio) hidden features."""
  ratio = hidden / width
  return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
