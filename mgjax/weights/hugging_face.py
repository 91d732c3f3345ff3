"""Folders as transformers' `save_pretrained` writes them.

A config.json beside the weights has all options of the network; what names and
shapes of tensors do not show, such as the heads, is in there.
"""

import pathlib
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from mgjax import files
from mgjax.errors import ConfigError
from mgjax.weights.facts import Fact

CONFIG = 'config.json'
# Pixels are normalised by what one of these says.
_PREPROCESSORS = ('preprocessor_config.json', 'video_preprocessor_config.json')
_INDEX = '.index.json'
# What a folder's weights are called; the first that is there counts.
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')
_ENDINGS = ('.safetensors', '.pth', '.pyth', '.pt', '.bin', '.npz', '.pkl')

# By model_type: (entry, the only value), what the networks here have no option
# for.
_ONLY: Mapping[str, tuple[tuple[str, Any], ...]] = {
  'videomae': (('num_channels', 3), ('hidden_act', 'gelu')),
  'vjepa2': (('in_chans', 3), ('hidden_act', 'gelu')),
  'vivit': (('num_channels', 3),),
  'timesformer': (
    ('num_channels', 3),
    ('hidden_act', 'gelu'),
    ('qkv_bias', True),
    ('attention_type', 'divided_space_time'),
  ),
}


def folder_of(path: pathlib.Path) -> pathlib.Path | None:
  """Where the configuration of weights would be; None: nowhere."""
  if path.is_dir():
    return path
  named = path.name == 'pytorch_model.bin'
  return path.parent if named or path.suffix == '.safetensors' else None


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of weights: the path itself, or what its folder has.

  Raises:
    ConfigError: A folder has none, or it is not clear which.
  """
  return _weights_in(path) if path.is_dir() else [path]


def _weights_in(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of weights in a folder: one, or the parts of one."""
  for name in _WEIGHTS:
    if (folder / name).exists():
      return [folder / name]
    if (folder / (name + _INDEX)).exists():
      index = files.read_json(folder / (name + _INDEX))
      names = index.get('weight_map')
      if not isinstance(names, dict) or not all(
        isinstance(n, str) and n == pathlib.PurePath(n).name
        for n in names.values()
      ):
        raise ConfigError(f'{folder / (name + _INDEX)}: has no weight_map')
      return [folder / n for n in sorted(set(names.values()))]
  found = sorted(p for p in folder.iterdir() if p.suffix in _ENDINGS)
  if len(found) == 1:
    return found
  names_text = ', '.join(p.name for p in found) or 'none'
  raise ConfigError(
    f'{folder}: a folder of weights has {" or ".join(_WEIGHTS)}, or one file '
    f'of another name; here are {names_text}'
  )


def read_facts(folder: pathlib.Path) -> list[Fact]:
  """What the configuration in a folder says about our config's fields.

  Args:
    folder: Where the weights are.

  Returns:
    The network's name first; [] where there is no config.json of transformers.

  Raises:
    ConfigError: It cannot be read, or there is no such network here.
  """
  path = folder / CONFIG
  if not path.exists():
    return []
  config = files.read_json(path)
  if 'model_type' not in config:
    return []  # That of a run, say.
  try:
    facts = _facts(config)
    for name in _PREPROCESSORS:
      if (folder / name).exists():
        path = folder / name
        return facts + _pixels(files.read_json(path), name)
  except ConfigError as error:
    raise ConfigError(f'{path}: {error}') from error
  return facts


def read_labels(folder: pathlib.Path) -> list[str]:
  """Names of the classes, by their number; [] where they have none."""
  path = folder / CONFIG
  names = files.read_json(path).get('id2label') if path.exists() else None
  if not isinstance(names, dict):
    return []
  try:
    labels = [names[str(i)] for i in range(len(names))]
  except KeyError:
    return []
  named = all(isinstance(label, str) for label in labels)
  is_default = labels == default_labels(len(labels))
  return [] if is_default or not named else labels


def default_labels(count: int) -> list[str]:
  """What transformers calls classes that have no names."""
  return [f'LABEL_{i}' for i in range(count)]


class _Reader:
  """Takes entries of a configuration; one that is missing has its default."""

  def __init__(self, config: dict):
    self.config, self.facts = config, []

  def add(
    self,
    field: str,
    keys: str,
    read: Callable[..., Any],
    *defaults: Any,
  ) -> None:
    """Adds a fact about a field, read from entries: 'one two'."""
    names = keys.split()
    values = [
      self.config.get(name, default)
      for name, default in zip(names, defaults, strict=True)
    ]
    try:
      value = read(*values)
    except (TypeError, ValueError, IndexError, OverflowError) as error:
      found = ', '.join(
        f'{n}={reprlib.repr(v)}' for n, v in zip(names, values, strict=True)
      )
      raise ConfigError(f'has {found}, which is of no known form') from error
    self.facts.append(Fact(field, value, ' and '.join(names), CONFIG))


