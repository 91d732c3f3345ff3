"""Settings that cannot work with each other or with the data set.

`train`, `plan` and `evaluate` refuse the same ones, by the same functions.
"""

import ml_collections

from mgjax.config import network_options, own
from mgjax.config.network_options import GIVEN
from mgjax.data.description import Description
from mgjax.errors import ConfigError


def check(
  config: ml_collections.ConfigDict, data: Description | None, num_devices: int
) -> None:
  """Refuses settings that cannot work with each other or with the data set.

  Args:
    config: The settings of a training.
    data: Of its data set; None: it is not known, and nothing of it is checked.
    num_devices: Devices that share each batch.

  Raises:
    ConfigError: Names the field, and what would be accepted.
  """
  check_evaluation(config, data, num_devices)
  check_norm(config)
  if config.grid.table and config.grid.mode != 'table':
    raise ConfigError(
      f'grid.table is set, but grid.mode={config.grid.mode!r} does not read '
      "it; set grid.mode='table', or leave grid.table out"
    )
  if config.optim.label_smoothing and config.optim.loss == 'sigmoid':
    raise ConfigError(
      f'optim.label_smoothing={config.optim.label_smoothing} spreads one label '
      "over the classes; with optim.loss='sigmoid' it must be 0"
    )
  if config.optim.reduce_dtype != 'float32' and own.is_own(config.model.name):
    raise ConfigError(
      f'optim.reduce_dtype is {config.optim.reduce_dtype!r}, but gradients of '
      f'model.name={config.model.name!r} are summed in the types in which it '
      "computes them; leave it at 'float32'"
    )
  for section in ('data', 'optim'):
    if config[section].class_balance and config.optim.loss == 'sigmoid':
      raise ConfigError(
        f'{section}.class_balance={config[section].class_balance:g} needs one '
        "label for each video; with optim.loss='sigmoid' it must be 0"
      )
  if data is None:
    return
  _check_split('train', data)
  if config.data.num_train not in (None, data.splits['train']):
    raise ConfigError(
      f'data.num_train={config.data.num_train}, but {data.name} has '
      f'{data.splits["train"]} training videos; leave it at None to use them '
      'all'
    )


def check_norm(config: ml_collections.ConfigDict) -> None:
  """Refuses batch norms whose statistics would be missing.

  Args:
    config: The settings of a training.

  Raises:
    ConfigError: Names the field, and what would be accepted.
  """
  if not network_options.options_of(config.model.name).has_batch_norm:
    _check_no_norm(config)
    return
  frozen = config.norm.frozen
  if frozen and not config.init_from:
    raise ConfigError(
      f'norm.frozen is {frozen!r}, but there are no weights whose batch norms '
      'could be kept: new ones have scales of zero, and no statistics; set '
      "init_from, or norm.frozen=''."
    )
  averaged, estimated = config.optim.ema_decay, config.norm.precise_batches
  # A network of the user's own may have no batch norm: only its trace tells.
  is_known = not own.is_own(config.model.name)
  if is_known and averaged and not estimated and frozen != 'all':
    raise ConfigError(
      f'optim.ema_decay is {averaged:g}, but norm.precise_batches is 0: '
      'running statistics belong to the current weights, so their average '
      'needs statistics of its own; set norm.precise_batches, such as 200.'
    )


def _check_no_norm(config: ml_collections.ConfigDict) -> None:
  """Refuses what would do nothing to a network without batch norm."""
  for name in ('momentum', 'eps', 'frozen'):
    default = GIVEN[f'norm_{name}'].default
    if config.norm[name] != default:
      raise ConfigError(
        f'norm.{name} is {config.norm[name]!r}, but '
        f'model.name={config.model.name!r} has no batch norm; leave it at '
        f'{default!r}'
      )


def check_evaluation(
  config: ml_collections.ConfigDict, data: Description | None, num_devices: int
) -> None:
  """As `check`, of what an evaluation needs."""
  evaluation = config.eval
  if evaluation.batch_size % num_devices:
    raise ConfigError(
      f'eval.batch_size={evaluation.batch_size} is not a multiple of the '
      f'{num_devices} devices'
    )
  check_crops(config)
  if data is None:
    return
  if data.num_classes not in (None, config.model.num_classes):
    raise ConfigError(
      f'model.num_classes={config.model.num_classes}, but {data.name} has '
      f'{data.num_classes} classes'
    )
  if data.has_actions and config.optim.loss == 'softmax':
    raise ConfigError(
      f"optim.loss='softmax', but the videos of {data.name} have any number "
      "of labels; use 'sigmoid'"
    )
  _check_split(evaluation.split, data, field=f'eval.split={evaluation.split}: ')


def check_crops(config: ml_collections.ConfigDict) -> None:
  """Refuses mirrored crops of videos that mean something else mirrored."""
  if config.eval.num_crops == 10 and not config.data.flip:
    raise ConfigError(
      f'eval.num_crops={config.eval.num_crops} mirrors half of the crops, but '
      'data.flip=False says that a mirrored video has another label; use 1, 3 '
      'or 5'
    )


def _check_split(split: str, data: Description, field: str = '') -> None:
  if not data.splits.get(split):
    raise ConfigError(
      f'{field}{data.name} has no video in a split {split!r}; it has '
      + (', '.join(f'{k} ({n})' for k, n in data.splits.items()) or 'none')
    )
