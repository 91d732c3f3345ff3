"""The video transformer that a file of weights is of; see inference.py.

Shapes show all sizes but the number of heads, which leaves no trace.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping
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
# All variables that a network of any size may have, by config.model.name.
_VARIABLES = {
  'vit': (
    '(embed|head/classifier)/(kernel|bias)',
    '(norm|pool_norm|probe/norm1|probe/norm2)/(scale|bias)',
    'probe/query',
    'probe/(q|kv|mlp/fc1|mlp/fc2)/(kernel|bias)',
    *(
      f'{place}block({_NUMBERS})/{variable}'
      for place in ('', 'probe/')
      for variable in _BLOCK
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
  depth = _count(ours, ())
  embed, hidden = (
    ours.get(('params', *module.split('/'), 'kernel'))
    for module in ('embed', 'block0/mlp/fc1')
  )
  if not depth or not hidden or not embed or len(embed) != 5:
    return None
  width = embed[0]
  found = {
    'name': model,
    **naming.FORMATS[form].only,
    'depth': depth,
    'width': width,
    'heads': _usual_heads(width),
    'mlp_width': 0 if hidden[0] == 4 * width else hidden[0],
    'tubelet_frames': embed[2],
    'patch_px': embed[3],
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
  elif HEAD in modules:
    found['pool'] = 'first'
  if HEAD in modules:
    head = ours.get(('params', HEAD, 'classifier', 'kernel'), (None,))
    found['num_classes'] = head[0]
  return found


def _shapes(
  state: Mapping[str, Tensor], form: str, model: str
) -> dict[Path, tuple[int, ...]]:
  """Shapes of a file's tensors, by our variables that are in them."""
  table = _possible_names(form, model)
  canonical = naming.FORMATS[form].canonical
  return {
    part.path: tensor.shape
    for name, tensor in state.items()
    for part in table.get(canonical(name), ())
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
