"""Names of the reference video transformers, translated to mgjax's parameters.

Hugging Face (VideoMAE, V-JEPA 2, ViViT, TimeSformer), MCG-NJU/VideoMAE,
facebookresearch/vjepa2 and torchvision (MViT).
"""

import re

import numpy as np

# What a name begins with, or has in it, and what stands there in ours.
_RENAMES = (
  (r'\btemporal_attention\.attention\.', 'time_attention.'),
  (r'\btemporal_attention\.output\.dense', 'time_attention.proj'),
  (r'\btemporal_layernorm', 'time_norm'),
  (r'\btemporal_dense', 'time_proj'),
  (
    r'^(videomae|vjepa2|vivit|timesformer|encoder|classifier)\.(?!weight|bias)',
    '',
  ),
  (r'^(encoder|pooler)\.(?=blocks|layer|patch|embed)', r'\1.'),
  (
    r'^(encoder\.)?(embeddings\.patch_embeddings|patch_embed)\.proj\w*',
    'embed',
  ),
  (r'^encoder\.', ''),
  (r'^pooler\.', 'probe.'),
  (r'\bcross_attention_(layer|block)\.', ''),
  (r'\b(self_attention_layers|blocks|layers?)\.(\d+)', r'block\2'),
  (r'\bintermediate\.dense', 'mlp.fc1'),
  (r'\battention\.output\.dense', 'attention.proj'),
  (r'(?<=\d)\.output\.dense', '.mlp.fc2'),
  (r'\battention\.attention\.', 'attention.'),
  (r'\b(self_attn|attn)\.', 'attention.'),
  (r'\b(xattn|cross_attn)\.', ''),
  (r'\b(out|o)_proj', 'proj'),
  (r'^embeddings\.cls_token', 'class_token'),
  (r'^embeddings\.position_embeddings', 'position_table'),
  (r'^embeddings\.time_embeddings', 'time_table'),
  (r'\blayernorm_before|\blayer_norm1', 'norm1'),
  (r'\blayernorm_after|\blayer_norm2', 'norm2'),
  (r'^layernorm', 'norm'),
  (r'^fc_norm', 'pool_norm'),
  (r'^(head|linear|classifier)\.(?=weight|bias)', 'head.classifier.'),
  (r'\bquery_tokens', 'query'),
  (r'\b(q|k|v)_proj', r'\1'),
  (r'attention\.(query|key|value)\.', lambda m: f'attention.{m[1][0]}.'),
  # MViT.
  (r'^conv_proj', 'embed'),
  (r'^pos_encoding\.', ''),
  (r'\bproject\.0', 'proj'),
  (r'\bproject\b', 'shortcut'),
  (r'(pool_[qkv])\.pool', r'\1.conv'),
  (r'(pool_[qkv])\.norm_act\.0', r'\1.norm'),
  (r'\bmlp\.0', 'mlp.fc1'),
  (r'\bmlp\.3', 'mlp.fc2'),
  (r'^head\.1', 'head.classifier'),
)


def places(name):
  """Where a parameter of a reference belongs.

  Returns:
    [(path, part, parts)]: the entry of our tree, and which of equal parts of
    its last axis; several are joined. None: there is no place.
  """
  if 'predictor' in name:
    return None
  for pattern, new in _RENAMES:
    name = re.sub(pattern, new, name)
  *module, leaf = name.split('.')
  if leaf in ('q_bias', 'v_bias'):
    return [((*module, leaf), 0, 1)]
  if module[-1:] == ['qkv'] and leaf == 'bias':
    return [((*module[:-1], f'{part}_bias'), 0, 1) for part in 'qkv']
  if module[-2:-1] == ['attention'] and module[-1] in set('qkv'):
    if leaf == 'bias':
      return [((*module[:-1], f'{module[-1]}_bias'), 0, 1)]
    return [((*module[:-1], 'qkv', 'kernel'), 'qkv'.index(module[-1]), 3)]
  if leaf == 'weight':
    leaf = 'scale' if 'norm' in module[-1] else 'kernel'
  if module[:1] == ['probe'] and module[-1] in set('kv'):
    return [(('probe', 'kv', leaf), 'kv'.index(module[-1]), 2)]
  return [((*module, leaf), 0, 1)]


def _is_table(name):
  return 'rel_pos_' in name


def _to_jax(name, array):
  if _is_table(name):
    return array
  if array.ndim == 4:  # Of one frame.
    array = array[:, :, None]
  if array.ndim == 5:
    return array.transpose(2, 3, 4, 1, 0)
  if array.ndim == 3:  # Of tokens, with an axis of clips.
    return np.squeeze(array[0])
  return array.T if array.ndim == 2 else array


def params_of(state, dtype):
  """Our parameters, of the arrays of a reference by name."""
  found = {}
  for name, array in state.items():
    targets = places(name)
    if targets is None:
      continue
    pieces = np.split(_to_jax(name, array).astype(dtype), len(targets), -1)
    for (path, part, parts), piece in zip(targets, pieces, strict=True):
      found.setdefault(path, [None] * parts)[part] = piece
  tree = {}
  for path, pieces in found.items():
    *parents, leaf = path
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = np.concatenate(pieces, -1)
  return tree


def array_of(tree, name, shape):
  """The array that a reference calls so, of a tree like our parameters."""
  pieces = []
  for path, part, parts in places(name):
    node = tree
    for key in path:
      node = node[key]
    pieces.append(np.split(np.asarray(node), parts, -1)[part])
  array = np.concatenate(pieces, -1)
  if array.ndim == 5:
    return array.transpose(4, 3, 0, 1, 2).reshape(shape)
  if _is_table(name):
    return array
  return array.T if len(shape) == 2 else array.reshape(shape)
