"""The network that a file of weights is of, by names and shapes of its tensors.

Where weights do not fit the given model, this says which one they fit. Names
and shapes show depth, width, classes, lateral and temporal kernels; they do not
show alpha, say, which is a stride (setup/weights.py, `unverified`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flax import traverse_util

from mgjax.config import network_options
from mgjax.models import resnet3d
from mgjax.weights import naming, transformer_inference
from mgjax.weights.naming import Part
from mgjax.weights.tensors import Tensor

# A module that shifts wraps what comes behind it (TSM), by model.shift_place.
SHIFTED = {
  'blockres': r'(conv1(?:\.conv)?)\.net\.',
  'block': r'(\.\d+)\.net\.',
}
_PAIRED = ('slowfast',)
_BIG_LITTLE = ('blresnet', 'blvnet_tam')
_ON_SEGMENTS = ('tsn', 'tsm', 'tam', 'i3d_resnet', 's3d_resnet')
_KERNEL = ('conv', 'kernel')
_FUSE_STEM = ('fuse_stem',)
_MAX_BLOCKS = 40  # Of a stage; a ResNet-152 has 36.
_MAX_STAGES = 4


class _Leaf:
  """Stands for an array of which the first axis is known."""

  def __init__(self, rows: int):
    self.shape = (rows,)


def infer(state: Mapping[str, Tensor], model: str) -> dict[str, Any] | None:
  """Options of a model by the names and shapes of a file's tensors.

  Whether the model with these options fits the file is another question.

  Args:
    state: Tensors by name.
    model: config.model.name.

  Returns:
    Values of config.model's fields; None where names are of no format known
    for this model.
  """
  if model in transformer_inference.MODELS:
    return transformer_inference.infer(state, model)
  found: dict[str, Any] = {}
  if model == 'tsm':
    for place, pattern in SHIFTED.items():
      plain = {re.sub(pattern, r'\1.', name): v for name, v in state.items()}
      if plain.keys() != state.keys():
        found['shift_place'] = place
        state = plain
        break
  parts = {
    part: state[name].shape
    for name, (part, *_) in _likeliest_names(state, model).items()
    if name in state
  }
  ours = {part.path: s for part, s in parts.items() if part.row is None}
  kernels = {
    path[1:-2]: shape for path, shape in ours.items() if path[-2:] == _KERNEL
  }
  prefix = 'slow_' if model in _PAIRED else ''
  stem = kernels.get((f'{prefix}stem', 'layer'))
  blocks = _blocks(kernels, prefix, model)
  if stem is None or not blocks:
    return None
  found |= {'name': model, 'width': stem[0]}
  found |= _depth(kernels, blocks, model)
  head = ours.get(('params', 'head', 'classifier', 'kernel'))
  if head:
    found['num_classes'] = head[0]
  if model in _PAIRED:
    found |= _lateral(kernels, stem)
  if model in resnet3d.TEMPORAL_KERNELS or model in _PAIRED:
    found['num_temporal'] = _num_temporal(kernels, prefix, blocks, model)
    for pathway, suffix in ((prefix, ''), ('fast_', '_fast')):
      if not suffix or model in _PAIRED:
        found[f'nonlocal_blocks{suffix}'] = _nonlocal_blocks(
          ours, pathway, len(blocks)
        )
  rows = {part: s for part, s in parts.items() if part.row is not None}
  if model in ('tam', 'blvnet_tam'):
    found['tam_frames'] = len({part.row for part in rows})
  if model == 'tam' and rows:
    found['tam_depthwise'] = all(
      len(s) == 1 or s[1] == 1 for s in rows.values()
    )
  if model == 's3d_resnet':
    layers = [s for path, s in kernels.items() if path[-1].endswith('_t')]
    if layers:
      found['depthwise_temporal'] = all(shape[1] == 1 for shape in layers)
  return found


def _likeliest_names(
  state: Mapping[str, Tensor], model: str
) -> dict[str, tuple[Part, ...]]:
  """Our parts by the names of the format that knows most of the tensors."""
  # Aggregations of three frames have other names than those of more.
  tables = [
    _possible_names(name, model, rows)
    for name, form in naming.FORMATS.items()
    if not form.models or model in form.models
    for rows in (3, 9)
  ]
  return max(tables, key=lambda t: len(t.keys() & state.keys()))


def _lateral(kernels: dict, stem: tuple[int, ...]) -> dict[str, Any]:
  """Options of the fast pathway and of what joins it to the slow one."""
  found = {}
  fast, fuse = kernels.get(('fast_stem', 'layer')), kernels.get(_FUSE_STEM)
  if fast:
    found['beta_inv'] = max(1, stem[0] // fast[0])
  if fuse and len(fuse) == 5:
    found['fusion_ratio'] = max(1, fuse[0] // fuse[1])
    found['fusion_kernel'] = fuse[2]
  return found


def _possible_names(
  form: str, model: str, rows: int
) -> dict[str, tuple[Part, ...]]:
  """Names of all that a network of any depth may have, with our parts."""
  tree = traverse_util.unflatten_dict(
    {path: _Leaf(rows) for path in _possible_paths(form, model)}
  )
  return naming.names(form, tree, model, may_lack=lambda path: True)


def _possible_paths(form: str, model: str) -> Iterator[tuple[str, ...]]:
  """Yields our paths of all that a network of any depth may have."""
  stages = '|'.join(f'res{s + 2}' for s in range(_MAX_STAGES))
  indices = '|'.join(map(str, range(_MAX_BLOCKS)))
  layers = [f'({stages})/block({indices})/(shortcut|a|b|c)']
  others = [f'({stages})/block({indices})/temporal/kernel']
  if model in _BIG_LITTLE:
    layers += [
      'stem/(layer|big|little0|little1|little2|merge)',
      f'({stages})/expand',
      f'({stages})/fusion/(shortcut|a|b|c)',
      f'({stages})/(big|little)/block({indices})/(shortcut|a|b|c)',
    ]
    others += [f'(stem|{stages})/temporal/kernel']
  elif model in _ON_SEGMENTS:
    layers += ['stem/layer', f'({stages})/block({indices})/(a|b|c)_t']
  else:
    pathways = '(slow|fast)_' if model in _PAIRED else ''
    layers = [f'{pathways}stem/layer', f'{pathways}{layers[0]}']
    # The fast pathway has no non-local blocks in caffe2, and no names for them.
    if pathways and form == 'caffe2':
      pathways = 'slow_'
    place = f'{pathways}({stages})/nonlocal({indices})/theta'
    others = [f'{place}/(conv/kernel|bias)']
    if model in _PAIRED:
      layers += ['fuse_(stem|res2|res3|res4)']
  for pattern in (
    *(f'{layer}/conv/kernel' for layer in layers),
    *others,
    'head/classifier/(kernel|bias)',
  ):
    for path in transformer_inference.choices(pattern):
      yield 'params', *path.split('/')


def _blocks(kernels, prefix: str, model: str) -> tuple[int, ...]:
  """Blocks of each stage, as config.model.blocks counts them."""
  counts: list[int] = []
  for s in range(_MAX_STAGES):
    stage = f'{prefix}res{s + 2}'
    plain = {path[1] for path in kernels if path[0] == stage}
    # Of a stage of two branches, the sum's block is one more.
    big = {path[2] for path in kernels if path[:2] == (stage, 'big')}
    count = sum(name.startswith('block') for name in plain)
    count = len(big) + 1 if model in _BIG_LITTLE and big else count
    if not count:
      break
    counts.append(count)
  return tuple(counts)


def _depth(kernels, blocks: tuple[int, ...], model: str) -> dict[str, Any]:
  """The depth that has these blocks, or the blocks."""
  known = network_options.PATHWAY_BLOCKS
  if model in _BIG_LITTLE:
    known = network_options.BIG_LITTLE_BLOCKS
  elif model in _ON_SEGMENTS:
    # Basic blocks have two convolutions.
    is_basic = not any(path[-1] == 'c' for path in kernels)
    known = {
      depth: counts
      for depth, counts in network_options.FRAME_BLOCKS.items()
      if (depth < 50) == is_basic
    }
  depths = [depth for depth, counts in known.items() if counts == blocks]
  if depths:
    return {'depth': depths[0], 'blocks': ()}
  return {'depth': min(known), 'blocks': blocks}


def _num_temporal(kernels, prefix: str, blocks, model: str) -> tuple[int, ...]:
  """Blocks with temporal kernels, where they are not the architecture's."""
  arch = 'slow' if model in _PAIRED else model
  found, is_usual = [], True
  for s, count in enumerate(blocks):
    pattern = resnet3d.TEMPORAL_KERNELS[arch][s]
    last = 0
    for i in range(count):
      usual = pattern[i % len(pattern)]
      shape = kernels.get((f'{prefix}res{s + 2}', f'block{i}', 'a'), ())
      size = shape[2] if len(shape) == 5 else usual  # Images show none.
      is_usual &= size == usual
      last = i + 1 if size > 1 else last
    found.append(last or count)
  return () if is_usual else tuple(found)


def _nonlocal_blocks(ours, prefix: str, stages: int) -> tuple:
  """Blocks that a non-local one follows, per stage; () for none."""
  found = tuple(
    tuple(
      sorted(
        {
          int(path[2].removeprefix('nonlocal'))
          for path in ours
          if path[1] == f'{prefix}res{s + 2}' and path[2].startswith('nonlocal')
        }
      )
    )
    for s in range(stages)
  )
  return found if any(found) else ()
