"""Views of a decoded frame: resized, cut out, upright, RGB."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from mgjax.data.orientation import Orientation, orientation, upright

# Batches are decoded in parallel; threads within a frame would be in the way.
# This is the number of the whole process.
cv2.setNumThreads(1)


class Crop(NamedTuple):
  """Part of a resized frame, in its pixels."""

  y: int  # First row.
  x: int  # First column.
  height: int
  width: int


class View(NamedTuple):
  """A part of frames that are resized."""

  height: int  # Of the resized frame, in pixels.
  width: int
  crop: Crop


def shrinks(view: View, height: int, width: int) -> bool:
  """Whether frames of a height and width become less than half as large."""
  return 2 * view.height < height or 2 * view.width < width


def converter(
  views: Sequence[View],
  height: int,
  width: int,
  how: Orientation | None = None,
) -> Callable[[av.VideoFrame], list[np.ndarray]]:
  """Returns a function from a decoded frame to the views of it.

  Args:
    views: What is wanted of each frame.
    height: Of an upright frame, in pixels.
    width: Of an upright frame, in pixels.
    how: What makes a frame upright; None: every frame says it.

  Returns:
    A function to uint8 [crop.height, crop.width, 3] of each view.
  """
  parts = [_of_view(view, height, width) for view in views]
  reformatters = {size: VideoReformatter() for size, _ in parts}

  def convert(frame: av.VideoFrame) -> list[np.ndarray]:
    # Of each size once: to RGB is the larger part of the work.
    pixels: dict[tuple[int, int], np.ndarray] = {}
    for size, _ in parts:
      if size not in pixels:
        pixels[size] = _to_rgb(
          reformatters[size], frame, size, how or orientation(frame)
        )
    return [cut(pixels[size]) for size, cut in parts]

  return convert


def _to_rgb(
  reformatter: VideoReformatter,
  frame: av.VideoFrame,
  size: tuple[int, int],
  how: Orientation,
) -> np.ndarray:
  """A frame of a width and height, upright, uint8 [H, W, 3]."""
  pixels = reformatter.reformat(
    frame,
    *(size[::-1] if how.turns % 2 else size),
    'rgb24',
    interpolation=Interpolation.BILINEAR,
    # The default starts threads for every frame, which takes longer.
    threads=1,
  ).to_ndarray()
  return upright(pixels, how) if any(how) else pixels


def _of_view(
  view: View, full_height: int, full_width: int
) -> tuple[tuple[int, int], Callable[[np.ndarray], np.ndarray]]:
  """How a view is made: (width, height) of an RGB frame, then a function."""
  height, width, crop = view
  maps = {}
  # A pixel costs less there than where only the crop's are computed.
  resizes_all = height * width < 2.4 * crop.height * crop.width
  decoded = (full_width, full_height)

  def cut(pixels: np.ndarray) -> np.ndarray:
    if pixels.shape[:2] != (height, width) and resizes_all:
      pixels = cv2.resize(pixels, (width, height))
    if pixels.shape[:2] == (height, width):
      y, x = crop.y, crop.x
      return pixels[y : y + crop.height, x : x + crop.width]
    if not maps:
      maps['xy'] = _bilinear_maps(pixels.shape[:2], (height, width), crop)
    return cv2.remap(
      pixels,
      *maps['xy'],
      cv2.INTER_LINEAR,
      borderMode=cv2.BORDER_REPLICATE,
    )

  return (width, height) if shrinks(view, *decoded[::-1]) else decoded, cut


def _bilinear_maps(
  size: tuple[int, int], resized: tuple[int, int], crop: Crop
) -> tuple[np.ndarray, np.ndarray]:
  """Where cv2.remap finds the pixels of a crop of a resized frame.

  Args:
    size: Height and width of the frame.
    resized: Those it is resized to.
    crop: Part of the resized frame.

  Source: PyTorch's and OpenCV's bilinear resizing: position i of n pixels is
    (i + 0.5) * m / n - 0.5 of m.
  """
  y, x = (
    (np.arange(first, first + count) + 0.5) * m / n - 0.5
    for first, count, m, n in zip(
      crop[:2], crop[2:], size, resized, strict=True
    )
  )
  columns, rows = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
  # Fixed-point is faster, and 2 of 255 at most away.
  return cv2.convertMaps(columns, rows, cv2.CV_16SC2)
