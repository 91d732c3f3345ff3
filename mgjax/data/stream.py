"""Batches as a pure function of the step: no iterator state, exact resume.

Training reads one endless stream of clips. Clip number c is the video at
position c % N of epoch c // N's permutation; its frames, scale, crop and flip
come from a counter-based generator keyed by (seed, c). A step takes the clip
numbers clips_before(step) ... + batch, so any batch can be made by itself, in
any thread, on any host, and every video is used once per epoch whatever the
grids are.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator

import ml_collections
import numpy as np
from grain import experimental as grain_experimental

from mgjax.cli import RunError
from mgjax.data import read_ahead, sampling
from mgjax.data.decode import Crop, DecodeError, Video
from mgjax.data.sources import Example, Source, union_labels
from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.setup import run_checks

# A video is replaced at most so often; then the data set is not usable.
_MAX_ATTEMPTS = 10


def crop_hw(data: ml_collections.ConfigDict) -> tuple[int, int]:
  """Height and width of the crop named by crop_px and crop_width_px."""
  return data.crop_px, data.crop_width_px or data.crop_px


@dataclasses.dataclass(frozen=True)
class TrainStream:
  """Makes the training batch of any step.

  Attributes:
    config: The run's configuration.
    schedule: Grids and clip positions of the steps.
    source: The training videos.
    shard: Index of this host among those that share every batch.
    num_shards: Number of such hosts.
  """

  config: ml_collections.ConfigDict
  schedule: GridSchedule
  source: Source
  shard: int = 0
  num_shards: int = 1

  def video_index(self, clip: int) -> int:
    """Index of the video that clip number `clip` shows."""
    epoch, position = divmod(clip, len(self.source))
    return grain_experimental.index_shuffle(
      index=position,
      max_index=len(self.source) - 1,
      seed=_hash32(self.config.seed, epoch),
      rounds=4,
    )

  def clip(
    self,
    clip: int,
    grid: Grid,
    *,
    stride_frames: tuple[int, int],
    jitter_px: tuple[int, int],
  ) -> dict:
    """Decodes one training clip.

    Args:
      clip: Its number in the stream.
      grid: Its frames and crop.
      stride_frames: Range of frame strides.
      jitter_px: Range of the resized short side.

    Returns:
      'video' uint8 [T, H, W, 3], 'label', 'flip' bool, 'id' text and
      'skipped': (id, reason) of videos that could not be read or decoded and
      were replaced.
      The label is an int, or float32 [K] where the loss is 'sigmoid'.

    Raises:
      RunError: Replacements could not be decoded either.
    """
    data = self.config.data
    index = self.video_index(clip)
    skipped = []
    generator = np.random.Generator(
      np.random.Philox(key=[self.config.seed, clip])
    )
    uniforms = generator.random(8 + grid.T)
    for attempt in range(_MAX_ATTEMPTS):
      if attempt:
        index = _hash32(self.config.seed, clip, attempt) % len(self.source)
      short = sampling.short_side(
        jitter_px, inverse=data.jitter_inverse, uniform=uniforms[0]
      )
      try:
        # The crop of a wide grid can need more than that.
        example = self.source.read(index, short_px=max(short, grid.H, grid.W))
        read_ahead.decoding(example.id)
        with Video(example.video) as video:
          form = example.form or video.form
          frames = sampling.train_frames(
            form.num_frames,
            form.fps,
            num_frames=grid.T,
            stride_frames=stride_frames,
            sampling=data.sampling,
            target_fps=data.target_fps,
            uniforms=uniforms[6:],
          )
          label = self._label(example, frames, form.fps)
          height, width = sampling.resized_hw(
            form.height, form.width, short_px=short, at_least=grid[1:3]
          )
          y = sampling.random_offset(height, grid.H, uniforms[1])
          x = sampling.random_offset(width, grid.W, uniforms[2])
          pixels = video.frames(
            frames, height, width, Crop(y, x, grid.H, grid.W)
          )
      except DecodeError as error:  # Of the record, or of what is in it.
        skipped.append((self.source.name_of(index), str(error)))
        continue
      return {
        'video': pixels,
        'label': label,
        'flip': bool(data.flip and uniforms[3] < 0.5),
        'id': example.id,
        'skipped': skipped,
      }
    raise RunError(
      f'{_MAX_ATTEMPTS} videos in a row could not be decoded '
      f'(clip {clip}): {"; ".join(map(": ".join, skipped))}'
    )

  def _label(self, example: Example, frames: np.ndarray, fps: float):
    """The label of a clip, as the loss takes it."""
    num_classes = self.config.model.num_classes
    if self.config.optim.loss == 'softmax':
      return example.label
    if example.label is not None:
      return np.eye(num_classes, dtype=np.float32)[example.label]
    return union_labels(
      example.actions,
      num_classes,
      first_frame=int(frames[0]),
      last_frame=int(frames[-1]),
      fps=fps,
    )

  def batch(self, step: int) -> dict:
    """Makes this host's share of the batch of `step`.

    Returns:
      'video' uint8 [b, T, H, W, 3], 'label' int32 [b] (float32 [b, K] where
      the loss is 'sigmoid'), 'flip' bool [b], with b = batch / num_shards;
      'ids', a list of text, and 'skipped', one of (id, reason).
    """
    phase = self.schedule.phase(step)
    position = self.schedule.cycle_index(step)
    return self.clips_from(
      self.schedule.clips_before(step),
      phase.cycle[position],
      stride_frames=phase.stride_frames,
      jitter_px=phase.jitter_px[position],
    )

  def base_batch(self, step: int, number: int) -> dict:
    """Batch `number` of those that estimate batch-norm statistics at `step`.

    They have the base grid of the phase that `step` ends, and show the clips
    that the stream would show next.
    """
    phase = self.schedule.phase(step - 1)
    first = self.schedule.clips_before(step) + number * phase.base.batch
    return self.clips_from(
      first,
      phase.base,
      stride_frames=phase.stride_frames,
      jitter_px=phase.jitter_px[-1],
    )

  def clips_from(self, first: int, grid: Grid, **ranges) -> dict:
    """Makes this host's share of a batch that starts at clip number `first`.

    Args:
      first: The number.
      grid: Of the batch.
      **ranges: stride_frames and jitter_px, see `clip`.

    Returns:
      What `batch` returns.
    """
    share = grid.batch // self.num_shards
    first += self.shard * share
    clips = [self.clip(first + i, grid, **ranges) for i in range(share)]
    return {
      'video': np.stack([c['video'] for c in clips]),
      'label': _stack_labels([c['label'] for c in clips]),
      'flip': np.array([c['flip'] for c in clips], bool),
      'ids': [c['id'] for c in clips],
      'skipped': [s for c in clips for s in c['skipped']],
    }

  def batches(self, first_step: int) -> Iterator[dict]:
    """Yields the batches from `first_step` to the end, decoded ahead."""
    return read_ahead.read_ahead(
      self.batch,
      range(first_step, self.schedule.total_steps),
      self.config.data,
      name='step',
    )

  def base_batches(self, step: int, count: int) -> Iterator[dict]:
    """Yields `count` batches of `base_batch`, decoded ahead."""
    return read_ahead.read_ahead(
      functools.partial(self.base_batch, step),
      range(count),
      self.config.data,
      name=f'batch-norm statistics of step {step}, batch',
    )


@dataclasses.dataclass(frozen=True)
class EvalStream:
  """Makes the evaluation batches: every view of every video, once.

  Item i is crop i % num_crops of view i // num_crops % num_views of video
  i // (num_crops * num_views). The last batch is padded with copies of the
  last item that have weight 0.

  Raises:
    ConfigError: The crops do not suit the data set.
  """

  config: ml_collections.ConfigDict
  source: Source
  batch_size: int
  shard: int = 0
  num_shards: int = 1

  def __post_init__(self):
    run_checks.check_crops(self.config)

  @property
  def views_per_video(self) -> int:
    return self.config.eval.num_views * self.config.eval.num_crops

  @property
  def num_batches(self) -> int:
    return math.ceil(len(self.source) * self.views_per_video / self.batch_size)

  def batch(self, number: int) -> dict:
    """Makes this host's share of batch `number`.

    Returns:
      'video' uint8 [b, T, H, W, 3], 'label' int32 [b], or float32 [b, K] where
      videos have actions, 'weight' float32 [b]: 1 for a view that counts, 0
      for padding and for videos that cannot be decoded; 'index' int64 [b], the
      video's place in the source; 'lost' bool [b], views that cannot be
      decoded, without padding; 'failed', (id, reason) of those.
    """
    share = self.batch_size // self.num_shards
    first = number * self.batch_size + self.shard * share
    num_items = len(self.source) * self.views_per_video
    num_crops = self.config.eval.num_crops
    crops, labels, index, lost, failed = [], [], [], [], []
    view = None
    for item in range(first, first + share):
      clip, crop = divmod(min(item, num_items - 1), num_crops)
      # Consecutive crops, and all padding, are cut from the same frames.
      if view is None or view['clip'] != clip:
        view = self._view(clip)
        if 'error' in view and item < num_items:
          failed.append((view['id'], view['error']))
      crops.append(self._crop(view['frames'], crop))
      labels.append(view['label'])
      index.append(clip // self.config.eval.num_views)
      lost.append('error' in view and item < num_items)
    counts = np.arange(first, first + share) < num_items
    return {
      'video': np.stack(crops),
      'label': _stack_labels(labels),
      'weight': (counts & ~np.array(lost)).astype(np.float32),
      'index': np.array(index, np.int64),
      'lost': np.array(lost),
      'failed': failed,
    }

  def _view(self, clip: int) -> dict:
    """Decodes view clip % num_views of video clip // num_views.

    Returns:
      'clip'; 'frames' uint8 [T, h, w, 3], resized and not yet cropped;
      'label', 0 where the video cannot be read; 'id'; and 'error', where it
      cannot be read or decoded.
    """
    data, evaluation = self.config.data, self.config.eval
    index, view = divmod(clip, evaluation.num_views)
    hw = crop_hw(evaluation)
    short = evaluation.short_side_px
    if evaluation.num_crops == 3:
      short = evaluation.crop_px
    num_classes = self.config.model.num_classes
    no_label = np.zeros(num_classes, np.float32)
    label = no_label if self.source.has_actions else 0
    try:
      example = self.source.read(index, short_px=max(short, *hw))
      label = example.label
      if label is None:
        label = union_labels(example.actions, num_classes)
      read_ahead.decoding(example.id)
      with Video(example.video, in_order=example.in_order) as video:
        form = example.form or video.form
        frames = sampling.view_frames(
          form.num_frames,
          form.fps,
          num_frames=data.num_frames,
          stride_frames=data.stride_frames,
          sampling=data.sampling,
          target_fps=data.target_fps,
          view=view,
          num_views=evaluation.num_views,
        )
        height, width = sampling.resized_hw(
          form.height, form.width, short_px=short, at_least=hw
        )
        return {
          'clip': clip,
          'label': label,
          'id': example.id,
          'frames': video.frames(frames, height, width),
        }
    except DecodeError as error:  # Of the record, or of what is in it.
      return {
        'clip': clip,
        'label': label,
        'frames': np.zeros((data.num_frames, *hw, 3), np.uint8),
        'id': self.source.name_of(index),
        'error': str(error),
      }

  def _crop(self, frames: np.ndarray, crop: int) -> np.ndarray:
    num_crops = self.config.eval.num_crops
    height, width = crop_hw(self.config.eval)
    y, x = sampling.crop_offsets(
      *frames.shape[1:3],
      crop_hw=(height, width),
      crop=crop,
      num_crops=num_crops,
    )
    pixels = frames[:, y : y + height, x : x + width]
    if sampling.is_mirrored(crop, num_crops):
      return pixels[:, :, ::-1]
    return pixels

  def batches(self, first: int = 0) -> Iterator[dict]:
    """Yields all batches from `first` on, in order, decoded ahead."""
    return read_ahead.read_ahead(
      self.batch,
      range(first, self.num_batches),
      self.config.data,
      name='evaluation batch',
    )


def _stack_labels(labels: list) -> np.ndarray:
  """Labels of a batch: int32 [b], or float32 [b, K] where they are vectors."""
  dtype = np.float32 if np.ndim(labels[0]) else np.int32
  return np.array(labels, dtype)


def _hash32(*numbers: int) -> int:
  """A 32-bit hash of integers, the same on every machine and version."""
  digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
  return int.from_bytes(digest, 'little')
