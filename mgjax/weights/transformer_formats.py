"""Names of video transformers in the files of other frameworks.

In a rule, {i} is a block. Queries, keys and values are one matrix here. What
the frameworks fuse and what they keep apart differs, also between a program and
the files that it writes.
"""

from mgjax.weights.formats import Format

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


# transformers 5.24.0, VideoMAEForVideoClassification: the names of its files,
# which differ from those in memory by the biases. Models without a head have no
# prefix.
_IN_LAYER = 'videomae.encoder.layer.{i}'
_VIDEOMAE_HF = Format(
  rules=(
    ('embed', 'videomae.embeddings.patch_embeddings.projection'),
    ('block{i}/norm1', f'{_IN_LAYER}.layernorm_before'),
    (
      'block{i}/attention/qkv',
      _modules(f'{_IN_LAYER}.attention.attention', 'query', 'key', 'value'),
    ),
    (_BIASES[0], f'{_IN_LAYER}.attention.attention.q_bias'),
    (_BIASES[2], f'{_IN_LAYER}.attention.attention.v_bias'),
    ('block{i}/attention/proj', f'{_IN_LAYER}.attention.output.dense'),
    ('block{i}/norm2', f'{_IN_LAYER}.layernorm_after'),
    ('block{i}/mlp/fc1', f'{_IN_LAYER}.intermediate.dense'),
    ('block{i}/mlp/fc2', f'{_IN_LAYER}.output.dense'),
    ('norm', 'videomae.layernorm'),
    ('pool_norm', 'fc_norm'),
    ('head/classifier', 'classifier'),
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

FORMATS = {
  'huggingface_videomae': _VIDEOMAE_HF,
  'huggingface_vjepa2': _VJEPA2_HF,
  'videomae': _VIDEOMAE,
  'vjepa2': _VJEPA2,
}
