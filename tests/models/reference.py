"""PySlowFast's names and axis orders, translated to mgjax's variables."""

import re

import numpy as np

_NORM = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}


def path_of(name, num_pathways):
  """(collection, path) of a state_dict entry; None for counters."""
  module, leaf = name.rsplit('.', 1)
  if leaf == 'num_batches_tracked':
    return None
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


def _prefix(pathway, num_pathways):
  return '' if num_pathways == 1 else ('slow_', 'fast_')[int(pathway)]


def to_jax(array):
  """Kernels [D, C, ...] -> [..., C, D]; matrices [D, C] -> [C, D]."""
  axes = tuple(range(2, array.ndim)) + (1, 0)
  return array.transpose(axes) if array.ndim >= 2 else array


def to_torch(array):
  n = array.ndim
  return np.transpose(array, (n - 1, n - 2, *range(n - 2))) if n >= 2 else array


def variables_of(state, num_pathways, dtype):
  """Variables from {state_dict name: array}."""
  variables = {}
  for name, array in state.items():
    if place := path_of(name, num_pathways):
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
