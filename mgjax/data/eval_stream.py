"""Evaluation batches: every view of every video once, in the source's order.

A batch is a function of its number, as a training batch is of its step: an
evaluation that was killed goes on with the batches that are not scored.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from mgjax.data import read_ahead, sampling
from mgjax.data.decode import DecodeError, Form
from mgjax.data.decoded_cache import DecodedCache
from mgjax.data.read_ahead import Workers
from mgjax.data.sources import Source, stack_labels, union_labels


@dataclasses.dataclass(frozen=True)
class Views:
  """Which clips of a video are evaluated: num_views in time, crops of each.

  Attributes:
    num_views: Clips that are spread over a video, at least 1.
    num_crops: Crops of each, 1, 3, 5 or 10 (`sampling.crop_offsets`).
    num_frames: T.
    stride_frames: Frames from one sampled frame to the next.
    sampling: See `stream.ClipSettings`.
    target_fps: See `stream.ClipSettings`.
    short_side_px: Short side to which frames are resized before the crop.
    crop_hw: Height and width of the crop, in pixels; where it does not fit
      into the resized frame, the frame is resized so that it does.
  """

  num_views: int
  num_crops: int
  num_frames: int
  stride_frames: int
  sampling: str
  target_fps: float
  short_side_px: int
  crop_hw: tuple[int, int]

  def resized_hw(self, form: Form) -> tuple[int, int]:
    """Height and width to which the frames of a video are resized."""
    return sampling.resized_hw(
      form.height,
      form.width,
      short_px=self.short_side_px,
      at_least=self.crop_hw,
    )


# Nothing of it changes: threads share it, and worker processes have copies.
@dataclasses.dataclass(frozen=True)
class EvalStream:
  """Makes the evaluation batches: every view of every video, once.

  Item i is crop i % num_crops of view i // num_crops % num_views of video
  i // (num_crops * num_views). The last batch is padded with copies of the
  last item that have weight 0: one shape, one program.

  Attributes:
    source: The videos.
    views: What is shown of each.
    batch_size: Clips of a batch over all hosts, a multiple of num_shards.
    workers: Who makes batches ahead of their use.
    shard: This host's number among those that share every batch.
    num_shards: Number of these hosts.
    cache: Decoded frames of the videos; None: there are none.
  """

  source: Source
  views: Views
  batch_size: int
  workers: Workers
  shard: int = 0
  num_shards: int = 1
  cache: DecodedCache | None = None

  @property
  def views_per_video(self) -> int:
    """Clips that are scored of each video."""
    return self.views.num_views * self.views.num_crops

  @property
  def num_batches(self) -> int:
    # Rounded up: the last batch is padded, as no video may be left out.
    return math.ceil(len(self.source) * self.views_per_video / self.batch_size)

  def batch(self, number: int) -> dict:
    """Makes this host's share of batch `number`.

    Args:
      number: In [0, num_batches).

    Returns:
      'video' uint8 [b, T, H, W, 3], RGB; 'label' int32 [b], or float32 [b, K]
      where videos have actions; 'weight' float32 [b]: 1 for a view that
      counts, 0 for padding and for videos that cannot be decoded; 'index'
      int64 [b], the video's place in the source; 'lost' bool [b], views that
      cannot be decoded, without padding; 'failed', (id, reason) of those.
      b is batch_size / num_shards.

    Raises:
      RunError: The disk cannot be read.
    """
    # Hosts share batches, not videos: all run the same number of programs.
    share = self.batch_size // self.num_shards
    first = number * self.batch_size + self.shard * share
    num_items = len(self.source) * self.views_per_video
    crops, labels, index, lost, failed = [], [], [], [], []
    # Of the crop before. A batch may begin in the middle of a view, which its
    # neighbour then decodes as well: no batch needs another one.
    view = None
    for item in range(first, first + share):
      # Padding repeats the last item, which costs no other decode.
      view_number, crop = divmod(min(item, num_items - 1), self.views.num_crops)
      # Consecutive crops, and all padding, are cut from the same frames.
      if view is None or view['number'] != view_number:
        view = self._view(view_number)
        # Padding is no loss: the host that has the view itself counts it.
        if view['error'] and item < num_items:
          failed.append((view['id'], view['error']))
      crops.append(self._crop(view['frames'], crop))
      labels.append(view['label'])
      index.append(view_number // self.views.num_views)
      lost.append(view['error'] is not None and item < num_items)
    # A weight and not a mask of another shape: one program for all batches.
    counts = np.arange(first, first + share) < num_items
    return {
      'video': np.stack(crops),
      'label': stack_labels(labels),
      'weight': (counts & ~np.array(lost)).astype(np.float32),
      'index': np.array(index, np.int64),
      'lost': np.array(lost),
      'failed': failed,
    }

  def _view(self, number: int) -> dict:
    """Decodes view number % num_views of video number // num_views.

    Returns:
      'number'; 'frames' uint8 [T, h, w, 3], resized and not yet cropped;
      'label', 0 where the video cannot be read; 'id'; and 'error', None or why
      it cannot be read or decoded.
    """
    views = self.views
    index, view = divmod(number, views.num_views)
    num_classes = len(self.source.label_names)
    # For damaged records: it does not count, but needs the others' shape.
    label = np.zeros(num_classes, np.float32) if self.source.has_actions else 0
    try:
      # A copy must have the pixels of the crop, too: resized frames are no
      # smaller.
      example = self.source.read(
        index, short_px=max(views.short_side_px, *views.crop_hw)
      )
      label = example.label
      # Of the whole video, whatever the views show, as in the source of
      # `union_labels`: scores are those of the video.
      if label is None:
        label = union_labels(example.actions, num_classes)
      with example.open(self.cache) as video:
        # Of the original, where a smaller copy is read: as in training.
        form = example.form or video.form
        frames = sampling.view_frames(
          form.num_frames,
          form.fps,
          num_frames=views.num_frames,
          stride_frames=views.stride_frames,
          sampling=views.sampling,
          target_fps=views.target_fps,
          view=view,
          num_views=views.num_views,
        )
        height, width = views.resized_hw(form)
        name, error = example.id, None
        # Not cropped here: the crops of a view share its frames.
        pixels = video.frames(frames, height, width)
    except DecodeError as error_of_video:  # Of the record, or of what is in it.
      # Not replaced, as in training: another video's score would be wrong. A
      # black view fills its place, since the shape of a batch is fixed.
      pixels = np.zeros((views.num_frames, *views.crop_hw, 3), np.uint8)
      name, error = self.source.name_of(index), str(error_of_video)
    return {
      'number': number,
      'label': label,
      'id': name,
      'frames': pixels,
      'error': error,
    }

  def _crop(self, frames: np.ndarray, crop: int) -> np.ndarray:
    """Cuts crop number `crop` out of the frames of a view."""
    height, width = self.views.crop_hw
    y, x = sampling.crop_offsets(
      *frames.shape[1:3],
      crop_hw=(height, width),
      crop=crop,
      num_crops=self.views.num_crops,
    )
    # A black view of a lost video has just the size of a crop: offsets are 0.
    pixels = frames[:, y : y + height, x : x + width]
    # Here and not on the device: the evaluation program knows of no flips.
    if sampling.is_mirrored(crop, self.views.num_crops):
      return pixels[:, :, ::-1]
    return pixels

  def batches(self, first: int = 0) -> Iterator[dict]:
    """Yields all batches from `first` on, in order, decoded ahead."""
    # Not all from 0: an evaluation that was killed has the scores of the
    # others.
    return read_ahead.read_ahead(
      self.batch,
      range(first, self.num_batches),
      self.workers,
      name='evaluation batch',
    )
