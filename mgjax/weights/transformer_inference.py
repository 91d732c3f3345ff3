"""The video transformer that a file of weights is of; see inference.py.

Shapes show all sizes but the number of heads, which leaves no trace.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flax import traverse_util

from mgjax.models import HEAD
from mgjax.weights import naming
from mgjax.weights.naming import Part, Path
from mgjax.weights.tensors import Tensor

# Modules between the encoder and the classifier.
BEHIND = frozenset({'norm', 'pool_norm', 'probe'})

_MAX_BLOCKS = 64  # A ViT-g has 40.
_BLOCK = (
  '(norm1|norm2)/(scale|bias)',
  'attention/qkv/kernel',
  'attention/(q|k|v)_bias',
  '(attention/proj|mlp/fc1|mlp/fc2)/(kernel|bias)',
)
_NUMBERS = '|'.join(map(str, range(_MAX_BLOCKS)))
_ENDS = '(embed|head/classifier)/(kernel|bias)'
# All variables that a network of any size may have, by config.model.name.
_VARIABLES = {
  'vit': (
    _ENDS,
    '(class_token|position_table)',
    '(norm|pool_norm|probe/norm1|probe/norm2)/(scale|bias)',
    'probe/query',
    'probe/(q|kv|mlp/fc1|mlp/fc2)/(kernel|bias)',
    *(
      f'{place}block({_NUMBERS})/{variable}'
      for place in ('', 'probe/')
      for variable in _BLOCK
    ),
  ),
  'videoprism': (
    _ENDS,
    '(spatial|temporal)/(position_table|norm/scale|norm/bias)',
    *(
      f'(spatial|temporal)/block({_NUMBERS})/{variable}' for variable in _BLOCK
    ),
    'probe/(query|per_dim_scale|norm/scale|norm/bias)',
    'probe/(q|k|v|proj)/(kernel|bias)',
  ),
  'mvit': (
    _ENDS,
    'class_token',
    'norm/(scale|bias)',
    *(
      f'block({_NUMBERS})/{variable}'
      for variable in (
        *_BLOCK,
        'shortcut/(kernel|bias)',
        'attention/rel_pos_(t|h|w)',
        'attention/pool_(q|k|v)/(conv/kernel|norm/scale|norm/bias)',
      )
    ),
  ),
  'timesformer': (
    _ENDS,
    '(class_token|position_table|time_table)',
    'norm/(scale|bias)',
    *(
      f'block({_NUMBERS})/{variable}'
      for variable in (
        *_BLOCK,
        'time_norm/(scale|bias)',
        'time_attention/qkv/kernel',
        'time_attention/(q|k|v)_bias',
        '(time_attention/proj|time_proj)/(kernel|bias)',
      )
    ),
  ),
}
MODELS = tuple(_VARIABLES)
# Widths of published networks whose heads are not 64 wide.
_HEADS = {1280: 16}


class _Leaf:
  """Stands for an array of which the shape does not matter."""

  shape = (6,)  # It divides into queries, keys and values.


def choices(pattern: str) -> Iterator[str]:
  """Yields what a pattern stands for: of 'a(b|c)d', 'abd' and 'acd'."""
  parts = [part.split('|') for part in re.split(r'[()]', pattern)]
  return map(''.join, itertools.product(*parts))


@functools.cache
def _possible_names(form: str, model: str) -> Mapping[str, tuple[Part, ...]]:
  """Names of all that a network of any size may have, with our parts."""
  paths = itertools.chain.from_iterable(map(choices, _VARIABLES[model]))
  tree = traverse_util.unflatten_dict(
    {('params', *path.split('/')): _Leaf() for path in paths}
  )
  return naming.names(form, tree, model, may_lack=lambda path: True)


def is_behind(name: str, form: str, model: str) -> bool:
  """Whether a tensor is of what comes behind the encoder, up to the logits.

  Args:
    name: As a format has it.
    form: A key of naming.FORMATS.
    model: config.model.name.
  """
  if model not in MODELS:
    return False
  parts = _possible_names(form, model).get(name, ())
  return any(part.path[1] in (*BEHIND, HEAD) for part in parts)


def infer(state: Mapping[str, Tensor], model: str) -> dict[str, Any] | None:
  """Options of a model by the names and shapes of a file's tensors.

  Args:
    state: Tensors by name.
    model: One of MODELS.

  Returns:
    Values of config.model's fields; of the heads, a usual number. None where
    names are of no format known for this model.
  """
  form, ours = max(
    ((form, _shapes(state, form, model)) for form in naming.FORMATS),
    key=lambda found: len(found[1]),
  )
  found = _OPTIONS[model](ours)
  if found is None:
    return None
  rules = naming.FORMATS[form]
  shown = rules.shown({rules.canonical(n): t.shape for n, t in state.items()})
  found = {'name': model, **rules.only, **found, **shown}
  if HEAD in {path[1] for path in ours}:
    head = _kernel(ours, f'{HEAD}/classifier') or (None,)
    found['num_classes'] = head[0]
  return found


def _vit_options(ours: Mapping[Path, tuple[int, ...]]) -> dict | None:
  found = _common_options(ours, 'block0/mlp/fc1')
  depth, embed = _count(ours, ()), _kernel(ours, 'embed')
  if not depth or found is None or len(embed) != 5:
    return None
  found |= {
    'depth': depth,
    'heads': _usual_heads(found['width']),
    'tubelet_frames': embed[2],
    'qkv_bias': ''.join(
      part
      for part in 'qkv'
      if ('params', 'block0', 'attention', f'{part}_bias') in ours
    ),
  }
  modules = {path[1] for path in ours}
  if 'probe' in modules:
    found |= {'pool': 'probe', 'probe_blocks': _count(ours, ('probe',))}
  elif 'pool_norm' in modules:
    found['pool'] = 'mean'
  elif 'class_token' in modules:
    found['pool'] = 'class'
  elif HEAD in modules:
    found['pool'] = 'first'
  return found


def _timesformer_options(ours: Mapping[Path, tuple[int, ...]]) -> dict | None:
  found, depth = _common_options(ours, 'block0/mlp/fc1'), _count(ours, ())
  if not depth or found is None:
    return None
  found |= {'depth': depth, 'heads': _usual_heads(found['width'])}
  places, frames = (
    ours.get(('params', f'{table}_table'), ()) for table in ('position', 'time')
  )
  if places and frames:  # One of the places is the class token's.
    found |= _square_grid(frames[0], places[0] - 1, found['patch_px'])
  return found


def _videoprism_options(ours: Mapping[Path, tuple[int, ...]]) -> dict | None:
  found = _common_options(ours, 'spatial/block0/mlp/fc1')
  depths = [_count(ours, (place,)) for place in ('spatial', 'temporal')]
  if not all(depths) or found is None:
    return None
  found['spatial_depth'], found['temporal_depth'] = depths
  places, frames = (
    ours.get(('params', place, 'position_table'), ())
    for place in ('spatial', 'temporal')
  )
  if places and frames:
    found |= _square_grid(frames[0], places[0], found['patch_px'])
  return found


def _mvit_options(ours: Mapping[Path, tuple[int, ...]]) -> dict | None:
  depth, embed = _count(ours, ()), _kernel(ours, 'embed')
  widths = [
    ours.get(('params', f'block{i}', 'norm2', 'scale'), (0,))[0]
    for i in range(depth)
  ]
  in_head, pool = (
    ours.get(('params', 'block0', 'attention', *path), ())
    for path in (('rel_pos_t',), ('pool_k', 'conv', 'kernel'))
  )
  if not depth or len(embed) != 5 or len(in_head) != 2 or len(pool) != 5:
    return None
  return {
    'blocks': tuple(len(list(stage)) for _, stage in itertools.groupby(widths)),
    'width': widths[0],
    'heads': widths[0] // max(in_head[1], 1),
    'patch_kernel': embed[2:],
    'pool_kernel': pool[2:],
  }


_OPTIONS: Mapping[
  str, Callable[[Mapping[Path, tuple[int, ...]]], dict[str, Any] | None]
] = {
  'vit': _vit_options,
  'videoprism': _videoprism_options,
  'mvit': _mvit_options,
  'timesformer': _timesformer_options,
}


def _common_options(
  ours: Mapping[Path, tuple[int, ...]], fc1: str
) -> dict[str, Any] | None:
  """Width, MLP and patch, of the first layers; None: they are not there."""
  embed, hidden = _kernel(ours, 'embed'), _kernel(ours, fc1)
  if len(embed) not in (4, 5) or not hidden:
    return None
  return {
    'width': embed[0],
    'mlp_width': 0 if hidden[0] == 4 * embed[0] else hidden[0],
    'patch_px': embed[-1],
  }


def _kernel(
  ours: Mapping[Path, tuple[int, ...]], module: str
) -> tuple[int, ...]:
  return ours.get(('params', *module.split('/'), 'kernel'), ())


def _square_grid(frames: int, places: int, patch_px: int) -> dict[str, Any]:
  """The grid of tables of positions, whose places are mostly a square."""
  side = math.isqrt(places)
  if side**2 != places:
    return {}
  return {'position_grid': (frames, side * patch_px, side * patch_px)}


def _shapes(
  state: Mapping[str, Tensor], form: str, model: str
) -> dict[Path, tuple[int, ...]]:
  """Shapes of a file's tensors, by our variables that are in them."""
  table, rules = _possible_names(form, model), naming.FORMATS[form]
  return {
    part.path: rules.as_torch(name, tensor).shape[rules.leading.get(name, 0) :]
    for name, tensor in (
      (rules.canonical(name), tensor) for name, tensor in state.items()
    )
    for part in table.get(name, ())
  }


def _count(ours: Mapping[Path, Any], place: Path) -> int:
  """How many blocks there are at a place."""
  blocks = {
    path[len(place) + 1]
    for path in ours
    if path[1 : len(place) + 1] == place
    and re.fullmatch(r'block\d+', path[len(place) + 1])
  }
  return len(blocks)


def _usual_heads(width: int) -> int:
  """Heads of 64 features, as most networks have; or one head."""
  return _HEADS.get(width) or (width // 64 if width % 64 == 0 else 1)
