"""Networks and videos of the user's own, in a package outside the checkout."""

import importlib
import json
import os
import pathlib
import pickle
import subprocess
import sys

import av
import jax
import numpy as np
import pytest

from mgjax import cli, files
from mgjax.config import fields, rules, saved
from mgjax.data import own_source
from mgjax.data.decode import Video
from mgjax.errors import ConfigError, RunError
from mgjax.evaluation import command as evaluation_command
from mgjax.grids import Grid
from mgjax.hosts import parallel
from mgjax.predicting import command as predicting_command
from mgjax.setup import data as data_setup
from mgjax.setup import grids, network, planning, programs
from mgjax.weights import checks

ROOT = pathlib.Path(__file__).parents[1]
NETS = """
import flax.linen as nn
import mgjax


class Net(nn.Module):
  num_classes: int
  width: int = 4
  kernel: tuple[int, ...] = (3, 3, 3)
  norm_momentum: float = 0.9

  @nn.compact
  def __call__(self, video, same_group=None, *, deterministic, clip_index=None):
    x = nn.Conv(self.width, self.kernel, (1, 2, 2))(video)
    x = nn.relu(mgjax.BatchNorm(momentum=self.norm_momentum)(x, same_group))
    x = nn.Dropout(0.1)(x.mean((1, 2, 3)), deterministic=deterministic)
    return nn.Dense(self.num_classes, name='head')(x)


class Plain(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, video):
    return nn.Dense(self.num_classes)(video.mean((1, 2, 3)))


class Flat(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, video):
    return nn.Dense(self.num_classes)(video.reshape(video.shape[0], -1))


class PerFrame(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, video):
    return nn.Dense(self.num_classes)(video.mean((2, 3)))


class FlaxNorm(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, video, deterministic):
    x = nn.BatchNorm(deterministic)(video.mean((1, 2, 3)))
    return nn.Dense(self.num_classes)(x)


class Anything(Plain):
  @nn.compact
  def __call__(self, video, **kwargs):
    assert set(kwargs) == {'same_group', 'deterministic', 'clip_index'}
    return nn.Dense(self.num_classes)(video.mean((1, 2, 3)))


class Drops(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, video, deterministic):
    x = nn.Dense(64)(video.mean((1, 2, 3)))
    x = nn.Dropout(0.5)(x, deterministic=deterministic)
    return nn.Dense(self.num_classes)(x)


class DropsByClip(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, video, deterministic, clip_index=None):
    x = nn.Dense(64)(video.mean((1, 2, 3)))
    x = mgjax.Dropout(0.5)(x, clip_index, deterministic=deterministic)
    return nn.Dense(self.num_classes)(x)


class Remat(nn.Module):
  num_classes: int
  remat: bool = False

  @nn.compact
  def __call__(self, video, same_group=None):
    layer = nn.remat(mgjax.BatchNorm) if self.remat else mgjax.BatchNorm
    x = layer(name='norm')(video, same_group)
    return nn.Dense(self.num_classes)(x.mean((1, 2, 3)))


class Classless(nn.Module):
  width: int = 3


class Raises(Plain):
  def __post_init__(self):
    super().__post_init__()
    {}['missing']


class NeedsWidth(Plain):
  num_classes: int
  width: int


def not_a_module(num_classes):
  return lambda video: video
"""
DATA = """
import numpy as np


class Squares:
  label_names = ('right', 'down')

  def __init__(self, num_videos):
    self.num_videos = num_videos

  def __len__(self):
    return self.num_videos

  def __getitem__(self, i):
    video = np.zeros((16, 40, 40, 3), np.uint8)
    for t in range(16):
      y, x = (4, 4 + t) if i % 2 == 0 else (4 + t, 4)
      video[t, y : y + 8, x : x + 8] = 255
    return {'video': video, 'fps': 10.0, 'label': i % 2, 'id': f'square{i}'}


def source(split, num_videos: int = 24):
  return Squares({'train': num_videos, 'validation': 10}[split])


class One:
  label_names = ('a', 'b')

  def __init__(self, example):
    self.example = example

  def __len__(self):
    return 1

  def __getitem__(self, i):
    return self.example


def one(split, path: str, label: int = 1):
  return One({'video': path, 'label': label})


def wrong(split, what: str = 'list'):
  good = {'video': np.zeros((2, 8, 8, 3), np.uint8), 'label': 0}
  return {
    'list': [],
    'example': One('video'),
    'keys': One({'video': good['video']}),
    'frames': One({**good, 'video': np.zeros((2, 8, 8), np.uint8)}),
    'label': One({**good, 'label': 2}),
    'raises': One(None),
  }[what]
"""
CONFIG = """
from mgjax.config import fields


def get_config():
  config = fields.base()
  config.model.name = 'my_package.nets:Net'
  config.model.options.width = 6
  config.data.name = 'my_package.data:source'
  config.data.num_frames = 8
  config.data.target_fps = 0.0
  config.data.crop_px = 32
  config.data.jitter_px = (32, 40)
  config.data.batch_size = 4
  config.data.flip = False
  config.grid.mode = 'both'
  config.norm.group_clips = 4
  config.norm.precise_batches = 1
  config.optim.total_epochs = 3
  config.optim.lr_steps = (1, 2)
  config.optim.warmup_epochs = 0.0
  config.eval.num_views = config.eval.num_crops = 1
  config.eval.crop_px = config.eval.short_side_px = 32
  config.eval.batch_size = 10
  return config
"""


