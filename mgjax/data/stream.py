"""Training batches, each a function of its step: exact resume.

Clips come from the endless order of mgjax/data/order.py. Which frames of a
video a clip has, at what scale, from where and whether mirrored, is drawn by a
generator keyed by (seed, clip number); so any batch can be made by itself, in
any thread, on any host.

Where several clips in a row show a video (repeated augmentation), all have the
frames of the first of them, and those of a batch are decoded together.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Container, Iterator, Sequence

import numpy as np

from mgjax.data import read_ahead, sampling
from mgjax.data.decode import DecodeError
from mgjax.data.decoded_cache import DecodedCache
from mgjax.data.order import Order
from mgjax.data.read_ahead import Workers
from mgjax.data.sources import Example, Source, stack_labels, union_labels
from mgjax.data.views import Crop, View
from mgjax.errors import RunError
from mgjax.grids.schedule import Grid, GridSchedule

# Videos that are tried for a clip before the data set counts as unusable. Where
# one in a hundred is damaged, the default of data.max_bad_fraction, ten in a
# row are no accident: that has a probability of 1e-20.
_MAX_ATTEMPTS = 10

# What the random numbers of a clip, in [0, 1), decide. They are drawn at once
# and each has its place, so that no choice shifts the numbers of the others.
# Trained runs depend on these places: never renumber them.
_SCALE, _ROW, _COLUMN, _FLIP = 0, 1, 2, 3
# 4 and 5 are free.
_FRAMES = slice(6, None)  # Stride, start, and one for each segment.
_NUM_UNIFORMS = 8  # And one for each of the T segments.


@dataclasses.dataclass(frozen=True)
class ClipSettings:
  """How a training clip is drawn. Its step adds the grid and the ranges.

  Attributes:
    sampling: 'dense', a strided span, or 'segments', a frame of each of T
      equal parts of the video.
    target_fps: Frame rate at which strides count; 0: that of the video.
    jitter_inverse: Draw 1 / short side evenly, not the short side.
    flip: Mirror half of the clips, left to right.
    multi_hot: Labels are float32 [K], 1 for each label that a clip has, as
      the sigmoid loss takes them; False: a class number. Videos with any
      number of labels need True.
  """

  sampling: str
  target_fps: float
  jitter_inverse: bool
  flip: bool
  multi_hot: bool


# Nothing of it changes: threads share it, and worker processes have copies.
@dataclasses.dataclass(frozen=True)
class TrainStream:
  """Makes the training batch of any step.

  Attributes:
    schedule: Grids and clip positions of the steps.
    source: The training videos.
    order: Which video a clip shows, and which clips are this host's.
    settings: How clips are drawn.
    workers: Who makes batches ahead of their use.
    cache: Decoded frames of the videos; None: there are none.

  Raises:
    ValueError: The order has another number of examples than the source.
  """

  schedule: GridSchedule
  source: Source
  order: Order
  settings: ClipSettings
  workers: Workers
  cache: DecodedCache | None = None

  def __post_init__(self):
    # An order of fewer videos would leave the rest out, and nobody would see
    # it.
    if self.order.num_examples != len(self.source):
      raise ValueError(
        f'an order of {self.order.num_examples} examples cannot be that of '
        f'{len(self.source)} videos'
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
      stride_frames: Least and greatest frame stride.
      jitter_px: Least and greatest short side of the resized frames.

    Returns:
      'video' uint8 [T, H, W, 3], RGB; 'label', an int, or float32 [K] where
      settings.multi_hot; 'flip' bool, whether the train step is to mirror it;
      'id' text; and 'skipped': (id, reason) of videos that could not be read
      or decoded and were replaced.

    Raises:
      RunError: Replacements could not be decoded either.
    """
    (made,) = self._clips([clip], grid, stride_frames, jitter_px)
    return made

  def _clips(
    self,
    clips: Sequence[int],
    grid: Grid,
    stride_frames: tuple[int, int],
    jitter_px: tuple[int, int],
  ) -> list[dict]:
    """Decodes clips of one video, all or some of those that show it.

    Args:
      clips: Their numbers in the stream.
      grid, stride_frames, jitter_px: See `clip`.

    Returns:
      What `clip` returns of each; 'skipped' is the first one's.
    """
    # All before the video is opened: a replacement gets the same numbers, and
    # what a video turns out to be shifts none of them.
    siblings = self.order.siblings(clips[0])
    uniforms = {
      clip: self.order.generator(clip).random(_NUM_UNIFORMS + grid.T)
      for clip in siblings
    }
    short_px = {
      clip: sampling.short_side(
        jitter_px,
        inverse=self.settings.jitter_inverse,
        uniform=uniforms[clip][_SCALE],
      )
      for clip in siblings
    }
    skipped = []
    # No iterator: any host can make these clips, and so can a resumed run.
    index = self.order.example(clips[0])
    # Bounded: a run on a broken data set would train on the same few clips.
    for attempt in range(1, _MAX_ATTEMPTS + 1):
      try:
        made = self._decode(
          index, clips, grid, short_px, stride_frames, uniforms
        )
      except DecodeError as error:  # Of the record, or of what is in it.
        # Replaced, not left out: shapes are fixed, and a batch with a clip
        # less would be another program.
        # By the source: a record that cannot be read has no id to tell.
        skipped.append((self.source.name_of(index), str(error)))
        index = self.order.replacement(clips[0], attempt)
        continue
      return [
        {
          **one,
          # Done on the device, where it costs nothing.
          'flip': bool(self.settings.flip and uniforms[clip][_FLIP] < 0.5),
          'skipped': skipped if clip == clips[0] else [],
        }
        for clip, one in zip(clips, made, strict=True)
      ]
    # All of them with their reasons: one cause is likely to be behind them.
    raise RunError(
      f'{_MAX_ATTEMPTS} videos in a row could not be decoded '
      f'(clip {clips[0]}): {"; ".join(map(": ".join, skipped))}'
    )

  def _decode(
    self,
    index: int,
    clips: Sequence[int],
    grid: Grid,
    short_px: dict[int, int],
    stride_frames: tuple[int, int],
    uniforms: dict[int, np.ndarray],
  ) -> list[dict]:
    """'video', 'label' and 'id' of clips that are cut out of video `index`.

    Args:
      index: Of the video.
      clips: Those that are wanted.
      grid, stride_frames: See `clip`.
      short_px: For all clips that show the video, the short side.
      uniforms: For all of them, what is drawn.
    """
    # How large a copy must be. The crop of a wide grid can need a larger short
    # side than is drawn. Of all clips, whichever are wanted here: a host may
    # have some of them only.
    needed_px = max(*short_px.values(), grid.H, grid.W)
    example = self.source.read(index, short_px=needed_px)
    with example.open(self.cache) as video:
      # Of the original, where a smaller copy is read: the same frames and
      # the same part of the picture, whichever copy there is.
      form = example.form or video.form
      first, *_ = uniforms.values()
      frames = sampling.train_frames(
        form.num_frames,
        form.fps,
        num_frames=grid.T,
        stride_frames=stride_frames,
        sampling=self.settings.sampling,
        target_fps=self.settings.target_fps,
        uniforms=first[_FRAMES],
      )
      views = []
      for clip in clips:
        # The drawn size. Not `needed_px`: the copy must not change what is seen
        # of the picture.
        height, width = sampling.resized_hw(
          form.height,
          form.width,
          short_px=short_px[clip],
          at_least=grid[1:3],
        )
        crop = Crop(
          sampling.random_offset(height, grid.H, uniforms[clip][_ROW]),
          sampling.random_offset(width, grid.W, uniforms[clip][_COLUMN]),
          grid.H,
          grid.W,
        )
        views.append(View(height, width, crop))
      label = self._label(example, frames, form.fps)
      return [
        {'video': pixels, 'label': label, 'id': example.id}
        # Decodes no other frames, and resizes no more than the crop of them.
        for pixels in video.views(frames, views)
      ]

  def _label(self, example: Example, frames: np.ndarray, fps: float):
    """The label of a clip: a number, or float32 [K]."""
    if not self.settings.multi_hot:
      return example.label
    # Weights and no list of numbers: all labels of a batch have one shape.
    num_classes = len(self.source.label_names)
    if example.label is not None:
      return np.eye(num_classes, dtype=np.float32)[example.label]
    # Of what the clip shows: a video may have ten actions, a clip one.
    return union_labels(
      example.actions,
      num_classes,
      first_frame=int(frames[0]),
      last_frame=int(frames[-1]),
      fps=fps,
    )

  def batch(self, step: int) -> dict:
    """Makes this host's share of the batch of `step`.

    Args:
      step: In [0, schedule.total_steps).

    Returns:
      'video' uint8 [b, T, H, W, 3], RGB; 'label' int32 [b] (float32 [b, K]
      where settings.multi_hot); 'flip' bool [b], with b = batch / num_shards;
      'ids', a list of text; 'skipped', one of (id, reason); 'ids_crc32', see
      `checksum`.

    Raises:
      RunError: Too many videos in a row cannot be decoded, or the disk cannot
        be read.
    """
    phase = self.schedule.phase(step)
    # Strides belong to the phase, whose number of frames they make up for;
    # resized sides to the place in the short cycle, whose crop they fit.
    position = self.schedule.cycle_index(step)
    return self.clips_from(
      self.schedule.clips_before(step),
      phase.cycle[position],
      stride_frames=phase.stride_frames,
      jitter_px=phase.jitter_px[position],
    )

  def ids(self, step: int, replaced: Container[str]) -> list[str]:
    """Names the videos of the whole batch of `step`; none is decoded.

    Args:
      step: In [0, schedule.total_steps).
      replaced: Names of the videos that cannot be decoded, at least those
        that were drawn for this batch.

    Returns:
      'ids' of all shards' batches, in their order.
    """
    first = self.schedule.clips_before(step)
    return [
      self._shown(clip, replaced)
      for clip in range(first, first + self.schedule(step).batch)
    ]

  def _shown(self, clip: int, replaced: Container[str]) -> str:
    """The id of the video that a clip shows: see `clip`."""
    # The walk that `clip` takes, by what it has found damaged before.
    name = self.source.name_of(self.order.example(clip))
    for attempt in range(1, _MAX_ATTEMPTS):
      if name not in replaced:
        break
      name = self.source.name_of(self.order.replacement(clip, attempt))
    return name

  def base_batch(self, step: int, number: int) -> dict:
    """Makes batch `number` of those for the batch-norm statistics at `step`.

    These batches have the base grid of the phase that `step` ends, and show
    the clips that the stream would show next: no clips of their own, whose
    order a resumed run would have to know.

    Args:
      step: Steps done, at least 1.
      number: From 0 on.

    Returns:
      What `batch` returns.
    """
    # The phase that trained the weights, also where it has just ended.
    phase = self.schedule.phase(step - 1)
    first = self.schedule.clips_before(step) + number * phase.base.batch
    return self.clips_from(
      first,
      phase.base,
      stride_frames=phase.stride_frames,
      # The base grid is the last one of its cycle.
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
    # Of this host alone: no host decodes what another one shows.
    numbers = self.order.share(first, grid.batch)
    # One by one: threads make whole batches, and none waits for another.
    clips = [
      clip
      for _, of_video in itertools.groupby(numbers, self.order.siblings)
      for clip in self._clips(list(of_video), grid, **ranges)
    ]
    ids = [clip['id'] for clip in clips]
    return {
      # uint8: a quarter of the bytes to copy to the device, which normalises.
      'video': np.stack([clip['video'] for clip in clips]),
      'label': stack_labels([clip['label'] for clip in clips]),
      'flip': np.array([clip['flip'] for clip in clips], bool),
      'ids': ids,
      'ids_crc32': checksum(numbers, ids),
      'skipped': [video for clip in clips for video in clip['skipped']],
    }

  def batches(self, first_step: int) -> Iterator[dict]:
    """Yields the batches from `first_step` to the end, decoded ahead."""
    # Across phases: the first batch of a new grid is ready in time.
    return read_ahead.read_ahead(
      self.batch,
      range(first_step, self.schedule.total_steps),
      self.workers,
      name='step',
    )

  def base_batches(self, step: int, count: int) -> Iterator[dict]:
    """Yields `count` batches of `base_batch`, decoded ahead."""
    return read_ahead.read_ahead(
      functools.partial(self.base_batch, step),
      range(count),
      self.workers,
      name=f'batch-norm statistics of step {step}, batch',
    )


def checksum(numbers: range, ids: list[str]) -> int:
  """A checksum of which clip showed which video.

  The checksum of a batch is the sum of its shares' checksums, modulo 2**32. So
  hosts exchange one number to compare what they have seen, not the names of
  all clips, and the checksum does not depend on the number of hosts.

  Args:
    numbers: Of the clips.
    ids: Of their videos, in the same order.

  Returns:
    An integer in [0, 2**32).
  """
  # CRC-32: Python's own hash of a text is another one in every process. The
  # clip is in it, since a sum does not know an order.
  pairs = zip(numbers, ids, strict=True)
  return sum(zlib.crc32(f'{clip} {name}'.encode()) for clip, name in pairs) % (
    2**32
  )
