"""From settings to the data of a run: its data set, its streams.

A plan asks only what the data set is, in a moment: TFDS, the decoder and Grain,
which imports JAX, are imported by the functions that read videos.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ml_collections
from etils import epath

from mgjax import files
from mgjax.config import own, rules
from mgjax.data import description
from mgjax.data.description import Description
from mgjax.errors import ConfigError, RunError
from mgjax.grids.schedule import GridSchedule
from mgjax.setup import run_checks

if TYPE_CHECKING:
  from mgjax.data.decoded_cache import DecodedCache
  from mgjax.data.eval_stream import EvalStream, Views
  from mgjax.data.read_ahead import Workers
  from mgjax.data.sources import Source
  from mgjax.data.stream import TrainStream


def data_dir(config: ml_collections.ConfigDict) -> epath.Path:
  """Folder of all data sets: config.data.dir, $TFDS_DATA_DIR or ./data."""
  return epath.Path(
    config.data.dir or os.environ.get('TFDS_DATA_DIR') or 'data'
  )


def describe(
  config: ml_collections.ConfigDict, splits: Sequence[str] | None = None
) -> Description | None:
  """What the data set says of itself; None where it is not here.

  Args:
    config: The settings.
    splits: Those that are needed of a source of the user's own; None: those of
      a training. A prepared data set tells all that it has.

  Raises:
    ConfigError: Its files are damaged, or none of this program's; or a split
      of the user's own cannot be opened.
    RunError: The user's code fails to make an example.
  """
  if own.is_own(config.data.name):
    from mgjax.data import own_source

    needed = dict.fromkeys(splits or ('train', config.eval.split))
    return own_source.describe(
      [
        own_source.open_source(config.data.name, split, options(config))
        for split in needed
      ]
    )
  return description.describe(data_dir(config), config.data.name)


def options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The options of a source of the user's own, lists as tuples."""
  given = config.data.options.to_dict()
  return {name: rules.as_tuples(value) for name, value in given.items()}