@pytest.fixture(scope='module')
def outside(tmp_path_factory):
  """A folder with the package and a config file."""
  folder = tmp_path_factory.mktemp('outside')
  package = folder / 'my_package'
  package.mkdir()
  for path, text in (
    (package / '__init__.py', ''),
    (package / 'nets.py', NETS),
    (package / 'data.py', DATA),
    (package / 'broken.py', 'import numpy\n\n1 / 0\n'),
    (folder / 'own.py', CONFIG),
  ):
    path.write_text(text)
  return folder


@pytest.fixture
def package(outside, monkeypatch):
  monkeypatch.syspath_prepend(str(outside))
  yield
  for name in [n for n in sys.modules if n.partition('.')[0] == 'my_package']:
    del sys.modules[name]


def command(outside, module, *arguments):
  result = subprocess.run(
    [sys.executable, '-m', f'mgjax.{module}', *arguments],
    cwd=outside,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def losses(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [line['loss'] for line in lines if 'loss' in line]


@pytest.mark.slow
def test_a_run_trains_in_processes_too_and_is_evaluated_by_its_folder(
  outside,
):
  train = (
    '--config=own.py',
    '--workdir=run',
    '--config.data.worker_processes=1',
    '--config.data.options.num_videos=16',
  )
  command(outside, 'train', *train)
  settings = files.read_json(outside / 'run' / 'config.json')
  assert settings['model'] == {
    'name': 'my_package.nets:Net',
    'num_classes': 2,
    'options': {'width': 6, 'kernel': [3, 3, 3]},
  }
  assert settings['data']['options'] == {'num_videos': 16}
  # Threads give what a process of its own gives.
  command(outside, 'train', *train[:1], '--workdir=again', train[3])
  assert losses(outside / 'again') == losses(outside / 'run') != []
  printed = command(outside, 'evaluate', '--workdir=run')
  assert '10 of 10 videos' in printed
  assert files.read_json(outside / 'run' / 'eval.json')['overrides'] == {}


def with_network(name, *overrides):
  config = fields.base()
  config.model.name = f'my_package.nets:{name}'
  config.model.num_classes = 3
  for override in overrides:
    config.update_from_flattened_dict(override)
  return rules.validate(config)


GRIDS = [Grid(4, 16, 16, 8), Grid(8, 24, 24, 4)]


@pytest.mark.parametrize(
  'name,fields_of,words',
  [
    ('Plain', {}, 'has no batch norm.*norm.precise_batches=0'),
    ('Flat', {'norm.precise_batches': 0}, 'one tree must serve every grid'),
    (
      'PerFrame',
      {'norm.precise_batches': 0},
      r'a training step on 2 clips of .4, 16, 16. .* gives .2, 4, 3.; it must '
      r'give logits of shape .2, 3.',
    ),
    ('FlaxNorm', {}, 'takes no `same_group`.*norm.group_clips=0'),
    (
      'FlaxNorm',
      {'norm.group_clips': 0},
      'a statistics step .*mgjax.BatchNorm',
    ),
    ('not_a_module', {}, 'makes a function; it must be a flax.linen.Module'),
    ('Net', {'norm.frozen': 'all'}, 'norm.frozen knows .* only'),
    (
      'Net',
      {'train.remat': 'block'},
      'no argument `remat`, so that',
    ),
    ('Plain', {'norm.momentum': 0.5}, 'so that norm.momentum does nothing'),
    (
      'FlaxNorm',
      {
        'norm.precise_batches': 0,
        'norm.group_clips': 0,
        'optim.ema_decay': 0.9,
      },
      'set norm.precise_batches, such as 200',
    ),
    ('Classless', {}, 'no argument `num_classes`'),
    ('Raises', {}, 'refuses its options: KeyError at .*nets.py:'),
  ],
)
def test_a_network_that_cannot_be_trained_is_refused(
  package, name, fields_of, words
):
  config = with_network(name, fields_of)
  with pytest.raises(ConfigError, match=words):
    planning.check_own_network(config, GRIDS, trains=True)


@pytest.mark.parametrize(
  'name,fields_of',
  [
    ('Net', {}),
    ('Plain', {'norm.precise_batches': 0}),
    ('Plain', {'norm.precise_batches': 0, 'train.micro_batches': 2}),
    ('Plain', {'norm.precise_batches': 0, 'optim.ema_decay': 0.9}),
    ('FlaxNorm', {'norm.precise_batches': 0, 'norm.group_clips': 0}),
    ('Anything', {'norm.precise_batches': 0}),
  ],
)
def test_a_network_need_not_take_all_arguments(package, name, fields_of):
  config = with_network(name, fields_of)
  planning.check_own_network(config, GRIDS, trains=True)


def test_of_a_network_that_is_evaluated_only_no_training_is_asked(package):
  planning.check_own_network(with_network('Plain'), GRIDS, trains=False)


@pytest.mark.parametrize('name,same', [('Drops', False), ('DropsByClip', True)])
def test_micro_batches_have_masks_of_their_own(package, name, same):
  config = with_network(name)
  model = network.model(config)
  assert model.draws_by_clip == same
  video = np.ones((4, 2, 8, 8, 3), np.float32)
  batch = {
    'video': np.full(video.shape, 255, np.uint8),
    'label': np.zeros(4, np.int32),
    'flip': np.zeros(4, bool),
  }
  losses = []
  for parts in (1, 2):
    config.train.micro_batches = parts
    parts = network.compose(config, parallel.make_mesh(1))
    step = programs.make_train_step(config, parts)
    state = parts.make_state()
    key = jax.random.key(0)
    _, metrics = jax.jit(step)(state, batch, np.float32(0), np.int32(2), key)
    losses.append(float(metrics['loss']))
  # With masks of its own each part has another loss than with those of the
  # whole; with the same masks, all is as in the whole.
  assert (abs(losses[0] - losses[1]) < 1e-6) == same


def test_features_inside_of_what_is_computed_again_are_looked_at(package):
  model = network.model(with_network('Remat', {'train.remat': 'block'}))
  assert model.net.remat
  video = jax.numpy.zeros((1, 2, 8, 8, 3))
  variables = model.init(jax.random.key(0), video)
  checks.check_features(model, variables, 2, 'weights')
  variables['params']['norm']['scale'] = np.full(3, np.inf, np.float32)
  with pytest.raises(ConfigError, match='those of norm are NaN or infinite'):
    checks.check_features(model, variables, 2, 'weights')


def test_its_parameters_have_no_other_level_than_its_own(package):
  model = network.model(with_network('Net'))
  variables = jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, 2, 8, 8, 3), np.float32)
  )
  assert set(variables['params']) == {'Conv_0', 'BatchNorm_0', 'head'}
  assert model.norm_momentum == 0.9


