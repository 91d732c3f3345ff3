"""Networks by the configurations that checkpoints of PySlowFast carry.

Its files have the whole configuration of their training, as text ('cfg'). What
names and shapes of tensors do not show is in there: the fast pathway's alpha,
the mode of non-local blocks, the pixels' mean.
"""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from mgjax.config import network_options
from mgjax.errors import ConfigError
from mgjax.weights.facts import Fact

NETWORKS = ('slowfast', 'slow', 'i3d', 'c2d')
_MAX_CHARACTERS = 2**20  # Of a configuration; real ones have 2^14.
_MAX_ITEMS = 64  # Of a list; aliases may repeat a long one.
_STAGES = 4
# What the networks here have no option for: (entry, the only value).
_ONLY = (
  ('RESNET.TRANS_FUNC', 'bottleneck_transform'),
  ('RESNET.STRIDE_1X1', False),
  ('RESNET.NUM_GROUPS', 1),
  ('RESNET.SPATIAL_STRIDES', (1, 2, 2, 2)),
  ('RESNET.SPATIAL_DILATIONS', (1, 1, 1, 1)),
  ('DATA.REVERSE_INPUT_CHANNEL', False),
  ('DETECTION.ENABLE', False),
)


class _Loader(yaml.SafeLoader):
  """Plain YAML without merge keys, which may unfold to any length."""

  def flatten_mapping(self, node):
    if any(key.tag == 'tag:yaml.org,2002:merge' for key, _ in node.value):
      raise yaml.YAMLError('it has merge keys')
    super().flatten_mapping(node)


