"""Names of VideoPrism's parameters, translated to mgjax's parameters.

Names are joined by dots. Layers are apart ('x_layers_0') or, as in the released
files, stacked on a leading axis ('x_layers').
"""

import re

import numpy as np

_RENAMES = (
  (r'^params\.', ''),
  (r'^encoder\.', ''),
  (r'^patch_projection\.linear', 'embed'),
  (r'^(spatial|temporal)_encoder\.transformers_stack', r'\1'),
  (r'^(spatial|temporal)_pos_emb\.emb_var', r'\1.position_table'),
  (r'^(spatial|temporal)_ln', r'\1.norm'),
  (r'\bx_layers_?(\d*)', r'block\1'),
  (r'\bff_layer\.layer_norm', 'norm2'),
  (r'\blayer_norm', 'norm1'),
  (r'\bff_layer\.ffn_layer(\d)\.linear', r'mlp.fc\1'),
  (r'\bself_attention', 'attention'),
  (r'^atten_pooler\.pooling_attention_query', 'probe.query'),
  (r'^atten_pooler\.pooling_attention_layer_norm', 'probe.norm'),
  (r'^atten_pooler\.pooling_attention', 'probe'),
  (r'\bper_dim_scale\.per_dim_scale', 'per_dim_scale'),
  (r'^projection\.linear', 'head.classifier'),
  (r'\bpost\.w', 'proj.kernel'),
  (r'\bpost\.b', 'proj.bias'),
  (r'\battention\.(query|key|value)\.b', lambda m: f'attention.{m[1][0]}_bias'),
  (r'\b(query|key|value)\.w', lambda m: f'{m[1][0]}.kernel'),
  (r'\b(query|key|value)\.b', lambda m: f'{m[1][0]}.bias'),
)


def path_of(name):
  """Our path; query, key and value of attention are parts of 'qkv'."""
  for pattern, new in _RENAMES:
    name = re.sub(pattern, new, name)
  return name.split('.')


def _layers(name, shape):
  """[(path, index)] of a name: several where layers are stacked."""
  path = path_of(name)
  if 'block' not in path:
    return [(path, ...)]
  at = path.index('block')
  return [
    ([*path[:at], f'block{i}', *path[at + 1 :]], i) for i in range(shape[0])
  ]


def _to_ours(path, array, patch):
  if path[0] == 'embed' and path[-1] == 'kernel':
    return array.reshape(1, patch, patch, 3, -1)
  if path[-2:] == ['proj', 'kernel']:  # width, heads, width of a head.
    return array.reshape(len(array), -1).T
  if path[-1] == 'kernel':
    return array.reshape(len(array), -1)
  return array if path[-1] == 'position_table' else array.reshape(-1)


def params_of(state, dtype):
  """Our parameters, of the arrays of the reference by name."""
  pixels = len(state['params.encoder.patch_projection.linear.kernel']) / 3
  patch, tree = int(np.sqrt(pixels)), {}
  for name, stacked in state.items():
    for path, index in _layers(name, stacked.shape):
      node = tree
      for key in path[:-1]:
        node = node.setdefault(key, {})
      node[path[-1]] = _to_ours(path, stacked[index].astype(dtype), patch)
  _join(tree)
  return tree


def _join(tree):
  """Makes one matrix of those of an attention's query, key and value."""
  for name, node in tree.items():
    if name == 'attention':
      kernels = [node.pop(part)['kernel'] for part in 'qkv']
      node['qkv'] = {'kernel': np.concatenate(kernels, -1)}
    elif isinstance(node, dict):
      _join(node)


def array_of(tree, name, shape):
  """The array that the reference calls so, of a tree like our parameters."""
  arrays = []
  for path, _ in _layers(name, shape):
    part = None
    if path[-3:-2] == ['attention'] and path[-2] in set('qkv'):
      part = 'qkv'.index(path[-2])
      path = [*path[:-2], 'qkv', 'kernel']
    node = tree
    for key in path:
      node = node[key]
    array = np.asarray(node)
    if part is not None:
      array = np.split(array, 3, -1)[part]
    arrays.append(array.T if path[-2:] == ['proj', 'kernel'] else array)
  return np.reshape(arrays, shape)