@pytest.mark.parametrize(
  'overrides,words',
  [
    (['model.name=my_package.nets:Nope'], "no class or function 'Nope'"),
    (
      ['model.name=no_package.x:Net'],
      "no module 'no_package.x' in.*PYTHONPATH",
    ),
    (
      ['model.name=my_package.broken:Net'],
      'fails: ZeroDivisionError at .*broken.py:3: division',
    ),
    (
      ['model.name=my_package.nets:Net', 'model.options.widht=3'],
      "widht: there is no such field. Did you mean 'width'. The options of "
      'my_package.nets:Net are kernel, width',
    ),
    (
      ['model.name=my_package.nets:Net', 'model.width=3'],
      'model.width: .* It is model.options.width',
    ),
    (
      ['model.name=my_package.nets:NeedsWidth'],
      'model.options.width is None; it must be set',
    ),
    (['data.name=my_package.data:nope'], "data.name is .*no class.*'nope'"),
    (
      ['data.name=my_package.data:source', 'data.options.videos=3'],
      "data.options.videos: .* mean 'num_videos'",
    ),
  ],
)
def test_names_and_options_that_are_not_there_are_told(
  package, overrides, words
):
  with pytest.raises(ConfigError, match=words):
    cli.read_config(
      'moving_digits:size=tiny', [f'--config.{text}' for text in overrides]
    )


