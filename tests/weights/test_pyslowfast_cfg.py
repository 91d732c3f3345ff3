"""What the configurations in PySlowFast's files say about a network."""

import pathlib

import pytest
import yaml

from configs import kinetics400
from mgjax.cli import ConfigError
from mgjax.setup import weights
from mgjax.weights import contents, facts, pyslowfast_cfg

NONLOCAL = ((), (1, 3), (1, 3, 5), ())


def cfg_of(arch='slowfast', **changes):
  """A part of cfg.dump(), as 287ec00 writes it for a Kinetics config."""
  pathways = 2 if arch == 'slowfast' else 1
  each = lambda *stages: [[stage] * pathways for stage in stages]
  cfg = {
    'BN': {'NORM_TYPE': 'batchnorm', 'NUM_SPLITS': 1},
    'DATA': {
      'MEAN': [0.45, 0.45, 0.45],
      'STD': [0.225, 0.225, 0.225],
      'NUM_FRAMES': 32,
      'SAMPLING_RATE': 2,
      'TRAIN_CROP_SIZE': 224,
      'TEST_CROP_SIZE': 256,
      'REVERSE_INPUT_CHANNEL': False,
      'INPUT_CHANNEL_NUM': [3, 3][:pathways],
    },
    'DETECTION': {'ENABLE': False},
    'MODEL': {'ARCH': arch, 'NUM_CLASSES': 400, 'LOSS_FUNC': 'cross_entropy'},
    'NONLOCAL': {
      'LOCATION': [[[] for _ in range(pathways)] for _ in range(4)],
      'GROUP': each(1, 1, 1, 1),
      'INSTANTIATION': 'dot_product',
      'POOL': [[[1, 2, 2], [1, 2, 2]] for _ in range(4)],
    },
    'RESNET': {
      'DEPTH': 50,
      'NUM_GROUPS': 1,
      'NUM_BLOCK_TEMP_KERNEL': each(3, 4, 6, 3),
      'SPATIAL_STRIDES': each(1, 2, 2, 2),
      'SPATIAL_DILATIONS': each(1, 1, 1, 1),
      'STRIDE_1X1': False,
      'TRANS_FUNC': 'bottleneck_transform',
      'WIDTH_PER_GROUP': 64,
    },
    'SLOWFAST': {
      'ALPHA': 4,
      'BETA_INV': 8,
      'FUSION_CONV_CHANNEL_RATIO': 2,
      'FUSION_KERNEL_SZ': 7,
    },
  }
  for key, value in changes.items():
    section, _, name = key.partition('_')
    cfg[section][name] = value
  return cfg


def dump(*args, **changes):
  return yaml.safe_dump(cfg_of(*args, **changes))


def applied(text):
  config = kinetics400.get_config('model=slow')
  facts.apply(config, pyslowfast_cfg.facts(pyslowfast_cfg.read(text)))
  return config


def test_a_configuration_becomes_ours():
  config = applied(dump())
  wanted = kinetics400.get_config('model=slowfast')
  wanted.model.num_temporal = (3, 4, 6, 3)
  wanted.model.nonlocal_blocks = wanted.model.nonlocal_blocks_fast = ((),) * 4
  assert config.model.to_dict() == wanted.model.to_dict()
  assert config.data.to_dict() == wanted.data.to_dict()


def test_all_that_tensors_do_not_show_is_taken():
  config = applied(
    dump(
      SLOWFAST_ALPHA=8,
      SLOWFAST_FUSION_KERNEL_SZ=5,
      RESNET_DEPTH=101,
      DATA_MEAN=[0.5, 0.4, 0.3],
      NONLOCAL_LOCATION=[[[], []], [[1, 3], []], [[1, 3, 5], []], [[], []]],
      NONLOCAL_INSTANTIATION='softmax',
    )
  )
  model = config.model
  assert (model.alpha, model.fusion_kernel, model.depth) == (8, 5, 101)
  assert model.nonlocal_blocks == ((), (1, 3), (1, 3, 5), ())
  assert model.nonlocal_blocks_fast == ((), (), (), ())
  assert model.nonlocal_mode == 'softmax'
  assert model.nonlocal_pool == ((1, 2, 2),) * 4
  assert config.data.mean == (0.5, 0.4, 0.3)


def test_windows_may_be_per_stage_as_they_once_were():
  text = dump(
    'i3d',
    NONLOCAL_LOCATION=[[[]], [[1]], [[]], [[]]],
    NONLOCAL_POOL=[[1, 2, 2]] * 4,
  )
  assert applied(text).model.nonlocal_pool == ((1, 2, 2),) * 4


