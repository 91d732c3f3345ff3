"""Names of convolutional networks in the files of other frameworks.

A layer has a convolution and a norm, our 'LAYER/conv' and 'LAYER/norm'; on the
right of its rule stands [what theirs is called for one|for the other].

In a rule, {p} is a pathway ('', 'slow_' or 'fast_'), {s} a stage, {r} a branch
of it, {i} a block, {c} a convolution of the block, {n} a convolution of a
non-local block, {k} a number. On the right they stand as the format writes
them, and {t} is a row of a temporal aggregation's kernel, which is a tensor of
its own elsewhere.
"""

from mgjax.weights.formats import TORCH_LEAVES, Format


def _pathway_number(fields: dict) -> str:
  return '1' if fields.get('p') == 'fast_' else '0'


_OF_FACEBOOK = ('c2d', 'i3d', 'slow', 'slowfast')

# PySlowFast 287ec00, models/resnet_helper.py and its neighbours.
_PYSLOWFAST = Format(
  rules=(
    ('{p}stem/layer', 's1.pathway{p}_stem.[conv|bn]'),
    ('fuse_stem', 's1_fuse.[conv_f2s|bn]'),
    ('fuse_res{s}', 's{s}_fuse.[conv_f2s|bn]'),
    ('{p}res{s}/block{i}/shortcut', 's{s}.pathway{p}_res{i}.branch1[|_bn]'),
    ('{p}res{s}/block{i}/{c}', 's{s}.pathway{p}_res{i}.branch2.{c}[|_bn]'),
    ('{p}res{s}/nonlocal{i}/norm', 's{s}.pathway{p}_nonlocal{i}.bn'),
    ('{p}res{s}/nonlocal{i}/{n}', 's{s}.pathway{p}_nonlocal{i}.conv_{n}'),
    ('{p}res{s}/nonlocal{i}/{n}/conv', 's{s}.pathway{p}_nonlocal{i}.conv_{n}'),
    ('head/classifier', 'head.projection'),
  ),
  leaves=TORCH_LEAVES,
  fields=lambda fields, model, last: fields | {'p': _pathway_number(fields)},
  models=_OF_FACEBOOK,
)


def _pytorchvideo_fields(fields: dict, model: str, last: dict) -> dict:
  stage = int(fields.get('s', 1))
  # C2D and I3D have their temporal pool as block 2, between res2 and res3.
  block = stage - 1 + (model in ('c2d', 'i3d') and stage > 2)
  pathway = ''
  if model == 'slowfast':
    pathway = f'.multipathway_blocks.{_pathway_number(fields)}'
  # In front of the head: that pool, or SlowFast's concatenation.
  return fields | {
    'b': f'{block}{pathway}',
    'blocks': f'blocks.{block}{pathway}.res_blocks',
    'f': block,
    'h': 5 if model == 'slow' else 6,
  }


# pytorchvideo f3142bb, models/resnet.py, slowfast.py (hub files).
_PYTORCHVIDEO = Format(
  rules=(
    ('{p}stem/layer', 'blocks.{b}.[conv|norm]'),
    ('fuse_stem', 'blocks.0.multipathway_fusion.[conv_fast_to_slow|norm]'),
    ('fuse_res{s}', 'blocks.{f}.multipathway_fusion.[conv_fast_to_slow|norm]'),
    ('{p}res{s}/block{i}/shortcut', '{blocks}.{i}.branch1_[conv|norm]'),
    ('{p}res{s}/block{i}/{c}', '{blocks}.{i}.branch2.[conv|norm]_{c}'),
    ('head/classifier', 'blocks.{h}.proj'),
  ),
  leaves=TORCH_LEAVES,
  fields=_pytorchvideo_fields,
  models=_OF_FACEBOOK,
)


def _caffe2_fields(fields: dict, model: str, last: dict) -> dict:
  # Laterals are named after the fast block whose output they take.
  return fields | {
    'p': 't_' if fields.get('p') == 'fast_' else '',
    'last': last.get(f'fast_res{fields.get("s")}'),
  }


# PySlowFast 287ec00, utils/c2_model_loading.py.
_CAFFE2 = Format(
  rules=(
    ('{p}stem/layer', '[{p}conv1|{p}res_conv1_bn]'),
    ('fuse_stem', 't_pool1_subsample[|_bn]'),
    ('fuse_res{s}', 't_res{s}_{last}_branch2c_bn_subsample[|_bn]'),
    ('{p}res{s}/block{i}/shortcut', '{p}res{s}_{i}_branch1[|_bn]'),
    ('{p}res{s}/block{i}/{c}', '{p}res{s}_{i}_branch2{c}[|_bn]'),
    ('{p}res{s}/nonlocal{i}/norm', 'nonlocal_conv{s}_{i}_bn'),
    ('{p}res{s}/nonlocal{i}/{n}', 'nonlocal_conv{s}_{i}_{n}'),
    ('{p}res{s}/nonlocal{i}/{n}/conv', 'nonlocal_conv{s}_{i}_{n}'),
    ('head/classifier', 'pred'),
  ),
  leaves={
    'kernel': '_w',
    'scale': '_s',
    'bias': '_b',
    'mean': '_rm',
    'var': '_riv',
  },
  fields=_caffe2_fields,
  models=_OF_FACEBOOK,
)


