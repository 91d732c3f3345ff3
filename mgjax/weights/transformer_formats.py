"""Names of video transformers in the files of other frameworks.

In a rule, {i} is a block, {q} one of query, key and value, {x} one of
VideoPrism's two encoders. Queries, keys and values are one matrix here. What
the frameworks fuse and what they keep apart differs, also between a program and
the files that it writes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mgjax.weights.formats import Format
from mgjax.weights.tensors import Tensor

_VIDEOMAE_LICENCE = (
  'CC-BY-NC 4.0 for the weights of VideoMAE: no commercial use (VideoMAE v2: '
  'see where the file is from)'
)
_VJEPA2_LICENCE = 'MIT, parts Apache-2.0, for the weights of V-JEPA 2'
_QKV = ('q', 'k', 'v')
_BIASES = tuple(f'block{{i}}/attention/{part}_bias' for part in _QKV)
_PROBE_BIASES = tuple(
  f'probe/block{{i}}/attention/{part}_bias' for part in _QKV
)
_PREDICTOR = (
  r'(vjepa2\.)?predictor\..*',
  "the predictor of the pre-training: the classifier doesn't use it",
)
_DECODER = (
  r'decoder\..*|encoder_to_decoder\.weight|mask_token',
  "the decoder of the pre-training: the classifier doesn't use it",
)


def _modules(*names: str) -> tuple[str, ...]:
  return tuple(f'{names[0]}.{name}' for name in names[1:])


def _in_transformers(layer: str, model: str) -> tuple[tuple[str, str], ...]:
  """What networks of transformers call alike, but queries, keys and values."""
  return (
    ('block{i}/norm1', f'{layer}.layernorm_before'),
    ('block{i}/attention/proj', f'{layer}.attention.output.dense'),
    ('block{i}/norm2', f'{layer}.layernorm_after'),
    ('block{i}/mlp/fc1', f'{layer}.intermediate.dense'),
    ('block{i}/mlp/fc2', f'{layer}.output.dense'),
    ('norm', f'{model}.layernorm'),
    ('head/classifier', 'classifier'),
  )


def _projection(ours: str, theirs: str) -> tuple[tuple[str, str], ...]:
  """A layer that VideoPrism has with an axis of heads."""
  return (f'{ours}/kernel', f'{theirs}/w'), (f'{ours}/bias', f'{theirs}/b')


# transformers 5.24.0, VideoMAEForVideoClassification: the names of its files,
# which differ from those in memory by the biases. Models without a head have no
# prefix.
_IN_LAYER = 'videomae.encoder.layer.{i}'
_VIDEOMAE_HF = Format(
  rules=(
    ('embed', 'videomae.embeddings.patch_embeddings.projection'),
    *_in_transformers(_IN_LAYER, 'videomae'),
    (
      'block{i}/attention/qkv',
      _modules(f'{_IN_LAYER}.attention.attention', 'query', 'key', 'value'),
    ),
    (_BIASES[0], f'{_IN_LAYER}.attention.attention.q_bias'),
    (_BIASES[2], f'{_IN_LAYER}.attention.attention.v_bias'),
    ('pool_norm', 'fc_norm'),
  ),
  models=('vit',),
  aliases=(
    (r'^(embeddings|encoder|layernorm)\.', r'videomae.\1.'),
    (r'(\.attention\.attention)\.query\.bias$', r'\1.q_bias'),
    (r'(\.attention\.attention)\.value\.bias$', r'\1.v_bias'),
  ),
  left_out=(_DECODER,),
  only={'positions': 'sincos'},
  # The defaults of VideoMAEConfig, and of torch's LayerNorm for fc_norm.
  constants={'layer_norm_eps': 1e-12, 'head_norm_eps': 1e-5},
  licence=_VIDEOMAE_LICENCE,
)

# MCG-NJU/VideoMAE 14ef8d8, modeling_finetune.py; modeling_pretrain.py has the
# network in `encoder`. OpenGVLab/VideoMAEv2 29eab1e has the same names.
_VIDEOMAE = Format(
  rules=(
    ('embed', 'patch_embed.proj'),
    ('block{i}/attention/qkv', 'blocks.{i}.attn.qkv'),
    (_BIASES[0], 'blocks.{i}.attn.q_bias'),
    (_BIASES[2], 'blocks.{i}.attn.v_bias'),
    ('block{i}/attention/proj', 'blocks.{i}.attn.proj'),
    ('block{i}/norm1', 'blocks.{i}.norm1'),
    ('block{i}/norm2', 'blocks.{i}.norm2'),
    ('block{i}/mlp/fc1', 'blocks.{i}.mlp.fc1'),
    ('block{i}/mlp/fc2', 'blocks.{i}.mlp.fc2'),
    ('norm', 'norm'),
    ('pool_norm', 'fc_norm'),
    ('head/classifier', 'head'),
  ),
  models=('vit',),
  aliases=((r'^(backbone|encoder)\.', ''),),
  left_out=(_DECODER,),
  only={'positions': 'sincos'},
  constants={'layer_norm_eps': 1e-6, 'head_norm_eps': 1e-6},
  licence=_VIDEOMAE_LICENCE,
)

# transformers 5.24.0, VJEPA2ForVideoClassification; models without a head have
# no prefix.
_IN_LAYER = 'vjepa2.encoder.layer.{i}'
_IN_PROBE = 'pooler.self_attention_layers.{i}'
_CROSS = 'pooler.cross_attention_layer'
_VJEPA2_HF = Format(
  rules=(
    ('embed', 'vjepa2.encoder.embeddings.patch_embeddings.proj'),
    ('block{i}/norm1', f'{_IN_LAYER}.norm1'),
    (
      'block{i}/attention/qkv',
      _modules(f'{_IN_LAYER}.attention', 'query', 'key', 'value'),
    ),
    (_BIASES[0], f'{_IN_LAYER}.attention.query.bias'),
    (_BIASES[1], f'{_IN_LAYER}.attention.key.bias'),
    (_BIASES[2], f'{_IN_LAYER}.attention.value.bias'),
    ('block{i}/attention/proj', f'{_IN_LAYER}.attention.proj'),
    ('block{i}/norm2', f'{_IN_LAYER}.norm2'),
    ('block{i}/mlp/fc1', f'{_IN_LAYER}.mlp.fc1'),
    ('block{i}/mlp/fc2', f'{_IN_LAYER}.mlp.fc2'),
    ('norm', 'vjepa2.encoder.layernorm'),
    ('probe/query', 'pooler.query_tokens'),
    ('probe/norm1', f'{_CROSS}.layer_norm1'),
    ('probe/q', f'{_CROSS}.cross_attn.q_proj'),
    ('probe/kv', _modules(f'{_CROSS}.cross_attn', 'k_proj', 'v_proj')),
    ('probe/norm2', f'{_CROSS}.layer_norm2'),
    ('probe/mlp/fc1', f'{_CROSS}.mlp.fc1'),
    ('probe/mlp/fc2', f'{_CROSS}.mlp.fc2'),
    ('probe/block{i}/norm1', f'{_IN_PROBE}.layer_norm1'),
    (
      'probe/block{i}/attention/qkv',
      _modules(f'{_IN_PROBE}.self_attn', 'q_proj', 'k_proj', 'v_proj'),
    ),
    (_PROBE_BIASES[0], f'{_IN_PROBE}.self_attn.q_proj.bias'),
    (_PROBE_BIASES[1], f'{_IN_PROBE}.self_attn.k_proj.bias'),
    (_PROBE_BIASES[2], f'{_IN_PROBE}.self_attn.v_proj.bias'),
    ('probe/block{i}/attention/proj', f'{_IN_PROBE}.self_attn.out_proj'),
    ('probe/block{i}/norm2', f'{_IN_PROBE}.layer_norm2'),
    ('probe/block{i}/mlp/fc1', f'{_IN_PROBE}.mlp.fc1'),
    ('probe/block{i}/mlp/fc2', f'{_IN_PROBE}.mlp.fc2'),
    ('head/classifier', 'classifier'),
  ),
  models=('vit',),
  aliases=((r'^encoder\.', 'vjepa2.encoder.'),),
  leading={'pooler.query_tokens': 2},
  left_out=(_PREDICTOR,),
  only={'positions': 'rope'},
  # The default of VJEPA2Config: encoder and probe share it.
  constants={'layer_norm_eps': 1e-6, 'head_norm_eps': 1e-6},
  licence=_VJEPA2_LICENCE,
)

# facebookresearch/vjepa2 c2963a4, src/models/vision_transformer.py and
# attentive_pooler.py. Encoder and probe are files of their own.
_CROSS = 'pooler.cross_attention_block'
_NOT_OF_VJEPA2 = (*_BIASES, 'pool_norm', 'head/classifier')
_VJEPA2 = Format(
  rules=(
    *(rule for rule in _VIDEOMAE.rules if rule[0] not in _NOT_OF_VJEPA2),
    (_BIASES, 'blocks.{i}.attn.qkv.bias'),
    ('probe/query', 'pooler.query_tokens'),
    ('probe/norm1', f'{_CROSS}.norm1'),
    ('probe/q', f'{_CROSS}.xattn.q'),
    ('probe/kv', f'{_CROSS}.xattn.kv'),
    ('probe/norm2', f'{_CROSS}.norm2'),
    ('probe/mlp/fc1', f'{_CROSS}.mlp.fc1'),
    ('probe/mlp/fc2', f'{_CROSS}.mlp.fc2'),
    ('probe/block{i}/norm1', 'pooler.blocks.{i}.norm1'),
    ('probe/block{i}/attention/qkv', 'pooler.blocks.{i}.attn.qkv'),
    (_PROBE_BIASES, 'pooler.blocks.{i}.attn.qkv.bias'),
    ('probe/block{i}/attention/proj', 'pooler.blocks.{i}.attn.proj'),
    ('probe/block{i}/norm2', 'pooler.blocks.{i}.norm2'),
    ('probe/block{i}/mlp/fc1', 'pooler.blocks.{i}.mlp.fc1'),
    ('probe/block{i}/mlp/fc2', 'pooler.blocks.{i}.mlp.fc2'),
    ('head/classifier', 'linear'),
  ),
  models=('vit',),
  aliases=((r'^(backbone|encoder|classifier)\.', ''),),
  leading={'pooler.query_tokens': 2},
  left_out=(
    _PREDICTOR,
    (
      'pos_embed',
      'V-JEPA 2 turns queries and keys instead (V-JEPA 1, whose files look '
      'like this one, adds it)',
    ),
  ),
  only={'positions': 'rope'},
  # That of the probe is the default of torch's LayerNorm.
  constants={'layer_norm_eps': 1e-6, 'head_norm_eps': 1e-5},
  licence=_VJEPA2_LICENCE,
)

# transformers 5.24.0, VivitForVideoClassification: the names of its files; in
# memory they differ. Models without a head have no prefix.
_IN_LAYER = 'vivit.encoder.layer.{i}'
_VIVIT_HF = Format(
  rules=(
    ('embed', 'vivit.embeddings.patch_embeddings.projection'),
    ('class_token', 'vivit.embeddings.cls_token'),
    ('position_table', 'vivit.embeddings.position_embeddings'),
    *_in_transformers(_IN_LAYER, 'vivit'),
    (
      'block{i}/attention/qkv',
      _modules(f'{_IN_LAYER}.attention.attention', 'query', 'key', 'value'),
    ),
    (_BIASES[0], f'{_IN_LAYER}.attention.attention.query.bias'),
    (_BIASES[1], f'{_IN_LAYER}.attention.attention.key.bias'),
    (_BIASES[2], f'{_IN_LAYER}.attention.attention.value.bias'),
  ),
  models=('vit',),
  aliases=(
    (r'^(embeddings|encoder|layers|layernorm)\.', r'vivit.\1.'),
    (r'^vivit\.layers\.', 'vivit.encoder.layer.'),
    (r'\.attention\.q_proj\.', '.attention.attention.query.'),
    (r'\.attention\.k_proj\.', '.attention.attention.key.'),
    (r'\.attention\.v_proj\.', '.attention.attention.value.'),
    (r'\.attention\.o_proj\.', '.attention.output.dense.'),
    (r'\.mlp\.fc1\.', '.intermediate.dense.'),
    (r'\.mlp\.fc2\.', '.output.dense.'),
  ),
  leading={
    'vivit.embeddings.cls_token': 2,
    'vivit.embeddings.position_embeddings': 1,
  },
  left_out=(
    (
      r'(vivit\.)?pooler\..*',
      "made beside the network: the classifier doesn't use it",
    ),
  ),
  only={'positions': 'learned'},
  # The defaults of VivitConfig.
  constants={'layer_norm_eps': 1e-6, 'gelu': 'tanh'},
  licence=(
    'Apache-2.0 for ViViT of google-research/scenic; of a copy, see where the '
    'file is from'
  ),
)

# transformers 5.24.0, TimesformerForVideoClassification with divided attention;
# models without a head have no prefix.
_IN_LAYER = 'timesformer.encoder.layer.{i}'
_TIME_BIASES = tuple(f'block{{i}}/time_attention/{part}_bias' for part in _QKV)
_TIMESFORMER_HF = Format(
  rules=(
    ('embed', 'timesformer.embeddings.patch_embeddings.projection'),
    ('class_token', 'timesformer.embeddings.cls_token'),
    ('position_table', 'timesformer.embeddings.position_embeddings'),
    ('time_table', 'timesformer.embeddings.time_embeddings'),
    *_in_transformers(_IN_LAYER, 'timesformer'),
    ('block{i}/attention/qkv', f'{_IN_LAYER}.attention.attention.qkv'),
    (_BIASES, f'{_IN_LAYER}.attention.attention.qkv.bias'),
    ('block{i}/time_norm', f'{_IN_LAYER}.temporal_layernorm'),
    (
      'block{i}/time_attention/qkv',
      f'{_IN_LAYER}.temporal_attention.attention.qkv',
    ),
    (_TIME_BIASES, f'{_IN_LAYER}.temporal_attention.attention.qkv.bias'),
    (
      'block{i}/time_attention/proj',
      f'{_IN_LAYER}.temporal_attention.output.dense',
    ),
    ('block{i}/time_proj', f'{_IN_LAYER}.temporal_dense'),
  ),
  models=('timesformer',),
  aliases=((r'^(embeddings|encoder|layernorm)\.', r'timesformer.\1.'),),
  leading={
    'timesformer.embeddings.cls_token': 2,
    'timesformer.embeddings.position_embeddings': 1,
    'timesformer.embeddings.time_embeddings': 1,
  },
  of_frames=('timesformer.embeddings.patch_embeddings.projection.weight',),
  # The default of TimesformerConfig.
  constants={'layer_norm_eps': 1e-6},
  licence='CC-BY-NC 4.0 for the weights of TimeSformer: no commercial use',
)

# torchvision 0.29.1, models/video/mvit.py: mvit_v2_s.
_MVIT = Format(
  rules=(
    ('embed', 'conv_proj'),
    ('class_token', 'pos_encoding.class_token'),
    ('block{i}/norm1', 'blocks.{i}.norm1'),
    ('block{i}/norm2', 'blocks.{i}.norm2'),
    ('block{i}/shortcut', 'blocks.{i}.project'),
    ('block{i}/attention/qkv', 'blocks.{i}.attn.qkv'),
    (_BIASES, 'blocks.{i}.attn.qkv.bias'),
    ('block{i}/attention/pool_{q}/conv', 'blocks.{i}.attn.pool_{q}.pool'),
    ('block{i}/attention/pool_{q}/norm', 'blocks.{i}.attn.pool_{q}.norm_act.0'),
    *(
      (
        f'block{{i}}/attention/rel_pos_{axis}',
        f'blocks.{{i}}.attn.rel_pos_{axis}',
      )
      for axis in 'thw'
    ),
    ('block{i}/attention/proj', 'blocks.{i}.attn.project.0'),
    ('block{i}/mlp/fc1', 'blocks.{i}.mlp.0'),
    ('block{i}/mlp/fc2', 'blocks.{i}.mlp.3'),
    ('norm', 'norm'),
    ('head/classifier', 'head.1'),
  ),
  models=('mvit',),
  licence='BSD-3-Clause for the weights of torchvision',
)


def _torch_axes(name: str, tensor: Tensor) -> Tensor:
  """Gives VideoPrism's arrays the axes of torch's; biases lose their heads."""
  leaf = name.rpartition('/')[2]
  n = len(tensor.shape)
  change: Callable[[np.ndarray], np.ndarray]
  if leaf == 'w' and n == 3:  # Features, heads, features of a head.
    merged = lambda array: array.reshape(len(array), -1)
    # Of the layer behind attention, heads are what goes in.
    change = (
      merged if name.endswith('/post/w') else lambda array: merged(array).T
    )
  elif name == 'patch_projection/linear/kernel' and n == 2:
    side = math.isqrt(tensor.shape[0] // 3)
    if 3 * side**2 != tensor.shape[0]:
      return tensor
    change = lambda array: array.reshape(1, side, side, 3, -1).transpose(
      4, 3, 0, 1, 2
    )
  elif leaf == 'kernel' and n == 2:
    change = np.transpose
  elif leaf == 'b':
    change = np.ravel
  else:
    return tensor
  return dataclasses.replace(
    tensor,
    shape=change(np.broadcast_to(0, tensor.shape)).shape,
    read=lambda: change(tensor.read()),
  )


def _heads(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """The heads of VideoPrism, which arrays have an axis of."""
  for name, shape in shapes.items():
    if name.endswith('/self_attention/query/w') and len(shape) == 3:
      return {'heads': shape[1]}
  return {}


_LEFT_OUT_OF_VIDEOS_AND_TEXTS = (
  r'(text_encoder|auxiliary_encoder|contrastive_vision_pooler)/.*',
  "of the model of videos and texts: the classifier doesn't use it",
)

# google-deepmind/videoprism d481d91, videoprism/encoders.py: FactorizedEncoder
# (which released files are of), FactorizedVideoClassifier, and the encoder of
# videos in FactorizedVideoCLIP. Stacked layers are apart: flax_files.unstack.
_IN_LAYER = '{x}_encoder/transformers_stack/x_layers_{i}'
_POOLER = 'atten_pooler/pooling_attention'
_VIDEOPRISM = Format(
  rules=(
    ('embed', 'patch_projection/linear'),
    ('{x}/position_table', '{x}_pos_emb/emb_var'),
    ('{x}/norm', '{x}_ln'),
    ('{x}/block{i}/norm1', f'{_IN_LAYER}/layer_norm'),
    (
      '{x}/block{i}/attention/qkv/kernel',
      tuple(
        f'{_IN_LAYER}/self_attention/{part}/w'
        for part in ('query', 'key', 'value')
      ),
    ),
    *(
      (
        f'{{x}}/block{{i}}/attention/{part[0]}_bias',
        f'{_IN_LAYER}/self_attention/{part}/b',
      )
      for part in ('query', 'key', 'value')
    ),
    *_projection(
      '{x}/block{i}/attention/proj', f'{_IN_LAYER}/self_attention/post'
    ),
    ('{x}/block{i}/norm2', f'{_IN_LAYER}/ff_layer/layer_norm'),
    ('{x}/block{i}/mlp/fc1', f'{_IN_LAYER}/ff_layer/ffn_layer1/linear'),
    ('{x}/block{i}/mlp/fc2', f'{_IN_LAYER}/ff_layer/ffn_layer2/linear'),
    ('probe/query', f'{_POOLER}_query'),
    ('probe/per_dim_scale', f'{_POOLER}/per_dim_scale/per_dim_scale'),
    *_projection('probe/q', f'{_POOLER}/query'),
    *_projection('probe/k', f'{_POOLER}/key'),
    *_projection('probe/v', f'{_POOLER}/value'),
    *_projection('probe/proj', f'{_POOLER}/post'),
    ('probe/norm', f'{_POOLER}_layer_norm'),
    ('head/classifier', 'projection/linear'),
  ),
  leaves={'kernel': '/kernel', 'scale': '/scale', 'bias': '/bias'},
  models=('videoprism',),
  aliases=((r'^(params/)?((vision_)?encoder/)?', ''),),
  leading={f'{_POOLER}_query': 1},
  left_out=(_LEFT_OUT_OF_VIDEOS_AND_TEXTS,),
  # Of all released networks.
  constants={'layer_norm_eps': 1e-6, 'logit_cap': 50.0},
  as_torch=_torch_axes,
  shown=_heads,
  # Its README has Apache-2.0 for software, CC-BY 4.0 for 'other materials'.
  licence='CC-BY 4.0 for the weights of VideoPrism (its software: Apache-2.0)',
)

FORMATS = {
  'huggingface_videomae': _VIDEOMAE_HF,
  'huggingface_vjepa2': _VJEPA2_HF,
  'videomae': _VIDEOMAE,
  'vjepa2': _VJEPA2,
  'huggingface_vivit': _VIVIT_HF,
  'huggingface_timesformer': _TIMESFORMER_HF,
  'torchvision_mvit': _MVIT,
  'videoprism': _VIDEOPRISM,
}