def read(cfg: Any) -> dict:
  """Reads a configuration.

  Args:
    cfg: Its YAML text; or a dict, of files that have it as an object.

  Raises:
    ConfigError: It is something else, or damaged.
  """
  if isinstance(cfg, str) and len(cfg) <= _MAX_CHARACTERS:
    try:
      cfg = yaml.load(cfg, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
      text = ' '.join(str(error).split())
      raise ConfigError(f'its cfg is not readable YAML ({text})') from error
  if not isinstance(cfg, dict) or not isinstance(cfg.get('MODEL'), dict):
    raise ConfigError('its cfg is not one of PySlowFast')
  return cfg


# Above 60 lines: it is a table of fields, each with the entry that it is from.
def facts(cfg: dict) -> list[Fact]:
  """What a configuration says about our config's fields, the model's first.

  Raises:
    ConfigError: There is no such network here, or a value is of no known form.

  Source: PySlowFast 287ec00, slowfast/config/defaults.py.
  """
  arch = _find(cfg, 'MODEL.ARCH')
  if arch not in NETWORKS:
    raise ConfigError(
      f'its cfg has MODEL.ARCH={reprlib.repr(arch)}; of the networks of '
      f'PySlowFast there are {", ".join(NETWORKS)} here'
    )
  for key, only in _ONLY:
    value = _find(cfg, key)
    if value is not None and not _is(value, only):
      raise ConfigError(
        f'its cfg has {key}={reprlib.repr(value)}; the networks here have '
        f'{only} only'
      )
  found = [Fact('model.name', arch, 'MODEL.ARCH')]

  def add(field, key, read=_integer):
    value = _find(cfg, key)
    if value is None:
      return
    try:
      found.append(Fact(field, read(value), key))
    except (TypeError, ValueError, IndexError) as error:
      raise ConfigError(
        f'its cfg has {key}={reprlib.repr(value)}, which is of no known form'
      ) from error

  add('model.num_classes', 'MODEL.NUM_CLASSES')
  add('model.depth', 'RESNET.DEPTH')
  add('model.width', 'RESNET.WIDTH_PER_GROUP')
  if arch == 'slowfast':
    add('model.alpha', 'SLOWFAST.ALPHA')
    add('model.beta_inv', 'SLOWFAST.BETA_INV')
    add('model.fusion_ratio', 'SLOWFAST.FUSION_CONV_CHANNEL_RATIO')
    add('model.fusion_kernel', 'SLOWFAST.FUSION_KERNEL_SZ')
  add(
    'model.num_temporal',
    'RESNET.NUM_BLOCK_TEMP_KERNEL',
    _of_stages(lambda stage: _integer(_items(stage)[0])),
  )
  for pathway, suffix in enumerate(('', '_fast')):
    if pathway and arch != 'slowfast':
      continue
    of = lambda read, i=pathway: _of_stages(
      lambda stage: read(_items(stage)[i])
    )
    before = len(found)
    add(f'model.nonlocal_blocks{suffix}', 'NONLOCAL.LOCATION', of(_integers))
    if len(found) > before and any(found[-1].value):
      add('model.nonlocal_mode', 'NONLOCAL.INSTANTIATION', _text)
      add(f'model.nonlocal_groups{suffix}', 'NONLOCAL.GROUP', of(_integer))
      add(
        f'model.nonlocal_pool{suffix}',
        'NONLOCAL.POOL',
        # Older ones have a window per stage, not per pathway.
        _of_stages(
          lambda stage, i=pathway: _integers(
            stage[i] if isinstance(_items(stage)[0], list) else stage
          )
        ),
      )
  numbers = lambda value: tuple(float(number) for number in _items(value))
  add('data.mean', 'DATA.MEAN', numbers)
  add('data.std', 'DATA.STD', numbers)
  add('data.num_frames', 'DATA.NUM_FRAMES')
  add('data.stride_frames', 'DATA.SAMPLING_RATE')
  add('data.crop_px', 'DATA.TRAIN_CROP_SIZE')
  add('eval.crop_px', 'DATA.TEST_CROP_SIZE')
  return found


def _find(cfg: dict, key: str) -> Any:
  """An entry, or None."""
  section, _, name = key.partition('.')
  entries = cfg.get(section)
  return entries.get(name) if isinstance(entries, dict) else None


def _is(value: Any, only: Any) -> bool:
  """Whether an entry has a value; those of stages are lists of pathways."""
  if not isinstance(only, tuple):
    return value == only
  try:
    return _of_stages(lambda stage: set(_integers(stage)))(value) == tuple(
      {number} for number in only
    )
  except (TypeError, ValueError):
    return False


def _items(value: Any) -> list:
  if not isinstance(value, (list, tuple)) or len(value) > _MAX_ITEMS:
    raise TypeError
  return list(value)


def _of_stages(read: Callable[[Any], Any]) -> Callable[[Any], tuple]:
  def read_all(value):
    if len(_items(value)) != _STAGES:
      raise ValueError
    return tuple(read(stage) for stage in value)

  return read_all


def _integer(value: Any) -> int:
  if type(value) is not int or abs(value) >= 2**31:
    raise TypeError
  return value


def _integers(value: Any) -> tuple[int, ...]:
  return tuple(_integer(number) for number in _items(value))


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise TypeError
  return value


def of_network(options: Mapping[str, Any], data: Mapping[str, Any]) -> str:
  """The configuration of a network, as YAML; the inverse of `facts`.

  Args:
    options: Fields of config.model; `name` is one of NETWORKS.
    data: Entries of DATA: numbers, texts and lists of such.

  Returns:
    The text; '' where PySlowFast has no such network: it knows the blocks of a
    depth only.
  """
  blocks = network_options.PATHWAY_BLOCKS[options['depth']]
  if tuple(options['blocks'] or blocks) != blocks:
    return ''
  suffixes = ('', '_fast') if options['name'] == 'slowfast' else ('',)
  stages = lambda of: [
    [of(stage, suffix) for suffix in suffixes] for stage in range(_STAGES)
  ]
  temporal = options['num_temporal'] or blocks

  def of_stage(option: str, default: Any) -> Callable[[int, str], Any]:
    return lambda stage, suffix: (
      options[option + suffix] or [default] * _STAGES
    )[stage]

  places = of_stage('nonlocal_blocks', ())

  def pool(stage: int, suffix: str) -> list[int]:
    window = options[f'nonlocal_pool{suffix}'] or options['nonlocal_pool']
    return list(window if isinstance(window[0], int) else window[stage])

  cfg = {
    'MODEL': {
      'ARCH': options['name'],
      'MODEL_NAME': 'SlowFast' if len(suffixes) > 1 else 'ResNet',
      'NUM_CLASSES': options['num_classes'],
    },
    'RESNET': {
      'DEPTH': options['depth'],
      'WIDTH_PER_GROUP': options['width'],
      'NUM_BLOCK_TEMP_KERNEL': stages(lambda s, _: temporal[s]),
    }
    | {
      name.partition('.')[2]: stages(lambda s, _, v=only: v[s])
      if isinstance(only, tuple)
      else only
      for name, only in _ONLY
      if name.startswith('RESNET.')
    },
    'NONLOCAL': {
      'LOCATION': stages(lambda *stage: list(places(*stage))),
      'GROUP': stages(of_stage('nonlocal_groups', 1)),
      'POOL': stages(pool),
      'INSTANTIATION': options['nonlocal_mode'],
    },
    'DATA': {'INPUT_CHANNEL_NUM': [3] * len(suffixes), **data},
  }
  if len(suffixes) > 1:
    cfg['SLOWFAST'] = {
      'ALPHA': options['alpha'],
      'BETA_INV': options['beta_inv'],
      'FUSION_CONV_CHANNEL_RATIO': options['fusion_ratio'],
      'FUSION_KERNEL_SZ': options['fusion_kernel'],
    }
  return yaml.safe_dump(cfg, default_flow_style=None)