def test_the_options_of_the_network_before_are_left_out_and_told(
  package, capsys
):
  config = cli.read_config(
    'moving_digits:size=tiny', ['--config.model.name=my_package.nets:Net']
  )
  assert 'blocks=(1, 1)' in capsys.readouterr().err
  assert config.model.num_classes == 16  # It is everyone's.
  assert set(config.model) == {'name', 'num_classes', 'options'}


def test_a_saved_config_of_them_is_read_as_it_was(package, tmp_path):
  config = with_network('Net', {'model.options.kernel': (1, 3, 3)})
  config.data.name = 'my_package.data:source'
  config.data.options.num_videos = 8
  text = config.to_json_best_effort()
  (tmp_path / 'config.json').write_text(text)
  assert saved.read_saved(tmp_path).to_dict() == config.to_dict()


# Videos.


def own_config(name, **options):
  config = fields.base()
  config.data.name = f'my_package.data:{name}'
  config.data.options.update(options)
  return config


def test_the_classes_are_those_of_the_source(package):
  config = data_setup.with_classes(own_config('source'))
  assert config.model.num_classes == 2
  described = data_setup.describe(config)
  assert described.splits == {'train': 24, 'validation': 10}


@pytest.mark.parametrize(
  'what,words',
  [
    ('list', 'what the function returns has no label_names'),
    ('example', 'example 0 is a str; it must be a dict'),
    ('keys', r"example 0 has \['video'\]; it must have 'video' and 'label'"),
    ('frames', r'uint8 \(2, 8, 8\); frames must be uint8 \[T, H, W, 3\]'),
    ('label', r'the label 2; labels are integers in \[0, 2\)'),
    ('nothing', "cannot be opened: KeyError: 'nothing'"),
  ],
)
def test_a_source_of_another_form_is_refused(package, what, words):
  with pytest.raises(ConfigError, match=words):
    data_setup.describe(own_config('wrong', what=what))


class Listed:
  """A source of examples in a list, which are copied as they are read."""

  def __init__(self, examples, label_names):
    self.examples, self.label_names = examples, label_names
    self.read = []

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i):
    self.read.append(i)
    return {
      'video': np.zeros((2, 8, 8, 3), np.uint8),
      **{k: v() if callable(v) else v for k, v in self.examples[i].items()},
    }


@pytest.fixture
def listed(package, monkeypatch):
  """Makes the config of a source of examples by split."""

  def listed(label_names=('a', 'b'), **splits):
    def made(split):
      made.opened.append(split)
      return Listed(splits[split], label_names)

    made.opened = []
    module = importlib.import_module('my_package.data')
    monkeypatch.setattr(module, 'made', made, raising=False)
    return own_config('made'), made.opened

  return listed


@pytest.mark.parametrize(
  'example,words',
  [
    ({}, r"has \['video'\]; it must have 'video' and 'label'"),
    ({'label': 0, 'actions': ()}, "'label' .or 'actions' in its place"),
    ({'label': None}, r'the label None; labels are integers in \[0, 2\)'),
    ({'actions': None}, 'the actions None; they are a list of .class, start'),
    ({'actions': 3}, 'the actions 3; they are a list of .class, start, end'),
    ({'actions': np.array(3)}, r'the actions array\(3\); they are a list'),
    ({'actions': [1]}, r'the action 1; it must be \(class, start, end\)'),
    ({'actions': [(1, 0.0)]}, r'the action \(1, 0.0\); it must be'),
    ({'actions': [(2, 0.0, 1.0)]}, r'the label 2; labels are integers'),
    ({'actions': [(1, 2.0, 1.0)]}, 'the end is not before the start'),
    ({'actions': [(1, 0.0, float('inf'))]}, 'start and end are seconds'),
    ({'actions': [(1, None, 1.0)]}, 'start and end are seconds'),
    *(
      ({'label': 0, 'fps': fps}, 'has the fps .*; a frame rate is a number')
      for fps in (None, '25', float('nan'), float('inf'), 10**400, 0, -1.0)
    ),
  ],
)
def test_a_wrong_example_is_refused_wherever_it_is(listed, example, words):
  good = {'label': 0} if 'label' in example else {'actions': ()}
  for index in range(2):
    examples = [good] * index + [example]
    with pytest.raises(
      ConfigError, match=f"'train': example {index} .*{words}"
    ):
      data_setup.source(listed(train=examples)[0], 'train')[index]


