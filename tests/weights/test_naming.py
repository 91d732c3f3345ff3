"""Names of other frameworks, against all names of their own networks."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.weights import matching, naming

PATH = pathlib.Path(__file__).parents[1] / 'golden' / 'models'
GOLDEN = json.loads((PATH / 'weight_names.json').read_text())

# Released R101 networks have laterals of 5 frames.
_R101 = {'depth': 101, 'fusion_kernel': 5}
_R101_50 = _R101 | {'num_temporal': (3, 4, 6, 3)}
_NONLOCAL = {'nonlocal_blocks': ((), (1, 3), (1, 3, 5), ())}
NETWORKS = {
  'ptv_c2d_r50': ('c2d', {}),
  'ptv_i3d_r50': ('i3d', {}),
  'ptv_slow_r50': ('slow', {}),
  'ptv_slowfast_r50': ('slowfast', {}),
  'ptv_slowfast_r101': ('slowfast', _R101),
  'ptv_slowfast_16x8_r101_50_50': ('slowfast', _R101_50),
  'pysf_c2d_nln_r50_8x8': ('c2d', _NONLOCAL),
  'pysf_c2d_r50_8x8': ('c2d', {}),
  'pysf_i3d_nln_r50_8x8': ('i3d', _NONLOCAL),
  'pysf_i3d_nln_r101_8x8': ('i3d', {'depth': 101} | _NONLOCAL),
  'pysf_i3d_r50_8x8': ('i3d', {}),
  'pysf_i3d_r101_8x8': ('i3d', {'depth': 101}),
  'pysf_slow_nln_r50_8x8': ('slow', _NONLOCAL),
  'pysf_slow_r50_4x16': ('slow', {}),
  'pysf_slowfast_nln_r50_8x8': ('slowfast', {'fusion_kernel': 5} | _NONLOCAL),
  'pysf_slowfast_r50_4x16': ('slowfast', {'alpha': 8, 'fusion_kernel': 5}),
  'pysf_slowfast_r50_8x8': ('slowfast', {}),
  'pysf_slowfast_r50_16x8_charades': ('slowfast', {'num_classes': 157}),
  'pysf_slowfast_r101_16x8_50_50': ('slowfast', _R101_50),
  'pysf_slowfast_r101_8x8_101_101': ('slowfast', _R101),
}
# Tracing such a network takes seconds; its names follow from smaller ones'.
_LARGE = [
  n for n in NETWORKS if 'r101' in n or n.endswith(('fast_r50_4x16', 'ades'))
]


@functools.cache
def shapes(model, options):
  network = models.build(
    model,
    **{'num_classes': 400, 'dropout': 0.0, 'dtype': 'float32'} | dict(options),
  )
  video = jax.ShapeDtypeStruct((1, 8, 32, 32, 3), jnp.float32)
  return jax.eval_shape(network.init, jax.random.key(0), video)


def shapes_of(network):
  model, options = NETWORKS[network]
  return shapes(model, tuple(options.items()))


@pytest.mark.parametrize(
  'network',
  [
    pytest.param(n, marks=[pytest.mark.slow] if n in _LARGE else [])
    for n in NETWORKS
  ],
)
def test_every_name_and_shape_of_a_network_is_that_of_the_framework(network):
  model, _ = NETWORKS[network]
  form = 'pyslowfast' if network.startswith('pysf') else 'pytorchvideo'
  tree = shapes_of(network)
  found = {}
  for name, (part,) in naming.names(form, tree, model).items():
    leaf = tree
    for key in part.path:
      leaf = leaf[key]
    shape = matching.to_theirs(np.broadcast_to(0, leaf.shape)).shape
    found[name] = list(shape)
  assert found == GOLDEN['networks'][network]


def test_caffe2_names_are_those_of_the_converter():
  both = {}
  want = GOLDEN['caffe2']
  for model in ('slow', 'slowfast'):
    tree = shapes(model, tuple(_NONLOCAL.items()))
    theirs, pysf = (
      {path: name for name, path in table.items()}
      for table in (
        naming.names(form, tree, model) for form in ('caffe2', 'pyslowfast')
      )
    )
    assert theirs.keys() == pysf.keys()
    both |= {theirs[path]: pysf[path] for path in theirs}
  assert {a: both.get(a) for a in want} == want


def test_torchvision_names_are_those_of_its_resnet():
  names = naming.names('torchvision', shapes('c2d', ()), 'c2d')
  # 53 convolutions, as many norms of 4, and a classifier of 2.
  assert len(names) == 53 * 5 + 2
  for name, path in (
    ('conv1.weight', 'params/stem/layer/conv/kernel'),
    ('bn1.running_var', 'batch_stats/stem/layer/norm/var'),
    ('layer1.0.downsample.0.weight', 'params/res2/block0/shortcut/conv/kernel'),
    ('layer1.0.downsample.1.bias', 'params/res2/block0/shortcut/norm/bias'),
    ('layer4.2.conv3.weight', 'params/res5/block2/c/conv/kernel'),
    ('layer3.5.bn1.running_mean', 'batch_stats/res4/block5/a/norm/mean'),
    ('fc.bias', 'params/head/classifier/bias'),
  ):
    assert '/'.join(names[name][0].path) == path


def test_a_network_that_a_framework_lacks_has_no_names_there():
  tree = shapes('slowfast', ())
  assert naming.names('torchvision', tree, 'slowfast') == {}
  assert naming.names('mmaction2', shapes('c2d', ()), 'c2d') == {}
