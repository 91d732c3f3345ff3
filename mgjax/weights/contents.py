"""What is in a file of weights: a dict of tensors, and what is said of them."""

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
  made, dropped = _split_statistics(state)
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
  return File(
    merge_split_statistics(state), left_out | dropped, made, check, facts, notes
  )


def merge_split_statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Turns sub-batch norms, as they are in memory, into plain ones.

  In PySlowFast a norm N of S splits has statistics N.split_bn (S x C, by
  split), from which it makes N.bn (C) before an evaluation. Whether it has
  done so cannot be seen in a file, so that is done here: the mean of means,
  and the mean of variances plus the variance of means.

  Raises:
    ConfigError: A variance of a split is negative: their mean may hide it.

  Source: PySlowFast 287ec00, models/batchnorm_helper.py, aggregate_stats.
  """
  norms = _split_norms(state)
  merged = {
    name: tensor
    for name, tensor in state.items()
    if _part_of_split_norm(name, norms) is None
  }
  for norm, splits in norms.items():
    mean, var = (
      state[f'{norm}.split_bn.running_{s}'].numpy().reshape(splits, -1)
      for s in ('mean', 'var')
    )
    if not (var >= 0).all():
      raise ConfigError(
        f'{norm}.split_bn.running_var holds variances that are negative or NaN'
      )
    merged[f'{norm}.running_mean'] = _in_memory(mean.mean(0))
    merged[f'{norm}.running_var'] = _in_memory(var.mean(0) + mean.var(0))
  return merged


def _split_norms(state: Mapping[str, Tensor]) -> dict[str, int]:
  """Names of sub-batch norms, with their splits."""
  found = {}
  for name, tensor in state.items():
    if name.endswith('.split_bn.running_var'):
      norm = name.removesuffix('.split_bn.running_var')
      channels = state[f'{norm}.weight'].shape[0]
      found[norm] = tensor.shape[0] // max(channels, 1)
  return found


def _part_of_split_norm(name: str, norms: Mapping[str, int]) -> str | None:
  """'split_bn' or 'bn', which hold a sub-batch norm's statistics; or None."""
  norm, _, part = name.rpartition('.')[0].rpartition('.')
  return part if norm in norms and part in ('split_bn', 'bn') else None


def _split_statistics(
  state: Mapping[str, Tensor],
) -> tuple[dict[str, str], dict[str, str]]:
  """Says what `merge_split_statistics` makes, and what becomes of the rest."""
  norms = _split_norms(state)
  made, rest = {}, {}
  for norm, splits in norms.items():
    made[f'{norm}.running_mean'] = f'recomputed: mean over {splits} splits'
    made[f'{norm}.running_var'] = (
      f'recomputed: mean of variances plus variance of means, {splits} splits'
    )
  for name in state:
    part = _part_of_split_norm(name, norms)
    if part and name.endswith('.num_batches_tracked'):
      rest[name] = 'dropped: counts batches'
    elif part == 'bn':
      rest[name] = 'dropped: made of the splits, may be older than they are'
    elif part:
      rest[name] = 'replaced by what is recomputed of all splits'
  return made, rest


def _in_memory(array: np.ndarray) -> Tensor:
  return Tensor(array.shape, array.dtype, lambda: array)
