"""Names of IBM's and MIT's 2-D and 3-D networks, in mgjax's variables."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Golden file -> name of the model.
NETWORKS = {
  'ibm_tsn_resnet50_f8': 'tsn',
  'mit_tsn_resnet50_f8': 'tsn',
  'mit_tsm_resnet50_f8': 'tsm',
  'ibm_tam_resnet50_f8': 'tam',
  'ibm_blresnet50_a2_b4': 'blresnet',
  'ibm_blvnet_tam_50_a2_b4_f8x2': 'blvnet_tam',
  'ibm_i3d_resnet50_f8': 'i3d_resnet',
  'ibm_s3d_resnet50_f8': 's3d_resnet',
}

_NORM = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}
_LETTERS = {'1': 'a', '2': 'b', '3': 'c'}
_TAPS = {'prev': 0, 'curr': 1, 'next': 2}
_STEM = {
  'conv1': 'layer',
  'bn1': 'layer',
  'b_conv0': 'big',
  'bn_b0': 'big',
  'l_conv0': 'little0',
  'bn_l0': 'little0',
  'l_conv1': 'little1',
  'bn_l1': 'little1',
  'l_conv2': 'little2',
  'bn_l2': 'little2',
  'bl_init': 'merge',
  'bn_bl_init': 'merge',
}


class Place(NamedTuple):
  """Where a tensor of a state_dict is in mgjax's variables."""

  collection: str
  path: tuple[str, ...]
  tap: int | None = None  # Row of a temporal aggregation's kernel.

  def to_jax(self, array):
    if self.tap is not None:  # [C, 1, 1, 1] -> [C]
      return array.reshape(-1)
    if array.ndim == 4:  # [D, C, kh, kw] -> [1, kh, kw, C, D]
      return array.transpose(2, 3, 1, 0)[None]
    if array.ndim >= 2:
      return array.transpose(*range(2, array.ndim), 1, 0)
    return array

  def find(self, tree, shape):
    """This tensor in a tree of params or statistics, as torch has it."""
    for key in self.path:
      tree = tree[key]
    array = np.asarray(tree)
    if self.tap is not None:
      array = array[self.tap]
    elif array.ndim >= 2:
      n = array.ndim
      array = array.transpose(n - 1, n - 2, *range(n - 2))
    return array.reshape(shape)


def place_of(name, shape):
  """Place of a state_dict entry; None for counters.

  Args:
    name: Such as 'layer1.0.conv1.weight'.
    shape: Tells the convolutions of a shortcut from its batch norms.
  """
  module, leaf = name.removeprefix('base_model.').rsplit('.', 1)
  module = module.removeprefix('baseline_model.').removesuffix('.net')
  if leaf == 'num_batches_tracked':
    return None
  if module in ('fc', 'new_fc'):
    leaf = {'weight': 'kernel', 'bias': 'bias'}[leaf]
    return Place('params', ('head', 'classifier', leaf))
  if module in _STEM:
    path = ('stem', _STEM[module])
  else:
    path, rest = _block(module)
    if match := re.fullmatch(
      r'tam\.(?:blending_layers\.)?(prev|curr|next|\d)(?:_se)?(?:\.fc1)?', rest
    ):
      tap = match[1]
      tap = _TAPS[tap] if tap in _TAPS else int(tap)
      return Place('params', (*path, 'temporal', 'kernel'), tap)
    if rest.startswith('downsample'):
      path = (*path, 'shortcut')
    elif rest.startswith('little_e'):
      path = (*path, 'expand')
    else:
      match = re.fullmatch(r'(?:conv|bn)(\d)(_t)?', rest)
      path = (*path, _LETTERS[match[1]] + (match[2] or ''))
  if len(shape) >= 4:
    return Place('params', (*path, 'conv', 'kernel'))
  collection, leaf = _NORM[leaf]
  return Place(collection, (*path, 'norm', leaf))


def _block(module):
  """Path of the block or stage that holds a module, and the rest."""
  if module.startswith('tam.'):
    return ('stem',), module
  stage, rest = re.fullmatch(r'layer(\d)\.(.*)', module).groups()
  path = (f'res{int(stage) + 1}',)
  if rest.startswith(('tam.', 'little_e.')):
    return path, rest
  if rest.startswith('fusion.0.'):
    return (*path, 'fusion'), rest.removeprefix('fusion.0.')
  branch, block, rest = re.fullmatch(
    r'(?:(big|little)\.)?(\d+)\.(.*)', rest
  ).groups()
  return (*path, *([branch] if branch else []), f'block{block}'), rest


def places_of(golden):
  """{name: Place} of a golden file's state."""
  places = {name: place_of(name, shape) for name, shape, *_ in golden['state']}
  return {name: place for name, place in places.items() if place}


def variables_of(state, dtype):
  """Variables from {state_dict name: array}."""
  variables, taps = {}, {}
  for name, array in state.items():
    place = place_of(name, array.shape)
    if not place:
      continue
    node = variables.setdefault(place.collection, {})
    for key in place.path[:-1]:
      node = node.setdefault(key, {})
    value = place.to_jax(array).astype(dtype)
    if place.tap is None:
      node[place.path[-1]] = value
    else:
      taps.setdefault(id(node), (node, {}))[1][place.tap] = value
  for node, rows in taps.values():
    node['kernel'] = np.stack([rows[i] for i in range(len(rows))])
  return variables


def shapes_of(model, video=(1, 2, 32, 32, 3)):
  """Shapes of a model's variables."""
  video = jax.ShapeDtypeStruct(video, jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), video)


def num_parameters(model):
  return sum(p.size for p in jax.tree.leaves(shapes_of(model)['params']))