def with_classes(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """The config, with the classes of the data set where none are set.

  Args:
    config: Not modified.

  Raises:
    ConfigError: The data set, which would tell them, is not here.
  """
  if config.model.num_classes is not None:
    return config
  # An evaluation needs no training videos, which need not be here.
  found = describe(config, (config.eval.split,))
  if found is None or found.num_classes is None:
    raise ConfigError(
      'model.num_classes is not set, and '
      + (
        f'{config.data.name} does not say its classes'
        if found
        else f'{config.data.name} is not in {data_dir(config)} to say its '
        'classes; prepare it'
      )
      + ', or set it'
    )
  config = config.copy_and_resolve_references()
  config.model.num_classes = found.num_classes
  return config


def builder_dir(config: ml_collections.ConfigDict) -> epath.Path:
  """Folder of the data set, in the version that its name says or the newest.

  Raises:
    ConfigError: It has not been prepared.
  """
  return description.needed_folder(data_dir(config), config.data.name)


def crop_hw(group: ml_collections.ConfigDict) -> tuple[int, int]:
  """Height and width of the crop of a group of settings.

  Args:
    group: config.data, for training, or config.eval.
  """
  return group.crop_px, group.crop_width_px or group.crop_px


def short_side_px(config: ml_collections.ConfigDict) -> int:
  """Short side to which an evaluation resizes frames before it crops them."""
  # Three crops lie along the long side and fill the short one.
  three = config.eval.num_crops == 3
  return config.eval.crop_px if three else config.eval.short_side_px


def workers(config: ml_collections.ConfigDict) -> Workers:
  """Who makes batches ahead of their use."""
  from mgjax.data.read_ahead import Workers

  data = config.data
  return Workers(data.num_workers, data.worker_processes, data.prefetch_batches)


def source(config: ml_collections.ConfigDict, split: str) -> Source:
  """Opens a split of the data set.

  Raises:
    ConfigError: The data set, or the split in it, does not exist.
  """
  from mgjax.data import own_source, sources

  data = config.data
  if own.is_own(data.name):
    return own_source.open_source(data.name, split, options(config))
  return sources.open_source(
    data_dir(config), data.name, split, copies=data.copies
  )


def decoded_cache(
  config: ml_collections.ConfigDict, source: Source
) -> DecodedCache | None:
  """The decoded frames of a split; None where none are kept.

  Args:
    config: The settings.
    source: The videos. Of others than those of a data set none are kept.

  Raises:
    ConfigError: The folder cannot be written.
    RunError: A video cannot be read.
  """
  from mgjax.data import decoded_cache

  room_gib = config.data.decoded_cache_gib
  if not room_gib or not (source.folder or own.is_own(source.name)):
    return None
  if files.is_remote(config.data.decoded_cache_dir):
    raise ConfigError(
      f'data.decoded_cache_dir={config.data.decoded_cache_dir!r}: decoded '
      'frames are kept on a disk of this machine or in its memory; give a '
      'folder'
    )
  # Each split its own part, whichever of them a command opens first.
  share = len(source) / _num_read(config, source)
  found = decoded_cache.open_cache(
    _cache_folder(config, source), source.encoded(), share * room_gib * 2**30
  )
  if not found.is_whole:
    print(
      f'data.decoded_cache_gib={room_gib:g}: its part for the split '
      f'{source.split!r} has room for {len(found.room)} videos; the others are '
      'decoded for every clip',
      file=sys.stderr,
    )
  return found


def _num_read(config: ml_collections.ConfigDict, source: Source) -> int:
  """Number of videos of the splits that a run reads, one of them open."""
  found, read = None, ('train', config.eval.split)
  # An evaluation of a source of the user's own needs no training videos.
  with contextlib.suppress(ConfigError, RunError):
    found = describe(config, read)
  sizes = {source.split: len(source), **(found.splits if found else {})}
  return sum(sizes.get(split, 0) for split in {source.split, *read})


def _cache_folder(
  config: ml_collections.ConfigDict, source: Source
) -> pathlib.Path:
  """Folder of the decoded frames of a split."""
  root = config.data.decoded_cache_dir or os.path.join(
    os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache',
    *('mgjax', 'frames'),
  )
  place = source.folder and os.path.abspath(source.folder)
  if place is None:
    module = sys.modules[source.name.partition(':')[0]]
    place = getattr(module, '__file__', None), options(config)
  name = re.sub(r'[^\w.-]+', '-', source.name)
  digest = hashlib.sha256(repr(place).encode()).hexdigest()[:8]
  return pathlib.Path(root) / f'{name}-{digest}' / source.split


def train_stream(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  source: Source,
  *,
  shard: int = 0,
  num_shards: int = 1,
) -> TrainStream:
  """The training batches of every step.

  Args:
    config: The settings.
    schedule: Grids and clip positions of the steps.
    source: The training videos.
    shard: Index of this host among those that share every batch.
    num_shards: Number of such hosts.
  """
  from mgjax.data.order import BalancedOrder, Order
  from mgjax.data.stream import ClipSettings, TrainStream

  data = config.data
  numbers = (
    *(len(source), config.seed, shard, num_shards),
    data.samples_per_video,
  )
  if data.class_balance:
    labels = tuple(source.labels().tolist())
    order = BalancedOrder(*numbers, labels, data.class_balance)
  else:
    order = Order(*numbers)
  return TrainStream(
    schedule,
    source,
    order,
    ClipSettings(
      sampling=data.sampling,
      target_fps=data.target_fps,
      jitter_inverse=data.jitter_inverse,
      flip=data.flip,
      multi_hot=config.optim.loss == 'sigmoid',
    ),
    workers(config),
    decoded_cache(config, source),
  )


def evens_classes(config: ml_collections.ConfigDict) -> bool:
  """Whether a training evens out how much its classes count."""
  return bool(config.data.class_balance or config.optim.class_balance)


def class_weights(
  config: ml_collections.ConfigDict, training: Source | None = None
) -> Sequence[float] | None:
  """What a clip of each class counts in the loss; None: all count alike.

  Args:
    config: The settings, with the number of classes.
    training: The training videos; None: they are opened, if they are needed and
      here. If they are not here, all weights are 1: a program of the same cost.
  """
  from mgjax.data import balance

  if not (power := config.optim.class_balance):
    return None
  if training is None:
    if not describe(config):
      return [1.0] * config.model.num_classes
    training = source(config, 'train')
  return balance.class_weights(
    training.labels(), config.model.num_classes, power
  ).tolist()


def eval_stream(
  config: ml_collections.ConfigDict,
  source: Source,
  *,
  batch_size: int | None = None,
  shard: int = 0,
  num_shards: int = 1,
) -> EvalStream:
  """The evaluation batches.

  Args:
    config: The settings.
    source: The videos.
    batch_size: Clips of a batch over all hosts; None: config.eval.batch_size.
    shard: Index of this host among those that share every batch.
    num_shards: Number of such hosts.

  Raises:
    ConfigError: The crops do not suit the data set.
  """
  from mgjax.data.eval_stream import EvalStream

  return EvalStream(
    source,
    views(config),
    config.eval.batch_size if batch_size is None else batch_size,
    workers(config),
    shard=shard,
    num_shards=num_shards,
    cache=decoded_cache(config, source),
  )


def views(config: ml_collections.ConfigDict) -> Views:
  """Which clips of a video are evaluated.

  Raises:
    ConfigError: The crops do not suit the data set.
  """
  from mgjax.data.eval_stream import Views

  run_checks.check_crops(config)
  data, evaluation = config.data, config.eval
  return Views(
    num_views=evaluation.num_views,
    num_crops=evaluation.num_crops,
    num_frames=data.num_frames,
    stride_frames=data.stride_frames,
    sampling=data.sampling,
    target_fps=data.target_fps,
    short_side_px=short_side_px(config),
    crop_hw=crop_hw(evaluation),
  )
