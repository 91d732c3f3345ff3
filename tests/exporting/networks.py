"""Folders of runs of small networks with random weights, of each family."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mgjax import models
from mgjax.config import fields
from mgjax.run import run_folder
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.setup import network, run_settings
from mgjax.step.train_state import TrainState

LABELS = ['eat', 'to: drink', '日本', "can't", 'sit']

_RESIDUAL = {'blocks': (1, 1), 'width': 8}
_TOKENS = {'depth': 2, 'width': 24, 'heads': 2, 'patch_px': 8}
_GRID = {'position_grid': (4, 32, 32)}
# By name: config.model.name and its options.
NETWORKS = {
  'slowfast': (
    'slowfast',
    _RESIDUAL | {'beta_inv': 4, 'nonlocal_blocks': ((), (0,))},
  ),
  'slow': ('slow', _RESIDUAL | {'nonlocal_blocks': ((), (0,))}),
  'c2d': ('c2d', _RESIDUAL),
  'i3d': ('i3d', _RESIDUAL),
  'tsn': ('tsn', _RESIDUAL | {'temporal_strides': (1, 2)}),
  'tsm': ('tsm', _RESIDUAL),
  'tam': ('tam', _RESIDUAL | {'depth': 18}),
  'blresnet': ('blresnet', {'blocks': (1, 1, 1, 1), 'width': 8}),
  'blvnet_tam': ('blvnet_tam', {'blocks': (1, 1, 1, 1), 'width': 8}),
  'i3d_resnet': ('i3d_resnet', _RESIDUAL | {'depth': 18}),
  's3d_resnet': ('s3d_resnet', _RESIDUAL | {'depth': 18}),
  'videomae': ('vit', _TOKENS | _GRID | {'head_norm_eps': 1e-5}),
  'vjepa2': (
    'vit',
    _TOKENS
    | {'positions': 'rope', 'pool': 'probe', 'qkv_bias': 'qkv'}
    | {'probe_blocks': 1},
  ),
  'vivit': (
    'vit',
    _TOKENS
    | _GRID
    | {'positions': 'learned', 'pool': 'class', 'qkv_bias': 'qkv'}
    | {'gelu': 'tanh'},
  ),
  'loop': ('vit', _TOKENS | {'scan_blocks': True}),
  'videoprism': (
    'videoprism',
    {'spatial_depth': 1, 'temporal_depth': 1}
    | {k: v for k, v in _TOKENS.items() if k != 'depth'},
  ),
  'mvit': ('mvit', {'blocks': (1, 1), 'width': 8}),
  'timesformer': ('timesformer', _TOKENS | _GRID),
}
QUICK = ('slowfast', 'tam', 'videomae')


def config_of(name, **options):
  """A config of a family, of clips of 4 x 32 x 32 (8 x 32 x 32: SlowFast's)."""
  config = fields.base()
  config.model.name, found = NETWORKS.get(name, (name, {}))
  config.model.num_classes = len(LABELS)
  config.model.update(found | options)
  config.data.num_frames = 8 if name == 'slowfast' else 4
  config.data.crop_px = config.eval.crop_px = 32
  config.eval.short_side_px = 40
  config.eval.num_crops = config.eval.num_views = 1
  return config


def random_variables(config):
  """Weights that make every branch count, of realistic sizes."""
  model = network.model(config)
  video = models.example_video(model, config.data.num_frames)
  shapes = jax.eval_shape(model.init, jax.random.key(0), video)
  rng = np.random.default_rng(1)

  def made(path, leaf):
    values = rng.standard_normal(leaf.shape)
    if path[-1] == 'kernel':
      values *= np.prod(leaf.shape[:-1]) ** -0.5
    elif path[-1] in ('scale', 'var'):
      values = 1 + 0.3 * np.tanh(values)
    else:
      values *= 0.1
    return values.astype(np.float32)

  flat = traverse_util.flatten_dict(shapes)
  return {'batch_stats': {}} | traverse_util.unflatten_dict(
    {path: made(path, leaf) for path, leaf in flat.items()}
  )


def write_run(folder, config, *, step=3, labels=LABELS, **record):
  """Writes the folder of a run with a checkpoint; returns its variables."""
  variables = random_variables(config)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(run_settings.as_text(config))
  if labels:
    (folder / run_folder.LABELS).write_text(json.dumps(labels))
  checkpoints = Checkpoints(folder, Keep(newest=1, best=0))
  state = TrainState(
    step=jnp.array(step, jnp.int32),
    params=jax.tree.map(jnp.asarray, variables['params']),
    batch_stats=jax.tree.map(jnp.asarray, variables['batch_stats']),
    opt_state=(),
  )
  checkpoints.save(state, step, {'times': {}, 'bad_videos': {}} | record)
  checkpoints.close()
  return variables


class Own(nn.Module):
  """A network of one's own."""

  num_classes: int

  @nn.compact
  def __call__(self, video, deterministic):
    x = nn.relu(nn.Conv(4, (3, 3, 3))(video)).mean((1, 2, 3))
    return nn.Dense(self.num_classes)(x)


class Counting(Own):
  """One that must know how many clips there are."""

  @nn.compact
  def __call__(self, video, deterministic):
    clips = jnp.zeros(int(video.shape[0]))[:, None, None, None, None]
    return nn.Dense(self.num_classes)((video + clips).mean((1, 2, 3)))
