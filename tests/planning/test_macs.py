"""macs.py and recipes/published.py: sizes and costs of published networks."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from mgjax.config import fields
from mgjax.models import norm, resnet3d
from mgjax.planning import macs
from mgjax.recipes import published
from mgjax.setup.network import model as model_of

NETWORKS = json.loads(
  (
    pathlib.Path(__file__).parents[1] / 'golden' / 'models' / 'facts.json'
  ).read_text()
)['networks']
NUM_CLASSES = {'ssv2': 174, 'charades': 157}
# These stand for all in the fast tests.
FAST = ('psf_i3d_nln_r50_8x8', 'psf_slow_r50_4x16', 'psf_slowfast_r50_4x16')
PTV_NAMES = {
  'slowfast_16x8_r101_50_50': 'slowfast_r101_16x8_50_50',
}


def config_of(network):
  """The config of a golden network."""
  peer, _, name = network.partition('_')
  num_classes = 400
  for data, classes in NUM_CLASSES.items():
    if name.endswith(f'_{data}'):
      name, num_classes = name.removesuffix(f'_{data}'), classes
  config = fields.base()
  published.set_network(config, PTV_NAMES.get(name, name), frames='8x8')
  config.model.num_classes = num_classes
  return config


def marked(networks):
  return [
    pytest.param(
      network, marks=() if network in FAST else pytest.mark.slow, id=network
    )
    for network in networks
  ]


@pytest.mark.parametrize('network', marked(NETWORKS))
def test_published_networks_have_the_parameters_of_the_reference(network):
  config = config_of(network)
  model = model_of(config)
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 8, 32, 32, 3), jnp.float32),
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
  assert count == NETWORKS[network]['parameters']


@pytest.mark.parametrize(
  'network', marked(n for n in NETWORKS if 'num_frames' in NETWORKS[n])
)
def test_multiply_adds_equal_the_reference(network, monkeypatch):
  golden = NETWORKS[network]
  config = config_of(network)
  assert config.data.num_frames == golden['num_frames']
  model = model_of(config)

  norm_elements = []
  shortcut = macs._shortcut

  def counting_shortcut(next_fun, args, kwargs, context):
    result = shortcut(next_fun, args, kwargs, context)
    # A layer has one, of its output; others are those of non-local blocks.
    if isinstance(context.module, (norm.BatchNorm, resnet3d.Layer)):
      norm_elements.append(result.size)
    return result

  monkeypatch.setattr(macs, '_shortcut', counting_shortcut)
  macs.forward_jaxpr.cache_clear()  # Another test may have counted it.
  for crop_px, total in golden['total_gmacs'].items():
    norm_elements.clear()
    count = macs.forward_macs(
      model, T=config.data.num_frames, H=int(crop_px), W=int(crop_px)
    )
    if crop_px == '256':
      # The reference's 7 x 7 window has 2 x 2 positions at 256 pixels.
      num_features = 2304 if config.model.name == 'slowfast' else 2048
      count += 3 * num_features * config.model.num_classes
    if 'multiply_adds' in golden:
      assert count == golden['multiply_adds'][crop_px]
    assert len(norm_elements) == golden['num_bn']
    # Totals are rounded to 1e-3.
    count += 2 * sum(norm_elements)
    assert count / 1e9 == pytest.approx(total, abs=6e-4)
