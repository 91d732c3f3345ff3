"""Reads what a file of weights has beside tensors, and normalises names."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mgjax.errors import ConfigError
from mgjax.weights import (
  checks,
  flax_files,
  hugging_face,
  pyslowfast_cfg,
  safetensors_files,
  torch_files,
)
from mgjax.weights.facts import Fact
from mgjax.weights.tensors import Tensor

# Where checkpoints keep their weights, the first that is there; a file without
# any of these is itself the dict of tensors. `classifiers` is a list of them.
_STATE_KEYS = (
  'model_state',
  'state_dict',
  'model',
  'module',
  'blobs',
  'target_encoder',
  'encoder',
  'classifiers',
)
_PREDICTOR = "the predictor of the pre-training: the classifier doesn't use it"
# Why a part of a file is left out that looks like weights.
_OTHER_KEYS = {
  'encoder': 'as it is trained; target_encoder, its average, is taken: V-JEPA '
  "2's probes are on that",
  'predictor': _PREDICTOR,
  **dict.fromkeys(
    ('model_ema', 'state_dict_ema', 'ema_state_dict', 'ema', 'model_state_ema'),
    'an average of the weights; those of the last step are taken',
  ),
}
# What torch's AveragedModel has beside the weights.
_AVERAGED = 'n_averaged'
# Put in front of every name by wrappers of models.
_PREFIXES = ('module.', 'model.')
# The backbone inside a network of MIT or IBM, and its classifier beside it.
_RENAMED = (('(base_model|baseline_model)\\.', ''), ('new_fc\\.', 'fc.'))


class File(NamedTuple):
  """What is in a file.

  Attributes:
    state: Tensors by name, without wrappers' prefixes and with one set of
      statistics per batch norm.
    left_out: What else it holds, with the reason to leave it.
    made: How tensors of `state` that the file does not hold were made.
    check: What `checks.make` made, where the file has it.
    facts: What the configuration in the file, or beside it, says about ours.
    labels: Names of the classes, where it has them.
    notes: Lines about the file.
  """

  state: dict[str, Tensor]
  left_out: dict[str, str]
  made: dict[str, str]
  check: dict[str, np.ndarray]
  facts: list[Fact] = []
  notes: tuple[str, ...] = ()
  labels: tuple[str, ...] = ()


def read(path: pathlib.Path, probe: pathlib.Path | None = None) -> File:
  """Reads a checkpoint, a dict of tensors, or a folder of transformers.

  Args:
    path: A file, or a folder that has one.
    probe: A file with what comes behind the encoder; None: `path` has all.

  Raises:
    ConfigError: It cannot be read, holds no tensors, or both files have one.
  """
  file = _read_one(path)
  if probe is None:
    return file
  other = _read_one(probe)
  if both := sorted(file.state.keys() & other.state.keys()):
    raise ConfigError(f'{path} and {probe} both hold {both[0]}')
  return file._replace(
    state=file.state | other.state,
    left_out=file.left_out
    | {f'{probe.name}: {name}': why for name, why in other.left_out.items()},
    notes=(*file.notes, *other.notes),
  )


def _read_one(path: pathlib.Path) -> File:
  content: dict[str, Any] = {}
  for part in hugging_face.files_of(path):
    loaded = torch_files.load(part)
    metadata = loaded.pop(safetensors_files.METADATA, None)
    if both := sorted(map(str, content.keys() & loaded.keys())):
      raise ConfigError(f'{path}: two of its files hold {both[0]}')
    content |= loaded
  check = checks.read(content.pop(checks.KEY, None)) or checks.from_text(
    metadata
  )
  notes: tuple[str, ...] = ()
  left_out = {}
  key = next((k for k in _STATE_KEYS if _is_state(content.get(k))), None)
  cfg = content.get('cfg')
  if key:
    left_out = {
      str(k): _OTHER_KEYS.get(k, 'not a weight') for k in content if k != key
    }
    content = content[key]
  if isinstance(content, list | tuple):
    if len(content) > 1:
      notes = (f'{path}: {key} has {len(content)}; the first is taken',)
    content = content[0]
  state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
  left_out |= {str(k): 'not a tensor' for k in content if str(k) not in state}
  if not state:
    raise ConfigError(f'{path}: holds no tensors, only {list(content)[:5]}')
  if _AVERAGED in state:
    left_out[_AVERAGED] = 'of how many steps the weights are the average'
    del state[_AVERAGED]
  # One wrapper may be around another.
  while prefix := next((p for p in _PREFIXES if _all_have(p, state)), ''):
    state = {name.removeprefix(prefix): v for name, v in state.items()}
  for pattern, word in _RENAMED:
    state = {re.sub(f'^{pattern}', word, n): v for n, v in state.items()}
  state, made, dropped = merge_split_statistics(state)
  state, layers = flax_files.unstack(state)
  made |= layers
  facts, labels, folder = [], [], hugging_face.folder_of(path)
  if folder:
    facts = hugging_face.read_facts(folder)
    labels = hugging_face.read_labels(folder) if facts else []
  if 'cfg' in left_out:
    try:
      cfg = pyslowfast_cfg.read(cfg)
    except ConfigError as error:
      notes = (*notes, f'{error}: it is not used')
    else:
      left_out['cfg'] = 'read'
      try:
        facts = pyslowfast_cfg.facts(cfg)
      except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error
  left_out |= dropped
  return File(state, left_out, made, check, facts, notes, tuple(labels))


def _all_have(prefix: str, state: Mapping[str, Tensor]) -> bool:
  return bool(state) and all(name.startswith(prefix) for name in state)


def _is_state(value: Any) -> bool:
  """Whether an entry of a file holds tensors by name, or a list of such."""
  if isinstance(value, list | tuple):
    return bool(value) and all(isinstance(item, dict) for item in value)
  return isinstance(value, dict)


def merge_split_statistics(
  state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
  """Turns sub-batch norms, as they are in memory, into plain ones.

  In PySlowFast a norm N of S splits has statistics N.split_bn (S x C, by
  split), from which it makes N.bn (C) before an evaluation. Whether it has
  done so cannot be seen in a file, so that is done here: the mean of means,
  and the mean of variances plus the variance of means.

  Returns:
    The tensors with one set of statistics per norm; how those were made; what
    became of the others, by name.

  Raises:
    ConfigError: A variance of a split is negative: their mean may hide it.

  Source: PySlowFast 287ec00, models/batchnorm_helper.py, aggregate_stats.
  """
  ending = '.split_bn.running_var'
  norms = [n.removesuffix(ending) for n in state if n.endswith(ending)]
  merged, made, rest = {}, {}, {}
  for name, tensor in state.items():
    norm, _, part = name.rpartition('.')[0].rpartition('.')
    if norm not in norms or part not in ('split_bn', 'bn'):
      merged[name] = tensor
    elif name.endswith('.num_batches_tracked'):
      rest[name] = 'dropped: counts batches'
    elif part == 'bn':
      rest[name] = 'dropped: made of the splits, may be older than they are'
    else:
      rest[name] = 'replaced by what is recomputed of all splits'
  for norm in norms:
    channels = state[f'{norm}.weight'].shape[0]
    splits = state[norm + ending].shape[0] // max(channels, 1)
    mean, var = (
      state[f'{norm}.split_bn.running_{s}'].numpy().reshape(splits, -1)
      for s in ('mean', 'var')
    )
    if not (var >= 0).all():
      raise ConfigError(
        f'{norm}{ending} holds variances that are negative or NaN'
      )
    for name, array, how in (
      ('mean', mean.mean(0), f'mean over {splits} splits'),
      (
        'var',
        var.mean(0) + mean.var(0),
        f'mean of variances plus variance of means, {splits} splits',
      ),
    ):
      merged[f'{norm}.running_{name}'] = _in_memory(array)
      made[f'{norm}.running_{name}'] = f'recomputed: {how}'
  return merged, made, rest


def _in_memory(array: np.ndarray) -> Tensor:
  return Tensor(array.shape, array.dtype, lambda: array)