def test_all_examples_have_the_same_kind_of_labels(listed):
  kinds = [{'label': 0}, {'actions': ()}]
  for examples in (kinds, kinds[::-1]):
    config, _ = listed(train=examples, validation=examples)
    source = data_setup.source(config, 'train')
    with pytest.raises(
      ConfigError, match='example 1 has .*, but example 0 has'
    ):
      source[1]
  config, _ = listed(train=kinds[:1], validation=kinds[1:])
  with pytest.raises(ConfigError, match='other kinds of labels'):
    data_setup.describe(config)


@pytest.mark.parametrize(
  'actions',
  [
    lambda: (action for action in [(1, 0.5, 2), (np.int64(0), 1, 1)]),
    [[1, 0.5, np.float32(2)], (0, 1.0, 1.0)],
  ],
)
def test_actions_are_read_once_from_what_gives_them(listed, actions):
  config, _ = listed(train=[{'actions': actions}])
  source = data_setup.source(config, 'train')
  assert source.has_actions and source[0].label is None
  assert source[0].actions == ((1, 0.5, 2.0), (0, 1.0, 1.0))


def test_an_array_can_give_the_actions(listed):
  config, _ = listed(train=[{'actions': np.array([[1, 0, 2]])}])
  assert data_setup.source(config, 'train')[0].actions == ((1, 0.0, 2.0),)


def test_a_generator_that_fails_names_the_line(listed):
  def actions():
    yield from [(1, 0.0, 1.0), {}['lost']]

  config, _ = listed(train=[{'actions': actions}])
  words = 'example 0 cannot be read .KeyError at .*test_own_code.py:'
  with pytest.raises(RunError, match=words):
    data_setup.source(config, 'train')


@pytest.mark.parametrize('names', [None, 3, 'ab', (), (0, 1), ('a', 'a')])
def test_the_names_of_the_classes_are_different_names(listed, names):
  config, _ = listed(names, train=[{'label': 0}])
  with pytest.raises(ConfigError, match='label_names is .* a list of names'):
    data_setup.source(config, 'train')


def test_the_names_of_the_classes_can_be_generated(listed):
  config, _ = listed(iter('ab'), train=[{'label': 1}])
  assert data_setup.source(config, 'train').label_names == ('a', 'b')


def test_a_split_without_videos_is_refused_by_its_name(listed):
  config, _ = listed(train=[], validation=[{'label': 0}])
  with pytest.raises(ConfigError, match="split 'train': it has no video"):
    grids.dataset_size(config)


def test_an_example_is_made_once_each_time_it_is_asked_for(listed):
  config, _ = listed(train=[{'label': 0}, {'label': 1, 'id': 'x'}])
  source = data_setup.source(config, 'train')
  source.records.read.clear()
  assert source[1].id == 'x'
  assert source.records.read == [1]


def test_a_launch_opens_each_split_once(listed):
  config, opened = listed(train=[{'label': 0}], validation=[{'label': 1}])
  config = data_setup.with_classes(config)
  grids.dataset_size(config)
  data_setup.describe(config)
  sources = [data_setup.source(config, s) for s in ('train', 'validation')]
  assert sorted(opened) == ['train', 'validation']
  # Another process opens its own.
  pickle.loads(pickle.dumps(sources[0]))
  assert sorted(opened) == ['train', 'train', 'validation']
  # What is defined anew is opened anew, and so are other options.
  _, opened = listed(train=[{'label': 0}])
  data_setup.source(config, 'train')
  assert opened == ['train']
  for n in (3, 4):
    source = data_setup.source(own_config('source', num_videos=n), 'train')
    assert len(source) == n