def _facts(config: dict) -> list[Fact]:
  """What a configuration says, with the defaults of transformers' classes.

  Raises:
    ConfigError: There is no such network here, or a value is of no known form.

  Source: transformers 5.24.0, configuration_videomae.py and its neighbours.
  """
  kind = config['model_type']
  if kind not in _FACTS:
    raise ConfigError(
      f'has model_type={reprlib.repr(kind)}; of the networks of transformers '
      f'there are {", ".join(_FACTS)} here'
    )
  for key, only in _ONLY[kind]:
    if config.get(key, only) != only:
      raise ConfigError(
        f'has {key}={reprlib.repr(config[key])}; the networks here have '
        f'{only!r} only'
      )
  reader = _Reader(config)
  name = 'timesformer' if kind == 'timesformer' else 'vit'
  reader.facts.append(Fact('model.name', name, 'model_type', CONFIG))
  _FACTS[kind](reader)
  labels, count = config.get('id2label'), config.get('num_labels')
  if isinstance(labels, dict) or count is not None:
    reader.add(
      'model.num_classes',
      'id2label' if count is None else 'num_labels',
      (lambda names: len(names)) if count is None else _integer,
      None,
    )
  return reader.facts


def _videomae(reader: _Reader) -> None:
  add = reader.add
  fixed = lambda value: lambda _: value
  add('model.positions', 'model_type', fixed('sincos'), None)
  _add_sizes(reader, num_frames=16)
  add('model.patch_px', 'patch_size', _side, 16)
  add('model.tubelet_frames', 'tubelet_size', _integer, 2)
  # Older versions call it otherwise.
  bias = 'qv_bias' if 'qv_bias' in reader.config else 'qkv_bias'
  add('model.qkv_bias', bias, lambda v: 'qv' if _truth(v) else '', True)
  add('model.layer_norm_eps', 'layer_norm_eps', _number, 1e-12)
  add('model.head_norm_eps', 'model_type', fixed(1e-5), None)
  add(
    'model.pool',
    'use_mean_pooling',
    lambda v: 'mean' if _truth(v) else 'first',
    True,
  )


def _vivit(reader: _Reader) -> None:
  add = reader.add
  fixed = lambda value: lambda _: value
  add('model.positions', 'model_type', fixed('learned'), None)
  _add_sizes(reader, num_frames=32)
  tubelet = [2, 16, 16]
  add('model.patch_px', 'tubelet_size', lambda v: _side(_items(v)[1:]), tubelet)
  add(
    'model.tubelet_frames',
    'tubelet_size',
    lambda v: _integer(_items(v)[0]),
    tubelet,
  )
  add('model.qkv_bias', 'qkv_bias', lambda v: 'qkv' if _truth(v) else '', True)
  add('model.gelu', 'hidden_act', _gelu, 'gelu_fast')
  add('model.layer_norm_eps', 'layer_norm_eps', _number, 1e-6)
  add('model.pool', 'model_type', fixed('class'), None)


def _timesformer(reader: _Reader) -> None:
  _add_sizes(reader, num_frames=8)
  reader.add('model.patch_px', 'patch_size', _side, 16)
  reader.add('model.layer_norm_eps', 'layer_norm_eps', _number, 1e-6)


def _add_sizes(reader: _Reader, *, num_frames: int) -> None:
  """Adds sizes of the network, and of the clips that its positions are for.

  Args:
    reader: Gets them.
    num_frames: Where the configuration does not say it.
  """
  add = reader.add
  add('model.depth', 'num_hidden_layers', _integer, 12)
  add('model.width', 'hidden_size', _integer, 768)
  add('model.heads', 'num_attention_heads', _integer, 12)
  add(
    'model.mlp_width',
    'hidden_size intermediate_size',
    lambda width, hidden: _mlp_width(_integer(width), _integer(hidden)),
    768,
    3072,
  )
  add(
    'model.position_grid',
    'num_frames image_size',
    lambda frames, size: (_integer(frames), *_sides(size)),
    num_frames,
    224,
  )
  add('data.num_frames', 'num_frames', _integer, num_frames)
  for section in ('data', 'eval'):
    add(f'{section}.crop_px', 'image_size', lambda v: _sides(v)[0], 224)
    add(f'{section}.crop_width_px', 'image_size', _other_side, 224)