@pytest.mark.parametrize(
  'changes,words',
  [
    ({'MODEL_ARCH': 'mvit'}, "MODEL.ARCH='mvit'; of the networks of Py"),
    ({'RESNET_STRIDE_1X1': True}, 'RESNET.STRIDE_1X1=True; .* False only'),
    ({'RESNET_SPATIAL_STRIDES': [[1], [2], [2], [1]]}, 'SPATIAL_STRIDES'),
    ({'DATA_REVERSE_INPUT_CHANNEL': True}, 'REVERSE_INPUT_CHANNEL=True'),
    ({'DETECTION_ENABLE': True}, 'DETECTION.ENABLE'),
    ({'RESNET_DEPTH': 'fifty'}, "RESNET.DEPTH='fifty', which is of no known"),
    ({'RESNET_NUM_BLOCK_TEMP_KERNEL': [[3]]}, 'NUM_BLOCK_TEMP_KERNEL'),
  ],
)
def test_what_the_networks_here_cannot_be_is_refused(changes, words):
  with pytest.raises(ConfigError, match=f'its cfg has .*{words}'):
    applied(dump(**changes))


@pytest.mark.parametrize(
  'text,words',
  [
    ('a: [1', 'not readable YAML'),
    ('a: !!python/object/apply:os.system [true]', 'not readable YAML'),
    ('model: resnet', 'not one of PySlowFast'),
    (3, 'not one of PySlowFast'),
    # Each doubles the one before.
    (
      'a: &a {x: 1}\n'
      + '\n'.join(
        f'{name}: &{name} {{<<: [*{before}, *{before}]}}'
        for before, name in zip('abcdefghijk', 'bcdefghijkl', strict=True)
      ),
      'merge keys',
    ),
  ],
)
def test_other_texts_are_refused(text, words):
  with pytest.raises(ConfigError, match=words):
    pyslowfast_cfg.read(text)


def test_long_lists_that_are_repeated_are_not_walked_through():
  a_long = '&a [' + '3, ' * 5000 + ']'
  text = dump().replace('NUM_BLOCK_TEMP_KERNEL:', 'OTHER:') + '\n'
  cfg = pyslowfast_cfg.read(text + f'X: {a_long}\nY: [{"*a, " * 5000}]\n')
  cfg['RESNET']['NUM_BLOCK_TEMP_KERNEL'] = cfg['Y']
  with pytest.raises(ConfigError, match='TEMP_KERNEL=.{,400}no known form'):
    pyslowfast_cfg.facts(cfg)


@pytest.mark.parametrize(
  'model,options',
  [
    ('slowfast', {'alpha': 8, 'depth': 101, 'nonlocal_blocks': NONLOCAL}),
    (
      'slowfast',
      {'nonlocal_blocks_fast': NONLOCAL, 'nonlocal_pool_fast': (1, 1, 1)},
    ),
    ('i3d_nln', {'nonlocal_groups': (1, 2, 2, 1), 'width': 32}),
    ('slow', {'num_temporal': (1, 2, 3, 3), 'num_classes': 7}),
    ('c2d', {}),
  ],
)
def test_what_is_written_is_read_as_the_same_network(model, options):
  config = kinetics400.get_config(f'model={model}')
  config.model.update(options)
  text = pyslowfast_cfg.of_network(
    config.model.to_dict(), {'NUM_FRAMES': 8, 'MEAN': [0.5, 0.4, 0.3]}
  )
  known = pyslowfast_cfg.facts(pyslowfast_cfg.read(text))
  found = {fact.field: fact.value for fact in known}
  assert found['data.num_frames'] == 8
  assert found['data.mean'] == (0.5, 0.4, 0.3)
  config.data.mean = (0.5, 0.4, 0.3)
  file = contents.File({}, {}, {}, {}, known)
  weights.check_facts(pathlib.Path('x'), config, file, ())
  config.model.width += 1
  with pytest.raises(ConfigError, match='model.width'):
    weights.check_facts(pathlib.Path('x'), config, file, ())


def test_a_network_that_pyslowfast_has_not_has_no_configuration():
  config = kinetics400.get_config('model=slow')
  config.model.blocks = (1, 1, 1, 1)
  assert not pyslowfast_cfg.of_network(config.model.to_dict(), {})