def test_an_evaluation_needs_no_training_videos(listed):
  config, opened = listed(validation=[{'label': 0}])
  config.model.name = 'my_package.nets:Net'
  config.data.num_frames = 2
  config.eval.crop_px = config.eval.short_side_px = 8
  config.eval.batch_size = 2
  config = data_setup.with_classes(config)
  source = evaluation_command._open_source(config, 1)
  assert len(source) == 1 and opened == ['validation']


def test_predictions_have_the_names_of_the_source_or_numbers(listed, tmp_path):
  config, _ = listed(('left', 'right'), validation=[{'label': 0}])
  config.model.num_classes = 2
  names = predicting_command.label_names(config, tmp_path, None)
  assert names == ['left', 'right']
  config, _ = listed(('left', 'right'))  # Its videos are elsewhere.
  config.model.num_classes = 2
  names = predicting_command.label_names(config, tmp_path, None)
  assert names == ['class 0', 'class 1']


def test_an_example_that_cannot_be_made_names_the_line(package):
  source = data_setup.source(own_config('source'), 'train')
  del type(source.records).__getitem__
  with pytest.raises(RunError, match='example 3 cannot be read .TypeError at'):
    source[3]


@pytest.fixture
def encoded(tmp_path):
  """A lossless file of random frames, and the frames."""
  frames = np.random.default_rng(0).integers(
    0, 256, (6, 24, 32, 3), dtype=np.uint8
  )
  path = tmp_path / 'video.mkv'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('ffv1', rate=10)
    stream.width, stream.height, stream.pix_fmt = 32, 24, 'bgr0'
    for frame in frames:
      frame = av.VideoFrame.from_ndarray(frame, 'rgb24')
      container.mux(stream.encode(frame.reformat(format='bgr0')))
    container.mux(stream.encode(None))
  return path, frames


@pytest.mark.parametrize('size', [(24, 32), (12, 16), (9, 12), (48, 64)])
def test_frames_in_memory_become_what_the_same_file_becomes(encoded, size):
  path, frames = encoded
  indices = np.array([5, 0, 0, 3])
  with Video(path.read_bytes()) as video:
    wanted = video.frames(indices, *size)
  with own_source.ArrayVideo(frames, 10.0) as video:
    found = video.frames(indices, *size)
    assert video.form == (6, 10.0, 24, 32)
  # Shrinking is FFmpeg's, from another order of bytes; else it is exact.
  exact = size[0] >= 12
  np.testing.assert_allclose(
    found.astype(int), wanted.astype(int), atol=0 if exact else 1
  )


def test_files_of_a_source_are_read_like_those_of_predict(package, encoded):
  path, frames = encoded
  source = data_setup.source(own_config('one', path=str(path)), 'train')
  example = source.read(0, short_px=24)
  assert example.label == 1 and example.id == '0'
  with example.open() as video:
    np.testing.assert_array_equal(video.frames(np.arange(6), 24, 32), frames)


@pytest.mark.parametrize(
  'path,words',
  [('/nowhere.mp4', '/nowhere.mp4: No such file'), ('a\0b', 'embedded null')],
)
def test_a_first_file_that_is_not_there_is_refused(package, path, words):
  with pytest.raises(ConfigError, match=f'example 0: .*{words}'):
    data_setup.source(own_config('one', path=path), 'train')


def test_a_file_that_is_lost_later_ends_a_run_that_can_go_on(package, encoded):
  path, _ = encoded
  source = data_setup.source(own_config('one', path=str(path)), 'train')
  path.unlink()
  with pytest.raises(RunError, match='video.mkv: No such file.*goes on from'):
    source[0]


def test_a_grid_that_a_network_cannot_take_is_named_by_its_row(package):
  config = with_network(
    'PerFrame', {'norm.precise_batches': 0, 'optim.warmup_epochs': 0.0}
  )
  config.grid.mode = 'table'
  config.grid.table = ({'epochs': 1, 'side_factor': 0.5}, {'epochs': 1})
  schedule = grids.schedule(config, 240)
  with pytest.raises(ConfigError, match=r'^grid\.table row 1: model\.name='):
    planning.check_network(config, schedule.grids, schedule.phases)
