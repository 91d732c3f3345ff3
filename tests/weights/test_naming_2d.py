"""Weights of IBM's and MIT's networks, against a mapping of its own.

tests/models/reference_2d.py, by which the forward passes are compared with
their references, was written without mgjax/weights/naming.py.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.weights import contents, matching, naming, tensors, torch_files
from tests.models import reference_2d

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'forward'
FAST = ('mit_tsm_resnet50_f8', 'ibm_blvnet_tam_50_a2_b4_f8x2')


def shapes(model, num_classes, **options):
  network = models.build(
    model, num_classes=num_classes, dropout=0.0, dtype='float32', **options
  )
  video = jax.ShapeDtypeStruct((1, 8, 32, 32, 3), jnp.float32)
  return jax.eval_shape(network.init, jax.random.key(0), video)


def tensor(array):
  return tensors.Tensor(array.shape, array.dtype, lambda: array)


@pytest.mark.parametrize(
  'network',
  [
    pytest.param(n, marks=() if n in FAST else pytest.mark.slow)
    for n in reference_2d.NETWORKS
  ],
)
def test_every_tensor_goes_where_the_forward_tests_have_it(network, tmp_path):
  golden = json.loads((GOLDEN / f'{network}.json').read_text())
  # Every element of a tensor is another number (up to float32's digits).
  arrays = {
    name: np.arange(i, i + np.prod(shape, dtype=int))
    .reshape(shape)
    .astype(np.float32)
    for i, (name, shape, *_) in enumerate(golden['state'])
  }
  file = tmp_path / 'x.pth.tar'
  torch_files.save(
    file, {'state_dict': {f'module.{n}': a for n, a in arrays.items()}}
  )
  result = matching.match_state(
    contents.read(file).state,
    shapes(reference_2d.NETWORKS[network], golden['num_classes']),
    reference_2d.NETWORKS[network],
    inflate='repeat',
    new=(),
  )
  assert not result.problems
  want = reference_2d.variables_of(arrays, np.float32)
  jax.tree.map(
    np.testing.assert_array_equal, matching.nest(result.arrays), want
  )


def test_a_shifting_network_is_not_taken_for_one_that_does_not():
  golden = json.loads((GOLDEN / 'mit_tsm_resnet50_f8.json').read_text())
  state = {
    name.removeprefix('base_model.').replace('new_fc.', 'fc.'): tensor(
      np.broadcast_to(np.float32(0), shape)
    )
    for name, shape, *_ in golden['state']
  }
  result = matching.match_state(
    state, shapes('tsn', 174), 'tsn', inflate='repeat', new=()
  )
  # 16 blocks: each misses a name and has one too many.
  assert len(result.problems) == 32


def test_an_image_network_starts_aggregation_anew_on_request():
  tree = shapes('tam', 5, blocks=(1, 1), width=8)
  state = {
    name: tensor(np.zeros(_torch_shape(tree, part), np.float32))
    for name, (part,) in naming.names('torchvision', tree, 'tam').items()
    if '.tam.' not in name
  }
  match = lambda new: matching.match_state(
    state, tree, 'tam', inflate='repeat', new=new
  )
  assert {row[3] for row in match(()).problems} == {'missing in the file'}
  assert not match(('temporal',)).problems


def _torch_shape(tree, part):
  for key in part.path:
    tree = tree[key]
  shape = matching.their_shape((part,), {part.path: tree.shape})
  return (*shape[:2], *shape[3:]) if len(shape) == 5 else shape


@pytest.mark.parametrize(
  'tam_frames,name', [(3, 'prev'), (5, 'blending_layers.0')]
)
def test_rows_of_an_aggregation_have_names_of_their_own(tam_frames, name):
  tree = shapes('blvnet_tam', 5, blocks=(3, 1), width=8, tam_frames=tam_frames)
  names = naming.names('biglittle', tree, 'blvnet_tam')
  part = naming.Part(('params', 'stem', 'temporal', 'kernel'), row=0)
  assert names[f'tam.{name}.weight'] == (part,)
