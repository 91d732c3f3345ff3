"""Cuts the frames of a stream into windows, each of which gets a label.

A window is scored as an evaluation scores a video that has exactly its frames:
by the same code, at the same rate, in the same views.
"""

import collections
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mgjax import files
from mgjax.data.decode import Form, FramesVideo
from mgjax.data.eval_stream import Views
from mgjax.data.frame_reader import FrameReader, Shown, upright_sides
from mgjax.data.sampling import clocked_span
from mgjax.data.views import Crop, View, converter
from mgjax.errors import ConfigError

# Frames of a window are kept, and nothing else: more than that is a mistake.
_MAX_BYTES = 2**31


class WindowError(ConfigError):
  """Windows that a source cannot have; another source may."""


class Settings(NamedTuple):
  """Which windows there are.

  Attributes:
    views: What is shown of each.
    every_frames: Frames from the start of one window to the next; None: see
      every_s.
    every_s: The same in seconds.
    window_s: Seconds of a window; None: a window is one clip.
  """

  views: Views
  every_frames: int | None
  every_s: float | None
  window_s: float | None

  def hop(self, fps: float) -> float:
    """Frames from one window to the next, at least 1."""
    return max(1.0, float(self.every_frames or self.every_s * fps))

  def num_frames(self, fps: float) -> int:
    """Frames of a window of a source.

    Raises:
      WindowError: A clip does not fit in.
    """
    views = self.views
    if views.sampling == 'segments':
      return max(1, round(self.window_s * fps))
    clip = (views.num_frames - 1) * views.stride_frames + 1
    if views.target_fps:
      clip = clocked_span(
        fps, views.num_frames, views.stride_frames, views.target_fps
      )
    # No frame more for a rounding error.
    least = math.ceil(clip - 1e-6)
    if self.window_s is None:
      return least
    # By seconds, rounded to a frame: the same window fits, or not, at every
    # rate.
    if self.window_s * fps < clip - 0.5:
      raise WindowError(
        f'--window_s={self.window_s:g} is shorter than a clip of the network, '
        f'which spans {clip / fps:.2f} s here'
      )
    return max(least, round(self.window_s * fps))


class Window(NamedTuple):
  """Consecutive frames of a source.

  Attributes:
    video: The frames as a video.
    start_s: Of the first one, in seconds from the start of the source.
    end_s: Of the last one.
  """

  video: 'WindowVideo'
  start_s: float
  end_s: float


class WindowVideo(FramesVideo):
  """Frames in memory, resized already, as the video that a window is."""

  def __init__(self, frames: list[np.ndarray], source: Form):
    """Wraps frames.

    Args:
      frames: Each uint8 [h, w, 3], RGB, upright, of the size that `Views.
        resized_hw` asks for.
      source: Of the frames before they were resized, with their rate.
    """
    super().__init__(source._replace(num_frames=len(frames)))
    self._frames = frames

  def frames(
    self,
    indices: np.ndarray,
    height: int,
    width: int,
    crop: Crop | None = None,
  ) -> np.ndarray:
    assert crop is None and self._frames[0].shape[:2] == (height, width)
    return np.stack([self._frames[i] for i in indices])


def windows(reader: FrameReader, settings: Settings) -> Iterator[Window]:
  """Yields the windows of a source that is open.

  The last window ends with the last frame. It has fewer frames than the others
  only where there are no more.

  Args:
    reader: Of the source.
    settings: Which windows there are.

  Raises:
    WindowError: A clip does not fit into a window, or a window into memory.
    DecodeError: As `FrameReader.shown`.
    RunError: As `FrameReader.shown`; the windows before are yielded.
  """
  part = None
  for shown in reader.shown():
    if shown.since_s is not None:
      if part:
        yield from part.last()
      part = _Part(settings, reader.fps, shown)
    yield from part.add(shown)
  if part:
    yield from part.last()


class _Part:
  """Frames that follow each other, and the windows among them."""

  def __init__(self, settings: Settings, fps: float, first: Shown):
    self._form = Form(0, fps, *upright_sides(first.frame))
    self._since_s = first.since_s
    self._length = settings.num_frames(fps)
    self._hop = settings.hop(fps)
    height, width = settings.views.resized_hw(self._form)
    if (size := self._length * height * width * 3) > _MAX_BYTES:
      raise WindowError(
        f'a window has {self._length} frames of {width} x {height} pixels, at '
        f'{fps:g} frames per second: {files.size_text(size)}, more than the '
        f'{files.size_text(_MAX_BYTES)} that are accepted; a smaller '
        '--window_s takes less, or --input_options=framerate=... where the '
        'rate is wrong'
      )
    self._convert = converter(
      [View(height, width, Crop(0, 0, height, width))],
      self._form.height,
      self._form.width,
    )
    self._kept = collections.deque(maxlen=self._length)
    self._seen = 0
    self._number = 0  # Of the window to come.
    self._end = 0  # Of the window before.

  def add(self, shown: Shown) -> Iterator[Window]:
    """Yields the windows that a frame completes."""
    # What was shown for several ticks is several frames.
    for _ in range(shown.ticks - 1):
      yield from self._append(self._kept[-1])
    (pixels,) = self._convert(shown.frame)
    yield from self._append(pixels)

  def last(self) -> Iterator[Window]:
    """Yields the window that ends with the last frame, if it is another one."""
    if self._seen > self._end:
      yield self._window()

  def _append(self, pixels: np.ndarray) -> Iterator[Window]:
    self._kept.append(pixels)
    self._seen += 1
    # Rounded here, so that a label every second is one every second.
    if self._seen == round(self._number * self._hop) + self._length:
      self._number += 1
      yield self._window()

  def _window(self) -> Window:
    self._end = self._seen
    fps = self._form.fps
    return Window(
      WindowVideo(list(self._kept), self._form),
      self._since_s + (self._seen - len(self._kept)) / fps,
      self._since_s + self._seen / fps,
    )
