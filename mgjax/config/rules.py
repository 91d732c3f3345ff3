"""What a config must be: its fields, their types and accepted values.

What depends on several fields is checked where it is used: the schedule's in
setup/grids.py, the data set's in setup/run_checks.py.
"""

from typing import Any

import ml_collections

from mgjax.config.config_file import did_you_mean, fields_path
from mgjax.config.fields import COMMON_OPTIONS, MODEL_OPTIONS, base
from mgjax.errors import ConfigError

# Depths of the networks that have others than the networks on frames.
_DEPTHS = {
  **dict.fromkeys(('slowfast', 'slow', 'c2d', 'i3d'), (50, 101)),
  **dict.fromkeys(('blresnet', 'blvnet_tam'), (50, 101, 152)),
}
_FRAME_DEPTHS = (18, 34, 50, 101, 152)


def as_tuples(value: Any) -> Any:
  """JSON has lists only; config fields are tuples."""
  return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def unused_options(
  model: ml_collections.ConfigDict | dict,
) -> dict[str, Any]:
  """Options of config.model that do nothing: the chosen network lacks them.

  Args:
    model: config.model, or what a config.json has of it.

  Returns:
    The values, by name, of those that differ from their default.
  """
  has = COMMON_OPTIONS.union(MODEL_OPTIONS.get(model['name'], model))
  defaults = base().model
  return {
    name: value
    for name, value in model.items()
    if name not in has
    and name in defaults
    and as_tuples(value) != defaults[name]
  }


def reset_unused_options(
  model: ml_collections.ConfigDict | dict,
) -> None:
  """Sets what `unused_options` finds to its default.

  Runs of earlier versions have such options in their config.json.
  """
  defaults = base().model
  for name, value in unused_options(model).items():
    # JSON has lists where a config has tuples.
    as_list = isinstance(value, list)
    model[name] = list(defaults[name]) if as_list else defaults[name]


