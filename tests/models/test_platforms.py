"""What a network is made of follows the platform that it is lowered for."""

import collections
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.config import fields
from mgjax.hosts import parallel
from mgjax.models import attention
from mgjax.setup import network, programs

CONVOLUTIONAL = {
  name: {'blocks': (1, 1), 'width': 8}
  for name in (
    *('slowfast', 'slow', 'c2d', 'i3d', 'tsn', 'tsm', 'tam', 'blresnet'),
    *('blvnet_tam', 'i3d_resnet', 's3d_resnet'),
  )
}
TRANSFORMERS = {
  'vit': {'width': 16, 'depth': 1, 'heads': 2},
  'videoprism': {
    'width': 16,
    'spatial_depth': 1,
    'temporal_depth': 1,
    'heads': 2,
  },
  'timesformer': {'width': 16, 'depth': 1, 'heads': 2},
  'mvit': {},
}
PLATFORMS = ('cpu', 'cuda', 'tpu')


def lowered(name, **options):
  """Texts of a network's gradients, for devices that need not be there."""
  model = models.build(name, num_classes=5, dropout=0.0, **options)
  shape = (1, *model.example_clip(4), 3)
  video = jax.ShapeDtypeStruct(shape, jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), video)
  gradients = jax.grad(lambda *args: model.apply(*args).sum())
  traced = jax.jit(gradients).trace(variables, video)
  return {
    platform: traced.lower(lowering_platforms=(platform,)).as_text()
    for platform in PLATFORMS
  }


def convolutions(text):
  """How many there are, by the number of the axes that they go over."""
  return collections.Counter(
    len(re.findall(r'\d', output))
    for output in re.findall(r'dim_numbers = \[.*?->\[(.*?)\]', text)
  )


def test_every_network_is_lowered_here():
  assert {*CONVOLUTIONAL, *TRANSFORMERS} == models.MODELS.keys()


@pytest.mark.parametrize('name', sorted(CONVOLUTIONAL))
def test_convolutions_are_folded_on_cpus_and_whole_elsewhere(name):
  found = lowered(name, **CONVOLUTIONAL[name])
  on_cpu = convolutions(found['cpu'])
  assert on_cpu[2] and not on_cpu[3]
  assert 'stablehlo.dot_general' in found['cpu']  # Of 1 x 1 x 1.
  for platform in ('cuda', 'tpu'):
    whole = convolutions(found[platform])
    assert whole[3] and not whole[2]
    # The classifier alone, forward and its two gradients, but those of networks
    # that aggregate over frames.
    products = found[platform].count('stablehlo.dot_general')
    assert products < found['cpu'].count('stablehlo.dot_general')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] if name == 'mvit' else [])
    for name in sorted(TRANSFORMERS)
  ],
)
def test_transformers_have_products_on_all_platforms(name):
  found = lowered(name, **TRANSFORMERS[name])
  for text in found.values():
    assert 'stablehlo.dot_general' in text
  assert not convolutions(found['cpu'])[3]
  is_mvit = name == 'mvit'  # Its tokens come from a convolution.
  for platform in ('cuda', 'tpu'):
    assert bool(convolutions(found[platform])[3]) == is_mvit


@pytest.mark.parametrize('platform', PLATFORMS)
def test_attention_is_cudnns_on_nvidia_gpus_alone(platform):
  shape = (2, 64, 4, 64)
  if not attention._is_flash(shape, shape, jnp.dtype('bfloat16')):
    installed = importlib.util.find_spec('jax_cuda12_plugin')
    assert not installed, 'the plugin is there, and JAX finds no cuDNN'
    pytest.skip("cuDNN is not here; pip install 'jax[cuda12]'")
  array = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  loss = lambda *arrays: attention.attend(*arrays).astype(jnp.float32).sum()
  traced = jax.jit(jax.grad(loss)).trace(array, array, array)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert ('__cudnn$fmha' in text) == (platform == 'cuda')


def test_micro_batches_are_unrolled_on_cpus_and_a_loop_elsewhere(monkeypatch):
  config = fields.base()
  config.model.choose('slow')
  config.model.blocks, config.model.width = (1,), 4
  config.model.num_classes = 5
  config.train.micro_batches = 2
  mesh = parallel.make_mesh(1)
  made = network.compose(config, mesh)
  batch = {
    'video': np.zeros((4, 4, 16, 16, 3), np.uint8),
    'label': np.zeros(4, np.int32),
    'flip': np.zeros(4, bool),
  }
  found = {}
  for platform in ('cpu', 'gpu', 'tpu'):
    monkeypatch.setattr(
      parallel, 'platform', lambda mesh, platform=platform: platform
    )
    step = programs.make_train_step(config, made, None, mesh)
    traced = jax.jit(step).trace(
      made.abstract, batch, np.float32(0), np.int32(2), jax.random.key(0)
    )
    text = traced.lower(lowering_platforms=('tpu',)).as_text()
    found[platform] = convolutions(text)[3]
  assert found['cpu'] == 2 * found['gpu'] == 2 * found['tpu'] > 0
