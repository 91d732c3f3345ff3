"""Every setting: its meaning, its unit, its default and its accepted values.

Library code reads settings from the config that it is given and has no defaults
of its own. Config files start from `base()`, which is locked: a misspelt field
is refused in a config file and on the command line alike.

Conventions: `*_px` are pixels, `*_s` seconds, `*_epochs` passes over the
training set, `num_*` counts. An empty tuple, an empty string or None means
"not set" and the comment says what happens then. What depends on several fields
is checked where it is used: the schedule's in setup/grids.py and
grids/checks.py, the data set's in setup/run_checks.py.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import ml_collections

from mgjax.config import network_options, own
from mgjax.config.network_options import GIVEN, Fields
from mgjax.config.sections import Model, NamedSection, fill
from mgjax.config.setting import (
  POSITIVE,
  Accepted,
  at_least,
  like,
  numbers,
  one_of,
  optional,
  setting,
  within,
)
from mgjax.errors import FieldError
from mgjax.grids import make_schedule

# Defaults of what a schedule is made from stand in grids/make.py.
_SCHEDULE = {
  name: parameter.default
  for name, parameter in inspect.signature(make_schedule).parameters.items()
}

# Of `data`: how a machine feeds itself. No result depends on them.
MACHINE_DATA_FIELDS = (
  'dir',
  'num_workers',
  'worker_processes',
  'prefetch_batches',
  'decoded_cache_gib',
  'decoded_cache_dir',
)


def _is_regular_expression(value: str) -> bool:
  try:
    return bool(re.compile(value)) and bool(value)
  except re.error:
    return False


@dataclasses.dataclass
class _Run:
  """What belongs to no section."""

  # Seed of the initial weights, the order of clips, augmentation and dropout.
  seed: int = setting(
    0, Accepted('an integer in [0, 2^32)', lambda v: 0 <= v < 2**32)
  )
  # Folder whose weights a new run starts from: that of another run (its newest
  # checkpoint), of one checkpoint, or of mgjax.import_weights; '': none.
  init_from: str = setting('')
  # 'load': its classifier is taken as well; 'new': a new one is trained.
  init_head: str = setting('load', one_of('load', 'new'))


@dataclasses.dataclass
class _Data:
  """Data set, and what a training clip is."""

  # TFDS name/config below `dir`, in its newest version; or name/config:1.0.0.
  name: str = setting('moving_digits/motion')
  # Folder of the prepared data sets; '': $TFDS_DATA_DIR, else ./data.
  dir: str = setting('')
  # Read smaller copies of the data set (NAME/short128 ... beside NAME) where
  # they have enough pixels for a clip.
  copies: bool = setting(True)
  # Training videos in an epoch; None: read from the data set's description.
  num_train: int | None = setting(None, optional(at_least(1)))
  # Clips in a row that show a video: the same frames, each cut out, mirrored
  # and changed in its own way ("repeated augmentation"). An epoch reads every
  # video once, so that it has so many times more clips, and steps.
  samples_per_video: int = setting(1, at_least(1))
  # How far rare classes are shown more often, in [0, 1]. 0: an epoch shows each
  # video once. 1: it shows all classes equally often, in as many clips. Between
  # them a class of n videos has clips in proportion to n^(1 - class_balance).
  class_balance: float = setting(0.0, within('[0, 1]'))
  num_frames: int = setting(32)  # T of the full grid.
  stride_frames: int = setting(2)  # Frames from one sampled frame to the next.
  # Frame rate at which stride_frames counts (videos of another rate are
  # sampled at the same spacing in seconds); 0: count the video's own frames.
  target_fps: float = setting(30.0, at_least(0))
  # Crop of the full grid: a square, or crop_px high and crop_width_px wide.
  crop_px: int = setting(224)
  crop_width_px: int | None = setting(None)
  # The short side of a video is resized to a random length in this range.
  jitter_px: tuple = setting((256, 320))
  # Draw 1 / length uniformly, not the length.
  jitter_inverse: bool = setting(False)
  # 'dense': a strided span. 'segments': TSN's.
  sampling: str = setting('dense')
  flip: bool = setting(True)  # Mirror half of the clips, left to right.
  # Subtracted from the pixels' red, green and blue, which are in [0, 1].
  mean: tuple = setting(
    (0.45, 0.45, 0.45), numbers(3, 'three numbers', lambda v: True)
  )
  # What the difference is divided by.
  std: tuple = setting(
    (0.225, 0.225, 0.225),
    numbers(3, 'three positive numbers', lambda v: min(v) > 0),
  )
  # Clips per step of the full grid, over all devices.
  batch_size: int = setting(64)
  # Threads that decode batches ahead of the device; 0: one per core.
  num_workers: int = setting(0, at_least(0))
  # Processes that have those threads; 0: this one. For many cores; a process
  # that dies is replaced.
  worker_processes: int = setting(0, at_least(0))
  # Batches ready or under way; 3 = a short cycle.
  prefetch_batches: int = setting(6, at_least(1))
  # Room for decoded frames, which are kept on a disk or in memory (/dev/shm)
  # for all processes of a host, so that videos that fit are decoded once.
  # `train` and eval.split have a part of it each, by numbers of videos. 0: none
  # are kept.
  decoded_cache_gib: float = setting(0.0, at_least(0))
  # Where; '': $XDG_CACHE_HOME/mgjax/frames, else ~/.cache/mgjax/frames.
  decoded_cache_dir: str = setting('')
  # Undecodable training videos tolerated.
  max_bad_fraction: float = setting(0.01, within('[0, 1]'))


@dataclasses.dataclass
class _Augment:
  """Changes of training clips beyond the crop and the flip.

  They are made on the device, the same for all frames of a clip. Everything is
  off at 0.
  """

  # RandAugment: operations per clip, each drawn from those of the policy, and
  # their strength, from 0 to 10.
  randaugment_ops: int = setting(0, at_least(0))
  randaugment_magnitude: float = setting(9.0, within('[0, 10]'))
  # 'torchvision': the 13 operations of mgjax/step/augment.py. 'timm': the 15 of
  # increasing_operations.py. timm's rand-m7-n4-mstd0.5-inc1, with which
  # VideoMAE and V-JEPA 2 are trained, is 4 operations of magnitude 7, this
  # policy, a probability of 0.5 and a standard deviation of 0.5.
  randaugment_policy: str = setting(
    'torchvision', one_of('torchvision', 'timm')
  )
  # Of an operation that is drawn to be applied.
  randaugment_probability: float = setting(1.0, within('(0, 1]'))
  # Of the strength, which every clip and operation draws.
  randaugment_magnitude_std: float = setting(0.0, at_least(0))
  # Colour jitter: brightness, contrast and saturation are multiplied by a
  # factor in [1 - v, 1 + v]; hue is turned by [-v, v] full turns, v <= 0.5.
  brightness: float = setting(0.0, at_least(0))
  contrast: float = setting(0.0, at_least(0))
  saturation: float = setting(0.0, at_least(0))
  hue: float = setting(0.0, within('[0, 0.5]'))
  # Random erasing: share of the clips in which a rectangle becomes data.mean,
  # its share of the picture, and its height / width.
  erase_probability: float = setting(0.0, within('[0, 1]'))
  erase_area: tuple = setting(
    (0.02, 1 / 3),
    numbers(
      2, 'two ascending shares in (0, 1]', lambda v: 0 < v[0] <= v[1] <= 1
    ),
  )
  erase_aspect: tuple = setting(
    (0.3, 1 / 0.3),
    numbers(2, 'two ascending positive numbers', lambda v: 0 < v[0] <= v[1]),
  )
  # Every clip is mixed with its neighbour in the batch, labels too; the share
  # of it follows Beta(alpha, alpha). Where both are on, each mixes half.
  mixup_alpha: float = setting(0.0, at_least(0))  # Mixup: everywhere.
  # CutMix: a rectangle is the neighbour's.
  cutmix_alpha: float = setting(0.0, at_least(0))


@dataclasses.dataclass
class _Optim:
  """Loss, optimizer and learning rate."""

  name: str = setting('sgd', one_of('sgd', 'adamw', 'lars', 'lamb'))
  # 'softmax': cross-entropy, one label per video. 'sigmoid': binary
  # cross-entropy of every class, any number of labels per video.
  loss: str = setting('softmax', one_of('softmax', 'sigmoid'))
  # Learning rate of the full grid's batch.
  base_lr: float = setting(_SCHEDULE['learning_rate'], at_least(0))
  # Clips per step that the learning rates of this section and of grid.ladder
  # are meant for: all of them, warmup_lr and end_lr included, are multiplied
  # by data.batch_size / base_batch. 0: they are those of data.batch_size.
  base_batch: int = setting(_SCHEDULE['base_batch'], at_least(0))
  # How the learning rate follows the batch of a phase, where it does
  # (grid.scale_lr, which see): 'linear', as is usual with SGD; 'sqrt', with its
  # square root, as is usual with Adam; 'none'.
  batch_rule: str = setting(
    _SCHEDULE['batch_rule'], one_of('linear', 'sqrt', 'none')
  )
  momentum: float = setting(0.9, within('[0, 1)'))  # sgd, lars.
  nesterov: bool = setting(True)  # sgd, lars.
  # adamw, lamb: decay of the mean of gradients.
  b1: float = setting(0.9, within('[0, 1)'))
  # adamw, lamb: decay of the mean of their squares.
  b2: float = setting(0.999, within('[0, 1)'))
  # adamw, lamb: added to the root of that mean.
  eps: float = setting(1e-8, POSITIVE)
  # lars: norm of a layer's update, per unit of learning rate and weight norm.
  trust_coefficient: float = setting(0.001, POSITIVE)
  weight_decay: float = setting(1e-4, at_least(0))
  # What it acts on. 'not_norms': all but scales and biases of norms. 'kernels':
  # parameters with two axes or more, but no biases, tables of positions and
  # tokens of classes, as transformers are trained. 'all'.
  decay_on: str = setting('not_norms', one_of('not_norms', 'kernels', 'all'))
  # Factor on the learning rate from a layer to the one before it, in (0, 1].
  # Transformers: each block is a layer; residual networks: each stage.
  layer_decay: float = setting(1.0, within('(0, 1]'))
  # What is trained: 'all'; 'head', the classifier and what pools by learned
  # attention (a probe); or a regular expression that is found in the paths of
  # parameters, such as 'block1[01]/|head/'. The rest has no gradient, no decay,
  # and nothing in the optimizer's state.
  train: str = setting(
    'all',
    Accepted("'all', 'head' or a regular expression", _is_regular_expression),
  )
  # Whether modules of which nothing is trained have dropout and drop path, too.
  frozen_dropout: bool = setting(False)
  # Norm, over all parameters, down to which gradients are scaled; 0: any norm.
  clip_norm: float = setting(0.0, at_least(0))
  # Type in which gradients are summed over devices: 'float32', or 'bfloat16',
  # which moves half the bytes and keeps 8 bits of each gradient.
  reduce_dtype: str = setting('float32', one_of('float32', 'bfloat16'))
  # Share of the target that is spread evenly over all classes, in [0, 1).
  label_smoothing: float = setting(0.0, within('[0, 1)'))
  # How far clips of rare classes count more in the loss, in [0, 1]: those of a
  # class of n training videos in proportion to n^-class_balance, divided by the
  # mean over the batch. 0: all count alike. 'softmax' only.
  class_balance: float = setting(0.0, within('[0, 1]'))
  # Share of the average of the weights that a step keeps (less during the
  # first steps), in [0, 1); 0: no average. With one, evaluation uses it.
  ema_decay: float = setting(0.0, within('[0, 1)'))
  # 'steps', 'cosine' or 'constant'; or a call of an optax schedule whose
  # count is baseline epochs, such as
  # 'optax.linear_schedule(init_value=0.1, end_value=0.0, transition_steps=20)'.
  schedule: str = setting(_SCHEDULE['lr_schedule'])
  # Baseline epochs at which 'steps' decays.
  lr_steps: tuple = setting((94, 154, 196))
  # Factor of each decay.
  gamma: float = setting(_SCHEDULE['lr_gamma'], within('(0, 1]'))
  # 'cosine': learning rate at the end.
  end_lr: float = setting(_SCHEDULE['end_lr'], at_least(0))
  total_epochs: int = setting(239)  # Epochs of the baseline.
  # Linear warm-up, in epochs of the run itself (multigrid does not stretch
  # it), from warmup_lr to the schedule's value at its end.
  warmup_epochs: float = setting(34.0)
  warmup_lr: float = setting(0.01, at_least(0))


@dataclasses.dataclass
class _Grid:
  """How the shape of a batch changes over the training."""

  # 'none', 'short', 'long', 'both', 'ladder', 'progressive' or 'table'.
  mode: str = setting('none')
  # Long cycle, coarse to fine: (frames factor, side factor) of the full grid.
  long_factors: tuple = setting(_SCHEDULE['long_factors'])
  # Short cycle: side factors of the full grid; the phase's own grid is last.
  short_factors: tuple = setting(_SCHEDULE['short_factors'])
  # Epochs of the run per baseline epoch (modes short, long, both,
  # progressive, and rows of a table with shares; 'none' and 'ladder' train for
  # just the epochs they name).
  epoch_factor: float = setting(_SCHEDULE['epoch_factor'])
  # Long cycles before the fine-tuning phase where the learning rate has no
  # steps to align with (any schedule but 'steps').
  num_long_cycles: int = setting(_SCHEDULE['num_long_cycles'])
  # Whether the last interval is the fine-tuning phase, on the full grid; else
  # it is one more long cycle.
  fine_tune: bool = setting(_SCHEDULE['fine_tune'])
  # Whether the learning rate follows the batch of the phase (long, both,
  # progressive, table) by optim.batch_rule, as the papers have it; else it is
  # the baseline's.
  scale_lr: bool = setting(_SCHEDULE['scale_lr'])
  # 'ladder': (frames factor, epochs, learning rate, schedule) of each rung;
  # the schedule is written as in optim.schedule and restarts at every rung.
  ladder: tuple = setting(_SCHEDULE['ladder'])
  # 'progressive': (share of the epochs, frames factor, side factor).
  progressive: tuple = setting(_SCHEDULE['progressive'])
  # 'table': a row for each phase, dicts of the fields in mgjax/grids/rows.py;
  # or the name of one of configs/schedules, or of a .json or .py file.
  table: tuple = setting(_SCHEDULE['table'])
  # Frames of all grids are a multiple of it, such as a tubelet; 1: any number.
  frames_multiple: int = setting(_SCHEDULE['frames_multiple'], at_least(1))
  # Heights and widths are a multiple of it, such as a patch; 1: any pixels.
  side_multiple: int = setting(_SCHEDULE['side_multiple'], at_least(1))


@dataclasses.dataclass
class _Norm:
  """Batch norm."""

  # Clips behind one batch-norm statistic at the phase's base grid; 0: the
  # whole batch.
  group_clips: int = setting(8)
  # 'phase': the number of groups is the phase's (groups grow inside a short
  # cycle, as in the paper); 'step': every group has group_clips clips.
  group_by: str = setting(_SCHEDULE['group_by'])
  # Share of the old running statistics a step keeps.
  momentum: float = like(GIVEN['norm_momentum'])
  eps: float = like(GIVEN['norm_eps'])  # Added to variances.
  # Training batches at the phase's base grid from which the statistics are
  # estimated afresh before an evaluation; 0: keep the running ones.
  precise_batches: int = setting(200, at_least(0))
  # Batch norms that keep the statistics, scales and biases of init_from: 'all',
  # 'but_first' (all but the first of each pathway: TSN's "partial batch norm"),
  # or '', none. For fine-tuning on batches too small for statistics.
  frozen: str = like(GIVEN['norm_frozen'])


@dataclasses.dataclass
class _Eval:
  """Evaluation: views of a video, and what becomes of their scores."""

  split: str = setting('validation')  # Of the data set.
  # Epochs between evaluations; 0: at the end only; None: a tenth of the run's.
  every: float | None = setting(None, optional(at_least(0)))
  num_views: int = setting(10, at_least(1))  # Temporal views per video.
  # Spatial crops per view. 1: the centre; 3: along the long side; 5: corners
  # and centre; 10: those and their mirror images.
  num_crops: int = setting(3, one_of(1, 3, 5, 10))
  # How the scores of a video's views become one: 'sum' or 'max', class by
  # class.
  ensemble: str = setting('sum', one_of('sum', 'max'))
  # Crop; with 3 crops also the resized short side.
  crop_px: int = setting(256, at_least(1))
  crop_width_px: int | None = setting(None, optional(at_least(1)))
  # Short side that videos are resized to before the crop (1, 5, 10 crops).
  short_side_px: int = setting(256, at_least(1))
  batch_size: int = setting(64, at_least(1))  # Clips per evaluation step.
  # 'global': average features over all positions, classify, softmax.
  # 'fully_conv': average features over windows of the training clip's size
  # (data.num_frames, data.crop_px), classify each, average the softmax scores
  # of all windows: what PySlowFast does without a short cycle.
  head: str = setting('global', one_of('global', 'fully_conv'))
  # Seconds between saves of what has been scored: a killed evaluation goes on
  # from there.
  save_every_s: float = setting(60.0, POSITIVE)


@dataclasses.dataclass
class _Train:
  """How a machine runs the training; what it keeps."""

  # Equal parts of every batch that are computed one after the other, to save
  # memory; whole batch-norm groups each, so the step stays the same. 1: one.
  micro_batches: int = setting(1, at_least(1))
  # 'block': the backward pass computes the inside of each residual block
  # again instead of keeping it: less memory, more time. '': off.
  remat: str = setting('', one_of('', 'block'))
  # Memory of a device in GiB, with which that of each compiled program is
  # compared: a run whose first one does not fit ends before it reads data. 0:
  # what the device says it has (CPUs do not: nothing is compared there).
  device_memory_gib: float = setting(0.0, at_least(0))
  # Steps between lines of metrics.jsonl.
  log_every_steps: int = setting(10, at_least(1))
  checkpoint_every_s: float = setting(600.0, POSITIVE)  # Between checkpoints.
  # Steps between checkpoints, in place of the seconds; 0: the seconds count.
  checkpoint_every_steps: int = setting(0, at_least(0))
  # How many of the newest checkpoints are kept.
  keep_checkpoints: int = setting(3, at_least(1))
  # How many with the best top-1 in evaluations are kept besides.
  keep_best: int = setting(1, at_least(0))
  # Peak of one device in 1e12 floating-point operations per second at
  # model.dtype, from its data sheet: metrics.jsonl then has the share of it
  # that training uses ('mfu'); 0: unknown.
  peak_tflops: float = setting(0.0, at_least(0))
  # Project in Weights & Biases that gets all metrics and pictures too; '':
  # none. Needs the package wandb.
  wandb_project: str = setting('')


# The sections of a config; '' are the fields outside of them.
_SECTIONS = {
  '': _Run,
  'data': _Data,
  'augment': _Augment,
  'optim': _Optim,
  'grid': _Grid,
  'norm': _Norm,
  'eval': _Eval,
  'train': _Train,
}


def base() -> ml_collections.ConfigDict:
  """Returns a new locked config with every field at its default."""
  config = ml_collections.ConfigDict()
  fill(config, dataclasses.fields(_Run))
  config.model = Model()
  config.model.name = 'slowfast'
  config.data = DataSection()
  config.data.name = _Data.name
  for name, section in _SECTIONS.items():
    if name not in ('', 'data'):
      config[name] = ml_collections.ConfigDict()
      fill(config[name], dataclasses.fields(section))
  return config.lock()


class DataSection(NamedSection):
  """The section `data`: a source of the user's own has `options`, too."""

  path = 'data'

  @staticmethod
  def fields_of(name: Any) -> Fields:
    if not isinstance(name, str):
      raise FieldError(
        f'data.name is {name!r}; it must be the name of a data set, or a '
        "source of your own, 'package.module:name'."
      )
    own_fields = {f.name: f for f in dataclasses.fields(_Data)}
    del own_fields['name']
    options = {}
    if own.is_own(name):
      # The first argument is the split.
      options = own.options(own.load('data.name', name), num_given=1)
    return Fields(own_fields, options)


def sections(
  config: ml_collections.ConfigDict,
) -> Iterator[tuple[str, ml_collections.ConfigDict, list[dataclasses.Field]]]:
  """The sections of a config: prefix of their fields, values, declarations.

  Raises:
    FieldError: The network that the config names is not there.
  """
  for name, section in _SECTIONS.items():
    prefix = f'{name}.' if name else ''
    values = config[name] if name else config
    yield prefix, values, list(dataclasses.fields(section))
  of_network = network_options.fields(config.model.name)
  yield 'model.', config.model, list(of_network.section.values())
  for name in ('data', 'model'):
    section = config[name]
    if own.is_own(section.name):
      options = section.fields_of(section.name).options
      yield f'{name}.options.', section.options, list(options.values())
