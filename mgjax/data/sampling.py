"""Where a clip lies in its video: frame indices, resized size, crop offsets.

Pure functions of the video's form and of uniform numbers in [0, 1), so that a
clip depends on its number alone. The formulas are those of the reference
(facebookresearch/SlowFast, commit 287ec00: slowfast/datasets/decoder.py,
ssv2.py, charades.py, transform.py); differences are named where they occur.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np


def _clocked_frames(
  num_source: int,
  fps: float,
  *,
  num_frames: int,
  stride_frames: int,
  target_fps: float,
  start_of: Callable[[float], float],
) -> np.ndarray:
  """Takes `num_frames` frames that strides of a target_fps clock are apart.

  Args:
    num_source: Frames of the video, at least 1.
    fps: Its frame rate.
    num_frames: T, at least 1.
    stride_frames: The stride, in ticks of the clock.
    target_fps: Rate of the clock.
    start_of: From the frames that a clip may be shifted by to those that it
      is shifted by, a position between two of them included.

  Returns:
    int64 [T], each in [0, num_source); a short video repeats its last frame.

  Source: SlowFast decoder.decode (clip_sz) and decoder.temporal_sampling.
  """
  span = clocked_span(fps, num_frames, stride_frames, target_fps)
  start = start_of(max(num_source - span, 0))
  indices = np.linspace(start, start + span - 1, num_frames)
  return np.floor(np.clip(indices, 0, num_source - 1)).astype(np.int64)


def clocked_span(
  fps: float, num_frames: int, stride_frames: int, target_fps: float
) -> float:
  """Frames of a video that a clip of strides of a target_fps clock spans."""
  return max(1.0, stride_frames * num_frames / target_fps * fps)


def _strided_frames(
  num_source: int, num_frames: int, stride_frames: int, start: int
) -> np.ndarray:
  """Takes every `stride_frames`-th frame from `start`, exactly.

  Returns:
    int64 [T]; indices outside the video become its first or last frame.

  Source: SlowFast charades.py.
  """
  indices = start + stride_frames * np.arange(num_frames)
  return np.clip(indices, 0, num_source - 1)


def segment_bounds(num_source: int, num_frames: int) -> np.ndarray:
  """First and last frame of each of `num_frames` equal segments.

  Returns:
    int64 [T, 2], both bounds inclusive, rounded half to even.

  Source: SlowFast ssv2.py; Wang et al. 2016 (TSN), section 3.1.
  """
  segment = (num_source - 1) / num_frames
  edges = [round(segment * i) for i in range(num_frames + 1)]
  return np.array(list(zip(edges[:-1], edges[1:], strict=True)), np.int64)


def train_frames(
  num_source: int,
  fps: float,
  *,
  num_frames: int,
  stride_frames: tuple[int, int],
  sampling: str,
  target_fps: float,
  uniforms: np.ndarray,
) -> np.ndarray:
  """Frame indices of a training clip.

  Args:
    num_source: Frames of the video.
    fps: Its frame rate.
    num_frames: T.
    stride_frames: Smallest and largest stride; one is drawn for the clip, all
      equally likely (multigrid keeps the span of some clips, the stride of
      others).
    sampling: 'dense' or 'segments'.
    target_fps: Frame rate of the strides; 0: that of the video.
    uniforms: At least 2 + T numbers in [0, 1): stride, start, then one for
      each segment.

  Returns:
    int64 [T].

  Source: Wu et al. 2020, section 3 (sampling grids); SlowFast kinetics.py.
  """
  if sampling == 'segments':
    low, high = segment_bounds(num_source, num_frames).T
    draws = uniforms[2 : 2 + num_frames]
    return low + np.floor(draws * (high - low + 1)).astype(np.int64)
  low, high = stride_frames
  stride = low + math.floor(uniforms[0] * (high - low + 1))
  if target_fps:
    return _clocked_frames(
      num_source,
      fps,
      num_frames=num_frames,
      stride_frames=stride,
      target_fps=target_fps,
      start_of=lambda room: uniforms[1] * room,
    )
  room = num_source - ((num_frames - 1) * stride + 1)
  first, last = min(room, 0), max(room, 0)
  start = first + math.floor(uniforms[1] * (last - first + 1))
  return _strided_frames(num_source, num_frames, stride, start)


def view_frames(
  num_source: int,
  fps: float,
  *,
  num_frames: int,
  stride_frames: int,
  sampling: str,
  target_fps: float,
  view: int,
  num_views: int,
) -> np.ndarray:
  """Frame indices of one of `num_views` evaluation views, spread over a video.

  Returns:
    int64 [T].

  Differs: The single view of a dense clip is the middle one; the reference
    takes the first (Kinetics) or divides by zero (Charades).
  """
  if sampling == 'segments':
    low, high = segment_bounds(num_source, num_frames).T
    return low + (high - low) * (2 * view + 1) // (2 * num_views)
  if target_fps:
    return _clocked_frames(
      num_source,
      fps,
      num_frames=num_frames,
      stride_frames=stride_frames,
      target_fps=target_fps,
      # Of K views the last starts at (K - 1) / K of the room, as the published
      # Kinetics numbers were computed.
      start_of=lambda room: (
        room / 2 if num_views == 1 else room * view / num_views
      ),
    )
  room = max(num_source - ((num_frames - 1) * stride_frames + 1), 0)
  start = room // 2 if num_views == 1 else round(room / (num_views - 1) * view)
  return _strided_frames(num_source, num_frames, stride_frames, start)


def short_side(
  jitter_px: tuple[int, int], *, inverse: bool, uniform: float
) -> int:
  """Draws the length that a training clip's short side is resized to.

  Args:
    jitter_px: Smallest and largest length.
    inverse: Draw the inverse of the length uniformly (smaller sizes are then
      more likely).
    uniform: A number in [0, 1).

  Source: SlowFast transform.random_short_side_scale_jitter.
  """
  low, high = jitter_px
  if inverse:
    return round(1 / (1 / high + uniform * (1 / low - 1 / high)))
  return round(low + uniform * (high - low))


def resized_hw(
  height: int, width: int, *, short_px: int, at_least: Sequence[int] = (0, 0)
) -> tuple[int, int]:
  """Size of a frame whose short side becomes `short_px`, aspect kept.

  Args:
    height: Of the frame, in pixels.
    width: Of the frame, in pixels.
    short_px: Wanted short side.
    at_least: Height and width of the crop that must fit. A wide crop can need
      a larger short side than wanted; it then decides.

  Returns:
    (height, width); the long side is rounded down.

  Source: SlowFast transform.random_short_side_scale_jitter.
  """
  if width < height:
    new = (math.floor(height / width * short_px), short_px)
  else:
    new = (short_px, math.floor(width / height * short_px))
  if new[0] < at_least[0] or new[1] < at_least[1]:
    scale = max(at_least[0] / height, at_least[1] / width)
    # Rounding may lose the last pixel of the side that decides.
    new = (
      max(math.floor(height * scale), at_least[0]),
      max(math.floor(width * scale), at_least[1]),
    )
  return new


def random_offset(length: int, crop_px: int, uniform: float) -> int:
  """First row (or column) of a random crop.

  The last possible offset never occurs, as in the reference.

  Source: SlowFast transform.random_crop.
  """
  return math.floor(uniform * (length - crop_px)) if length > crop_px else 0


def crop_offsets(
  height: int,
  width: int,
  *,
  crop_hw: tuple[int, int],
  crop: int,
  num_crops: int,
) -> tuple[int, int]:
  """Offsets of one of the crops of an evaluation view.

  Args:
    height: Of the resized frame.
    width: Of the resized frame.
    crop_hw: Size of the crop.
    crop: Which one, in [0, num_crops).
    num_crops: 1: the centre. 3: start, centre and end along the side with more
      to spare, which of square crops is the long one. 5:
      the corners (top left, top right, bottom left, bottom right), then the
      centre. 10: those, then the same again, to be mirrored (`is_mirrored`).

  Returns:
    (y, x) of the crop's first pixel.

  Source: SlowFast transform.uniform_crop for 1 and 3; Wang et al. 2016 (TSN)
    and IBM/bLVNet-TAM feadcd3, core/video_transforms.py for 5 and 10.
  Differs: Those put corners at multiples of 4 pixels, up to 3 pixels inside.
  """
  bottom, right = height - crop_hw[0], width - crop_hw[1]
  y, x = math.ceil(bottom / 2), math.ceil(right / 2)
  if num_crops == 1:
    return y, x
  if num_crops == 3:
    if bottom > right:
      return (0, y, bottom)[crop], x
    return y, (0, x, right)[crop]
  return ((0, 0), (0, right), (bottom, 0), (bottom, right), (y, x))[crop % 5]


def is_mirrored(crop: int, num_crops: int) -> bool:
  """Whether crop number `crop` of `num_crops` is mirrored, left to right."""
  return num_crops == 10 and crop >= 5