def _vjepa2(reader: _Reader) -> None:
  add = reader.add
  fixed = lambda value: lambda _: value
  add('model.positions', 'model_type', fixed('rope'), None)
  add('model.depth', 'num_hidden_layers', _integer, 24)
  add('model.width', 'hidden_size', _integer, 1024)
  add('model.heads', 'num_attention_heads', _integer, 16)
  add(
    'model.mlp_width',
    'hidden_size mlp_ratio',
    lambda width, ratio: _mlp_width(
      _integer(width), int(_integer(width) * _number(ratio))
    ),
    1024,
    4.0,
  )
  add('model.patch_px', 'patch_size', _side, 16)
  add('model.tubelet_frames', 'tubelet_size', _integer, 2)
  add('model.qkv_bias', 'qkv_bias', lambda v: 'qkv' if _truth(v) else '', True)
  for name in ('layer_norm_eps', 'head_norm_eps'):
    add(f'model.{name}', 'layer_norm_eps', _number, 1e-6)
  add('model.pool', 'model_type', fixed('probe'), None)
  add('model.probe_blocks', 'num_pooler_layers', _integer, 3)
  add('model.probe_heads', 'model_type', fixed(0), None)
  add('data.num_frames', 'frames_per_clip', _integer, 64)
  add('data.crop_px', 'crop_size', _side, 256)
  add('eval.crop_px', 'crop_size', _side, 256)


_FACTS: Mapping[str, Callable[[_Reader], None]] = {
  'videomae': _videomae,
  'vjepa2': _vjepa2,
  'vivit': _vivit,
  'timesformer': _timesformer,
}


def _pixels(config: dict, name: str) -> list[Fact]:
  """How a preprocessor normalises pixels, as config.data.mean and std.

  transformers computes x * rescale_factor, less 1 where `offset` is set, then
  less the mean and over the deviation; ours are of x / 255.

  Args:
    config: The preprocessor's.
    name: Of its file.

  Returns:
    [] where nothing is said, or pixels are centred twice: that of ViViT has an
    offset beside a mean, and Google's weights are of pixels centred once.

  Source: transformers 5.24.0, image_processing_vivit.py and its neighbours.
  """
  try:
    normalises = _truth(config.get('do_normalize', True))
    rescales = _truth(config.get('do_rescale', True))
    # The class has other defaults than the others.
    is_vivit = config.get('image_processor_type') == 'VivitImageProcessor'
    centres = rescales and _truth(config.get('offset', is_vivit))
    usual = 1 / 127.5 if is_vivit else 1 / 255
    scale = _number(config.get('rescale_factor', usual)) if rescales else 1.0
    if not scale > 0:
      raise TypeError
  except TypeError as error:
    raise ConfigError(
      f'{name} beside it has a do_normalize, do_rescale, offset or '
      'rescale_factor of no known form'
    ) from error
  if normalises and (centres or not {'image_mean', 'image_std'} <= {*config}):
    return []
  factor = 255 * scale
  reader = _Reader(config)

  def taken(values: Any, default: float, less: float) -> tuple[float, ...]:
    numbers = map(_number, _items(values)) if normalises else (default,) * 3
    # Rounded, so that 1 / 255 written in decimals makes no other numbers.
    return tuple(round((value + less) / factor, 9) for value in numbers)

  reader.add(
    'data.mean', 'image_mean', lambda v: taken(v, 0.0, float(centres)), None
  )
  reader.add('data.std', 'image_std', lambda v: taken(v, 1.0, 0.0), None)
  return [fact._replace(origin=name) for fact in reader.facts]


def _mlp_width(width: int, hidden: int) -> int:
  """config.model.mlp_width: 0 stands for four times the width."""
  return 0 if hidden == 4 * width else hidden


def _integer(value: Any) -> int:
  if type(value) is not int or not 0 <= value < 2**31:
    raise TypeError
  return value


def _number(value: Any) -> float:
  if type(value) not in (int, float):
    raise TypeError
  return float(value)


def _gelu(value: Any) -> str:
  """config.model.gelu, of what transformers calls it."""
  if value == 'gelu':
    return 'exact'
  if value not in ('gelu_fast', 'gelu_new', 'gelu_pytorch_tanh'):
    raise ValueError
  return 'tanh'


def _truth(value: Any) -> bool:
  if not isinstance(value, bool):
    raise TypeError
  return value


def _items(value: Any) -> list:
  if not isinstance(value, list) or len(value) != 3:
    raise TypeError
  return value


def _sides(value: Any) -> tuple[int, int]:
  """Height and width: a pair of them, or one number."""
  if isinstance(value, list) and len(value) == 2:
    return _integer(value[0]), _integer(value[1])
  return (_integer(value),) * 2


def _side(value: Any) -> int:
  height, width = _sides(value)
  if height != width:
    raise ValueError
  return height


def _other_side(value: Any) -> int | None:
  """The width, where it is not the height."""
  height, width = _sides(value)
  return None if height == width else width