def check_fields(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that has not the fields of `base`, or other types.

  ml_collections takes None and True for any number, and a config can be made
  without `base`, or be unlocked.

  Raises:
    ConfigError: Names the first field that is missing, unknown or of another
      type than its default.
  """
  _compare(config, base(), '')


def _compare(
  config: Any, defaults: ml_collections.ConfigDict, prefix: str
) -> None:
  absent = [name for name in defaults if name not in config]
  if absent:
    raise ConfigError(
      f'the config has no field {prefix}{absent[0]}'
      + (f' ({len(absent) - 1} more are missing)' if absent[1:] else '')
      + '; start from mgjax.config.fields.base(), which has all of them.'
    )
  for name, value in config.items():
    if name not in defaults:
      raise ConfigError(
        f'there is no field {prefix}{name}.{did_you_mean(name, defaults)} '
        f'{fields_path()} lists them all.'
      )
    default = defaults[name]
    if isinstance(default, ml_collections.ConfigDict):
      if not isinstance(value, ml_collections.ConfigDict):
        raise ConfigError(
          f'{prefix}{name} is {value!r}; it is a section of fields.'
        )
      _compare(value, default, f'{prefix}{name}.')
      continue
    wanted = defaults.get_type(name)
    if value is None and default is None or _has_type(value, wanted):
      continue
    raise ConfigError(
      f'{prefix}{name} is {value!r}, of type {type(value).__name__}; it must '
      f'be of type {wanted.__name__}.'
    )


def _has_type(value: Any, wanted: type) -> bool:
  if isinstance(value, bool) or wanted is bool:  # True is an int, too.
    return isinstance(value, bool) and wanted is bool
  accepted = {float: (float, int), tuple: (tuple, list)}
  return isinstance(value, accepted.get(wanted, wanted))


def _are_integers(value: Any) -> bool:
  return all(isinstance(item, int) for item in value)


def _are_tuples(value: Any) -> bool:
  return all(_are_integers(item) for item in value)


def _is_window(value: Any) -> bool:
  return (
    isinstance(value, (tuple, list))
    and len(value) == 3
    and _are_integers(value)
    and min(value) >= 1
  )


# (field, what is accepted, test). What depends on several fields, and all of
# `grid`, is checked where the schedule is made: mgjax/grids/checks.py.
_RULES = (
  ('seed', 'an integer in [0, 2^32)', lambda v: 0 <= v < 2**32),
  ('init_head', "'load' or 'new'", lambda v: v in ('load', 'new')),
  ('model.name', f'one of {", ".join(MODEL_OPTIONS)}', MODEL_OPTIONS.get),
  ('model.num_classes', '2 or more', lambda v: v >= 2),
  ('model.dropout', 'a rate in [0, 1)', lambda v: 0 <= v < 1),
  (
    'model.dtype',
    "'float32' or 'bfloat16'",
    lambda v: v in ('float32', 'bfloat16'),
  ),
  ('model.blocks', 'a tuple of integers, or ()', _are_integers),
  ('model.width', '1 or more', lambda v: v >= 1),
  ('model.alpha', '1 or more', lambda v: v >= 1),
  ('model.beta_inv', '1 or more', lambda v: v >= 1),
  (
    'model.temporal_strides',
    'strides of 1 or 2, one per stage, or ()',
    lambda v: all(stride in (1, 2) for stride in v),
  ),
  (
    'model.temporal_pool',
    "'max' or 'avg'",
    lambda v: v in ('max', 'avg'),
  ),
  ('model.tam_blend', "'sum' or 'max'", lambda v: v in ('sum', 'max')),
  (
    'model.tam_frames',
    'an odd number of frames, or 0',
    lambda v: v == 0 or (v > 0 and v % 2 == 1),
  ),
  ('model.shift_div', '2 or more', lambda v: v >= 2),
  (
    'model.shift_place',
    "'blockres' or 'block'",
    lambda v: v in ('blockres', 'block'),
  ),
  ('model.bl_alpha', '1 or more', lambda v: v >= 1),
  ('model.bl_beta', '1 or more', lambda v: v >= 1),
  (
    'model.fusion_kernel',
    'odd and positive',
    lambda v: v >= 1 and v % 2 == 1,
  ),
  ('model.fusion_ratio', '1 or more', lambda v: v >= 1),
  ('model.num_temporal', 'a tuple of integers, or ()', _are_integers),
  ('model.nonlocal_blocks', 'a tuple of tuples, or ()', _are_tuples),
  ('model.nonlocal_blocks_fast', 'a tuple of tuples, or ()', _are_tuples),
  (
    'model.nonlocal_mode',
    "'softmax' or 'dot_product'",
    lambda v: v in ('softmax', 'dot_product'),
  ),
  (
    'model.nonlocal_pool',
    'three positive integers, or such a tuple per stage',
    lambda v: _is_window(v) or (v and all(map(_is_window, v))),
  ),
  (
    'model.nonlocal_pool_fast',
    'three positive integers, such a tuple per stage, or ()',
    lambda v: _is_window(v) or all(map(_is_window, v)),
  ),
  ('model.nonlocal_groups', 'a tuple of integers, or ()', _are_integers),
  ('model.nonlocal_groups_fast', 'a tuple of integers, or ()', _are_integers),
  ('data.num_train', '1 or more, or not set', lambda v: v is None or v >= 1),
  ('data.target_fps', 'a rate, or 0', lambda v: v >= 0),
  ('data.std', 'three positive numbers', lambda v: len(v) == 3 and min(v) > 0),
  ('data.mean', 'three numbers', lambda v: len(v) == 3),
  ('data.num_workers', '0 or more', lambda v: v >= 0),
  ('data.worker_processes', '0 or more', lambda v: v >= 0),
  ('data.prefetch_batches', '1 or more', lambda v: v >= 1),
  ('data.max_bad_fraction', 'a share in [0, 1]', lambda v: 0 <= v <= 1),
  (
    'optim.name',
    "'sgd', 'adamw', 'lars' or 'lamb'",
    lambda v: v in ('sgd', 'adamw', 'lars', 'lamb'),
  ),
  (
    'augment.randaugment_ops',
    'a number of operations, or 0',
    lambda v: v >= 0,
  ),
  (
    'augment.randaugment_magnitude',
    'in [0, 10]',
    lambda v: 0 <= v <= 10,
  ),
  ('augment.brightness', '0 or more', lambda v: v >= 0),
  ('augment.contrast', '0 or more', lambda v: v >= 0),
  ('augment.saturation', '0 or more', lambda v: v >= 0),
  ('augment.hue', 'in [0, 0.5]', lambda v: 0 <= v <= 0.5),
  (
    'augment.erase_probability',
    'a probability in [0, 1]',
    lambda v: 0 <= v <= 1,
  ),
  (
    'augment.erase_area',
    'two ascending shares in (0, 1]',
    lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1,
  ),
  (
    'augment.erase_aspect',
    'two ascending positive numbers',
    lambda v: len(v) == 2 and 0 < v[0] <= v[1],
  ),
  ('augment.mixup_alpha', 'positive, or 0', lambda v: v >= 0),
  ('augment.cutmix_alpha', 'positive, or 0', lambda v: v >= 0),
  (
    'optim.loss',
    "'softmax' or 'sigmoid'",
    lambda v: v in ('softmax', 'sigmoid'),
  ),
  ('optim.base_lr', '0 or more', lambda v: v >= 0),
  ('optim.base_batch', '1 or more, or 0', lambda v: v >= 0),
  ('optim.momentum', 'in [0, 1)', lambda v: 0 <= v < 1),
  ('optim.b1', 'in [0, 1)', lambda v: 0 <= v < 1),
  ('optim.b2', 'in [0, 1)', lambda v: 0 <= v < 1),
  ('optim.eps', 'positive', lambda v: v > 0),
  ('optim.trust_coefficient', 'positive', lambda v: v > 0),
  ('optim.clip_norm', 'positive, or 0', lambda v: v >= 0),
  ('optim.label_smoothing', 'in [0, 1)', lambda v: 0 <= v < 1),
  ('optim.ema_decay', 'in [0, 1)', lambda v: 0 <= v < 1),
  ('optim.weight_decay', '0 or more', lambda v: v >= 0),
  ('optim.gamma', 'in (0, 1]', lambda v: 0 < v <= 1),
  ('optim.end_lr', '0 or more', lambda v: v >= 0),
  ('optim.warmup_lr', '0 or more', lambda v: v >= 0),
  ('norm.momentum', 'in [0, 1]', lambda v: 0 <= v <= 1),
  ('norm.eps', 'positive', lambda v: v > 0),
  ('norm.precise_batches', '0 or more', lambda v: v >= 0),
  (
    'norm.frozen',
    "'', 'all' or 'but_first'",
    lambda v: v in ('', 'all', 'but_first'),
  ),
  ('eval.every', '0 or more', lambda v: v >= 0),
  ('eval.num_views', '1 or more', lambda v: v >= 1),
  ('eval.num_crops', '1, 3, 5 or 10', lambda v: v in (1, 3, 5, 10)),
  ('eval.ensemble', "'sum' or 'max'", lambda v: v in ('sum', 'max')),
  ('eval.save_every_s', 'positive', lambda v: v > 0),
  ('eval.crop_px', '1 or more', lambda v: v >= 1),
  ('eval.batch_size', '1 or more', lambda v: v >= 1),
  (
    'eval.head',
    "'global' or 'fully_conv'",
    lambda v: v in ('global', 'fully_conv'),
  ),
  ('train.micro_batches', '1 or more', lambda v: v >= 1),
  ('train.remat', "'' or 'block'", lambda v: v in ('', 'block')),
  ('train.device_memory_gib', 'positive, or 0', lambda v: v >= 0),
  ('train.log_every_steps', '1 or more', lambda v: v >= 1),
  ('train.checkpoint_every_s', 'positive', lambda v: v > 0),
  ('train.checkpoint_every_steps', '0 or more', lambda v: v >= 0),
  ('train.keep_checkpoints', '1 or more', lambda v: v >= 1),
  ('train.keep_best', '0 or more', lambda v: v >= 0),
  ('train.peak_tflops', '0 or more', lambda v: v >= 0),
)


def validate(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config, each of whose fields has a value that can work.

  Raises:
    ConfigError: Names the first field that has not.
  """
  for field, accepted, is_right in _RULES:
    section, _, name = field.rpartition('.')
    value = (config[section] if section else config)[name]
    try:
      right = is_right(value)
    except TypeError:  # Another type, from an override of a tuple.
      right = False
    if not right:
      raise ConfigError(f'{field} is {value!r}; it must be {accepted}.')
  name = config.model.name
  for option, value in unused_options(config.model).items():
    having = [other for other, has in MODEL_OPTIONS.items() if option in has]
    raise ConfigError(
      f'model.{option} is {value!r}, but model.name={name!r} has no such '
      f'option; leave it out, or choose a network that has it: '
      f'{", ".join(having)}.'
    )
  depths = _DEPTHS.get(name, _FRAME_DEPTHS)
  if config.model.depth not in depths:
    *most, last = depths
    raise ConfigError(
      f'model.depth is {config.model.depth!r}; model.name={name!r} has '
      f'{", ".join(map(str, most))} or {last} (model.blocks replaces the '
      "number of the blocks, not the depth's kind of block)."
    )
  return config