def _row_name(fields: dict, ending: str) -> str:
  """Rows of three frames have names, with an ending; other ones numbers."""
  row, count = fields.get('t', (0, 3))
  if count == 3:
    return ('prev', 'curr', 'next')[row] + ending
  return f'blending_layers.{row}'


def _layer_fields(fields: dict, model: str, last: dict) -> dict:
  """Stages count from 1 and convolutions from 1."""
  return fields | {
    's': int(fields.get('s') or 2) - 1,
    'c': 'abc'.index(fields.get('c') or 'a') + 1,
    't': _row_name(fields, '_se'),
  }


# torchvision's ResNet, which timm's and MIT's follow; what it lacks is called
# as in IBM/action-recognition-pytorch 67cc96f.
_TORCHVISION = Format(
  rules=(
    ('stem/layer', '[conv|bn]1'),
    ('res{s}/block{i}/shortcut', 'layer{s}.{i}.downsample.[0|1]'),
    ('res{s}/block{i}/{c}', 'layer{s}.{i}.[conv|bn]{c}'),
    ('res{s}/block{i}/{c}_t', 'layer{s}.{i}.[conv|bn]{c}_t'),
    ('res{s}/block{i}/temporal', 'layer{s}.{i}.tam.{t}.fc1'),
    ('head/classifier', 'fc'),
  ),
  leaves=TORCH_LEAVES,
  fields=_layer_fields,
)


def _biglittle_fields(fields: dict, model: str, last: dict) -> dict:
  # Where a block strides, a pool comes first in its shortcut.
  first = 0 if fields.get('r') == 'little' else 1
  return _layer_fields(fields, model, last) | {
    'd': first,
    'e': first + 1,
    't': _row_name(fields, ''),
  }


# IBM/BigLittleNet dff4654 and IBM/bLVNet-TAM feadcd3.
_BIGLITTLE = Format(
  rules=(
    ('stem/layer', '[conv|bn]1'),
    ('stem/big', '[b_conv0|bn_b0]'),
    ('stem/little{k}', '[l_conv|bn_l]{k}'),
    ('stem/merge', '[bl_init|bn_bl_init]'),
    ('stem/temporal', 'tam.{t}'),
    ('res{s}/temporal', 'layer{s}.tam.{t}'),
    ('res{s}/{r}/block{i}/shortcut', 'layer{s}.{r}.{i}.downsample.[{d}|{e}]'),
    ('res{s}/{r}/block{i}/{c}', 'layer{s}.{r}.{i}.[conv|bn]{c}'),
    ('res{s}/expand', 'layer{s}.little_e.[0|1]'),
    ('res{s}/fusion/{c}', 'layer{s}.fusion.0.[conv|bn]{c}'),
    ('res{s}/block{i}/shortcut', 'layer{s}.{i}.downsample.[{d}|{e}]'),
    ('res{s}/block{i}/{c}', 'layer{s}.{i}.[conv|bn]{c}'),
    ('res{s}/block{i}/temporal', 'layer{s}.{i}.tam.{t}'),
    ('head/classifier', 'fc'),
  ),
  leaves=TORCH_LEAVES,
  fields=_biglittle_fields,
  models=('blresnet', 'blvnet_tam'),
)

# mmaction2, models/backbones/resnet.py, resnet3d_slowonly.py. Its I3D has names
# and shapes of ours but strides time in the stem, and its SlowFast has no
# normalisation in the laterals; its C2D pools without padding: those are other
# networks.
_MMACTION2 = Format(
  rules=(
    ('stem/layer', 'backbone.conv1.[conv|bn]'),
    ('res{s}/block{i}/shortcut', 'backbone.layer{s}.{i}.downsample.[conv|bn]'),
    ('res{s}/block{i}/{c}', 'backbone.layer{s}.{i}.conv{c}.[conv|bn]'),
    ('head/classifier', 'cls_head.fc_cls'),
  ),
  leaves=TORCH_LEAVES,
  fields=_layer_fields,
  models=('slow', 'tsn', 'tsm'),
)

FORMATS = {
  'pyslowfast': _PYSLOWFAST,
  'pytorchvideo': _PYTORCHVIDEO,
  'caffe2': _CAFFE2,
  'mmaction2': _MMACTION2,
  'torchvision': _TORCHVISION,
  'biglittle': _BIGLITTLE,
}
