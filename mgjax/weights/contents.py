"""Reads what a file of weights has beside tensors, and normalises names."""

import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mgjax.errors import ConfigError
from mgjax.weights import checks, pyslowfast_cfg, torch_files
from mgjax.weights.tensors import Tensor

# Where checkpoints keep their weights; a file without any of these is itself
# the dict of tensors.
_STATE_KEYS = ('model_state', 'state_dict', 'model', 'blobs')
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
    facts: What the configuration in the file says about ours.
    notes: Lines about the file.
  """

  state: dict[str, Tensor]
  left_out: dict[str, str]
  made: dict[str, str]
  check: dict[str, np.ndarray]
  facts: list[pyslowfast_cfg.Fact] = []
  notes: tuple[str, ...] = ()


def read(path: pathlib.Path) -> File:
  """Reads a checkpoint, or a dict of tensors.

  Raises:
    ConfigError: It cannot be read or holds no tensors.
  """
  content = torch_files.load(path)
  left_out = {}
  check = checks.read(content.pop(checks.KEY, None))
  key = next((k for k in _STATE_KEYS if isinstance(content.get(k), dict)), None)
  if key:
    left_out = {str(k): 'not a weight' for k in content if k != key}
    cfg = content.get('cfg')
    content = content[key]
  state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
  left_out |= {str(k): 'not a tensor' for k in content if str(k) not in state}
  if not state:
    raise ConfigError(f'{path}: holds no tensors, only {list(content)[:5]}')
  for prefix in _PREFIXES:
    if all(name.startswith(prefix) for name in state):
      state = {name.removeprefix(prefix): v for name, v in state.items()}
  for pattern, word in _RENAMED:
    state = {re.sub(f'^{pattern}', word, n): v for n, v in state.items()}
  state, made, dropped = merge_split_statistics(state)
  facts, notes = [], ()
  if 'cfg' in left_out:
    try:
      cfg = pyslowfast_cfg.read(cfg)
    except ConfigError as error:
      notes = (f'{error}: it is not used',)
    else:
      left_out['cfg'] = 'read'
      try:
        facts = pyslowfast_cfg.facts(cfg)
      except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error
  return File(state, left_out | dropped, made, check, facts, notes)


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
