"""Whether a video is recorded turned or mirrored, and how it becomes upright.

Phones store what the sensor sees and say in the file how it was held. Players
turn the picture, so the frames of clips are turned, too; else a portrait video
would be trained on lying on its side.
"""

import math
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData

# The matrix of an upright track or movie in an mp4 header (ISO/IEC 14496-12,
# 8.2.2 and 8.3.2), and where it is behind the name of the header that has it:
# times are 64 bits long in version 1.
_UPRIGHT = b''.join(
  number.to_bytes(4, 'big')
  for number in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
)
_MATRIX_PLACES = {b'tkhd': (44, 56), b'mvhd': (40, 52)}


class Orientation(NamedTuple):
  """What a player does with decoded frames, in this order."""

  is_mirrored: bool  # Left and right are exchanged.
  turns: int  # Quarter turns counter-clockwise, 0 to 3.


def orientation(frame: av.VideoFrame) -> Orientation:
  """What makes a frame upright, to the nearest quarter turn.

  Source: the matrix of ISO/IEC 14496-12, 8.2.2, as FFmpeg gives it to frames:
    the pixel at (x, y) is shown at (a x + c y, b x + d y).
  """
  try:
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
  except ValueError:
    # PyAV 18 raises it where a frame has side data that PyAV does not know.
    return Orientation(False, round(frame.rotation / 90) % 4)
  if matrix is None:
    return Orientation(False, 0)
  a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
  is_mirrored = bool(a * d < b * c)
  if is_mirrored:
    a, b = -a, -b
  # Rows are counted downwards: what turns x towards y is clockwise.
  return Orientation(is_mirrored, round(-math.atan2(b, a) / (math.pi / 2)) % 4)


def upright(pixels: np.ndarray, how: Orientation) -> np.ndarray:
  """Returns the pixels [H, W, 3] of a frame as they are shown."""
  if how.is_mirrored:
    pixels = pixels[:, ::-1]
  return np.ascontiguousarray(np.rot90(pixels, how.turns))


def may_be_turned(encoded: bytes) -> bool:
  """Whether an mp4 or mov file says that its frames are not upright."""
  header = _header(encoded)
  for name, places in _MATRIX_PLACES.items():
    start = header.find(name)
    while start >= 0:
      matrix = start + places[header[start + 4 : start + 5] == b'\1']
      if header[matrix : matrix + len(_UPRIGHT)] != _UPRIGHT:
        return True
      start = header.find(name, start + 4)
  return False


def _header(encoded: bytes) -> bytes:
  """The box of an mp4 or mov file that describes it.

  Source: ISO/IEC 14496-12, 4.2.
  """
  place = 0
  while place < len(encoded):
    size = int.from_bytes(encoded[place : place + 4], 'big')
    if size == 1:  # Then 64 bits follow the name.
      size = int.from_bytes(encoded[place + 8 : place + 16], 'big')
    if encoded[place + 4 : place + 8] == b'moov':
      return encoded[place : place + size] if size else encoded[place:]
    if size < 8:
      break
    place += size
  return encoded  # FFmpeg may find it nevertheless.
