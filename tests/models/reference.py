"""The references' names and axis orders, translated to mgjax's variables."""

import re

import numpy as np

_NORM = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}


def path_of(name, num_pathways, pools_time=False):
  """(collection, path) of a state_dict entry; None for counters.

  Args:
    name: PySlowFast's or pytorchvideo's.
    num_pathways: 1 or 2.
    pools_time: Whether time is pooled behind res2: pytorchvideo counts it.
  """
  module, leaf = name.rsplit('.', 1)
  if leaf == 'num_batches_tracked':
    return None
  if module.startswith('blocks.'):
    module = _pyslowfast_module(module, pools_time)
  if module == 'head.projection':
    leaf = {'weight': 'kernel', 'bias': 'bias'}[leaf]
    return 'params', ('head', 'classifier', leaf)
  if match := re.fullmatch(r's(\d)_fuse\.(conv_f2s|bn)', module):
    stage, layer = match.groups()
    stem = 'stem' if stage == '1' else f'res{stage}'
    path, is_norm = (f'fuse_{stem}',), layer == 'bn'
  elif match := re.fullmatch(r's1\.pathway(\d)_stem\.(conv|bn)', module):
    pathway, layer = match.groups()
    path, is_norm = (
      (_prefix(pathway, num_pathways) + 'stem', 'layer'),
      (layer == 'bn'),
    )
  elif match := re.fullmatch(
    r's(\d)\.pathway(\d)_nonlocal(\d+)\.(?:conv_)?(\w+)', module
  ):
    stage, pathway, block, layer = match.groups()
    stage = f'{_prefix(pathway, num_pathways)}res{stage}'
    path, is_norm = (stage, f'nonlocal{block}'), layer == 'bn'
    if not is_norm:
      path = (*path, layer)
      if leaf == 'bias':
        return 'params', (*path, 'bias')
  else:
    match = re.fullmatch(
      r's(\d)\.pathway(\d)_res(\d+)\.(branch1|branch2\.[abc])(_bn)?', module
    )
    stage, pathway, block, branch, bn = match.groups()
    branch = 'shortcut' if branch == 'branch1' else branch[-1]
    stage = f'{_prefix(pathway, num_pathways)}res{stage}'
    path, is_norm = (stage, f'block{block}', branch), bool(bn)
  if is_norm:
    collection, leaf = _NORM[leaf]
    return collection, (*path, 'norm', leaf)
  return 'params', (*path, 'conv', 'kernel')


def _pyslowfast_module(module, pools_time):
  """PySlowFast's name of a pytorchvideo module."""
  match = re.fullmatch(
    r'blocks\.(\d)\.(?:multipathway_blocks\.(\d)\.)?(.+)', module
  )
  block, pathway, rest = match.groups()
  pathway = pathway or '0'
  # Block 2 of a network that pools time is the pool.
  stage = int(block) + (not (pools_time and block > '1'))
  if rest == 'proj':
    return 'head.projection'
  if match := re.fullmatch(
    r'multipathway_fusion\.(conv_fast_to_slow|norm)', rest
  ):
    return f's{stage}_fuse.' + ('bn' if match[1] == 'norm' else 'conv_f2s')
  if block == '0':
    return f's1.pathway{pathway}_stem.' + ('bn' if rest == 'norm' else 'conv')
  match = re.fullmatch(
    r'res_blocks\.(\d+)\.(?:branch1_(conv|norm)|branch2\.(conv|norm)_([abc]))',
    rest,
  )
  index, first, second, letter = match.groups()
  branch = f'branch2.{letter}' if letter else 'branch1'
  bn = '_bn' if 'norm' in (first, second) else ''
  return f's{stage}.pathway{pathway}_res{index}.{branch}{bn}'


def _prefix(pathway, num_pathways):
  return '' if num_pathways == 1 else ('slow_', 'fast_')[int(pathway)]


def to_jax(array):
  """Kernels [D, C, ...] -> [..., C, D]; matrices [D, C] -> [C, D]."""
  axes = tuple(range(2, array.ndim)) + (1, 0)
  return array.transpose(axes) if array.ndim >= 2 else array


def to_torch(array):
  n = array.ndim
  return np.transpose(array, (n - 1, n - 2, *range(n - 2))) if n >= 2 else array


def variables_of(state, place_of, dtype):
  """Variables from {state_dict name: array}; `place_of` is like `path_of`."""
  variables = {}
  for name, array in state.items():
    if place := place_of(name):
      collection, path = place
      node = variables.setdefault(collection, {})
      for key in path[:-1]:
        node = node.setdefault(key, {})
      node[path[-1]] = to_jax(array).astype(dtype)
  return variables


def lookup(tree, path):
  for key in path:
    tree = tree[key]
  return tree
