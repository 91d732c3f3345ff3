"""One frame that stands for all of a video, as their pixels are exchanged.

What is made of it is what is made of the frame that the pixels are of: then the
pixels are all that has to be kept of a frame.
"""

import dataclasses
import functools
from typing import Any

import av
import numpy as np

from mgjax.data.decode import Form
from mgjax.data.orientation import Orientation, orientation
from mgjax.data.views import Crop, View, converter

# What the conversion to RGB reads of a frame besides its pixels. PyAV 18 does
# not know the last one, where in a pixel its colours are (`stays`).
_COLOURS = ('colorspace', 'color_range', 'chroma_location')
_KNOWS_ALL = all(hasattr(av.VideoFrame, name) for name in _COLOURS)


class NotKept(Exception):
  """The frames of a video cannot be kept; says why."""


@dataclasses.dataclass(frozen=True)
class Kind:
  """What all frames of a video have in common.

  Attributes:
    width: Of a frame before it is upright, in pixels.
    height: Of it.
    format: FFmpeg's name of the pixel format.
    colours: By name, of _COLOURS.
    how: What makes a frame upright.
    is_interlaced: Whether it consists of two fields, which are resized apart.
  """

  width: int
  height: int
  format: str
  colours: dict[str, int]
  how: Orientation
  is_interlaced: bool = False

  @classmethod
  def of(cls, frame: av.VideoFrame) -> 'Kind':
    """That of a decoded frame."""
    colours = {
      name: int(getattr(frame, name))
      for name in _COLOURS
      if hasattr(frame, name)
    }
    return cls(
      *(frame.width, frame.height, frame.format.name, colours),
      *(orientation(frame), frame.interlaced_frame),
    )


class HeldFrame:
  """A frame of one kind whose pixels are exchanged."""

  def __init__(self, kind: Kind):
    self.kind = kind
    self.frame = av.VideoFrame(kind.width, kind.height, kind.format)
    for name, value in kind.colours.items():
      setattr(self.frame, name, value)
    self._planes = self.frame.planes
    self.num_bytes = sum(plane.buffer_size for plane in self._planes)

  def copy(self, frame: av.VideoFrame) -> bytes:
    """Takes the pixels of a frame of its kind; returns them as bytes."""
    for ours, theirs in zip(self._planes, frame.planes, strict=True):
      to, rows = _rows(ours), _rows(theirs)
      # A decoder's rows are padded to other lengths.
      width = min(to.shape[1], rows.shape[1])
      to[:, :width] = rows[:, :width]
    return b''.join(map(bytes, self._planes))

  def load(self, pixels: bytes) -> None:
    """Takes the pixels that `copy` has returned."""
    start, view = 0, memoryview(pixels)
    for plane in self._planes:
      plane.update(view[start : start + plane.buffer_size])
      start += plane.buffer_size


def _rows(plane: Any) -> np.ndarray:
  """The rows of a plane, padding included; uint8 [height, line_size]."""
  pixels = np.frombuffer(plane, np.uint8)
  return pixels[: plane.height * plane.line_size].reshape(plane.height, -1)


@functools.lru_cache
def frame_bytes(width: int, height: int, pixel_format: str) -> int | None:
  """Bytes of a frame; None: there are no such frames here."""
  try:
    kind = Kind(width, height, pixel_format, {}, Orientation(False, 0))
    return HeldFrame(kind).num_bytes
  except ValueError:
    return None


def hold(kind: Kind) -> HeldFrame:
  """What holds frames of a kind.

  Raises:
    NotKept: Nothing does.
  """
  if kind.is_interlaced:
    raise NotKept('its frames are interlaced')
  if frame_bytes(kind.width, kind.height, kind.format) is None:
    raise NotKept(f'there are no frames of {kind.format} to fill')
  if _format(kind).has_palette:
    raise NotKept('its frames have palettes')
  return HeldFrame(kind)


def _format(kind: Kind) -> av.VideoFormat:
  return av.VideoFormat(kind.format, kind.width, kind.height)


def stays(frame: av.VideoFrame, held: HeldFrame, form: Form) -> bool:
  """Whether a frame that is held becomes the pixels that it becomes now.

  Args:
    frame: As the decoder gives it.
    held: Has its pixels.
    form: Of the video.

  Returns:
    Whether it does so where it is shrunk, too.

  Raises:
    NotKept: Not even where it is not.
  """

  def is_same(height: int, width: int) -> bool:
    view = View(height, width, Crop(0, 0, height, width))
    (now,), (kept,) = (
      converter([view], form.height, form.width, how)(given)
      for given, how in ((frame, None), (held.frame, held.kind.how))
    )
    return np.array_equal(now, kept)

  if not is_same(form.height, form.width):
    raise NotKept(f'frames of {held.kind.format} do not stay what they are')
  parts = _format(held.kind).components
  # If PyAV does not tell where in a pixel its colours are, frames of one colour
  # would not show it.
  may_shrink = _KNOWS_ALL or all(
    (part.width, part.height) == (held.kind.width, held.kind.height)
    for part in parts
  )
  return may_shrink and is_same(
    max(1, form.height * 2 // 5), max(1, form.width * 2 // 5)
  )
