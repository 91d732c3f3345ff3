"""Whether a video is sound, and whether random access finds its frames.

`scan` decodes a video from its first to its last frame, so that no damage waits
for a training or a prediction to find it, and decodes it again by random
access, as these do. A prepared data set stores a file as it is only if both
give the same frames.
"""

import functools
import hashlib
import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np

from mgjax.data.decode import DecodeError, Form, Video
from mgjax.data.orientation import orientation

# The parts of a Matroska file.
_EBML_HEADER = b'\x1a\x45\xdf\xa3'
_EBML_SEGMENT = b'\x18\x53\x80\x67'

# How `scan` tries whether frames may be skipped (`_attempts`).
_TRIED_GROUPS = 8  # Every eighth group of pictures is tried;
_TRIED_FRAMES = 24  # of it, the first frames,
_RUN_FRAMES = 12  # in runs of this length;
_WANTED_SHARES = (1 / 16, 1 / 8, 1 / 2)  # a run wants one of these shares.
# And how it tries groups without the one before them.
_GROUPS_ALONE = 2
_FRAMES_ALONE = 4


class Scan(NamedTuple):
  """What a full decode of a video has found."""

  num_frames: int
  fps: float  # On average.
  width: int  # Of an upright frame, in pixels.
  height: int
  duration_s: float  # num_frames / fps.
  rotation_degrees: int  # By which a player turns the frames.
  is_addressable: bool  # Random access finds every frame.
  # MD5 of the frames' CRC-32 (`checksum`), 4 bytes each, big-endian.
  frames_md5: str

  @property
  def form(self) -> Form:
    """What the choice of a clip depends on."""
    return Form(self.num_frames, self.fps, self.height, self.width)


def scan(encoded: bytes) -> Scan:
  """Decodes every frame of a video, and keeps none.

  Every frame is decoded once from the start, and once or twice by random
  access, as clips are.

  Args:
    encoded: A video file.

  Raises:
    DecodeError: A frame is damaged, there is none, or the file is cut off.
  """
  refuse_cut_off(encoded)
  shown, looks = [], []
  with Video(encoded) as video:
    for frame in video.decode_all():
      if not shown:
        rotation = frame.rotation
        sides = (frame.height, frame.width)
        height, width = sides[:: -1 if orientation(frame).turns % 2 else 1]
      shown.append(frame.pts)
      looks.append(_look(frame))
    if not shown:
      raise DecodeError('no frame can be decoded')
    is_addressable = (
      tuple(shown) == video.pts
      and all(a < b for a, b in itertools.pairwise(shown))
      # They differ in a file that was turned without being encoded anew.
      and (video.height, video.width) == (height, width)
      and _is_found(encoded, dict(zip(shown, looks, strict=True)), video.groups)
    )
    return Scan(
      num_frames=len(shown),
      fps=video.fps,
      width=width,
      height=height,
      duration_s=len(shown) / video.fps,
      rotation_degrees=rotation,
      is_addressable=is_addressable,
      frames_md5=hashlib.md5(
        b''.join(crc.to_bytes(4, 'big') for crc, _ in looks)
      ).hexdigest(),
    )


def refuse_cut_off(encoded: bytes) -> None:
  """Refuses a file whose end is not there, where no decoder would notice.

  Args:
    encoded: A video file.

  Raises:
    DecodeError: Bytes are missing.
  """
  missing = _missing_bytes(encoded)
  if missing > 0:
    raise DecodeError(f'cut off: the last {missing} bytes are not there')


def _missing_bytes(encoded: bytes) -> int:
  """Returns how many bytes a Matroska or WebM file lacks; 0 for other files.

  FFmpeg takes the end of such a file for the end of the video, without an
  error.

  Source: RFC 8794 (EBML), RFC 9559 (Matroska).
  """
  place, name = 0, encoded[:4]
  while name in (_EBML_HEADER, _EBML_SEGMENT):
    place += 4
    # The size has one byte more than its first byte has leading zero bits.
    count = 9 - encoded[place : place + 1].ljust(1, b'\0')[0].bit_length()
    size = int.from_bytes(encoded[place : place + count], 'big')
    size &= (1 << 7 * count) - 1
    place += count + size
    if name == _EBML_SEGMENT:
      is_unknown = size == (1 << 7 * count) - 1
      return 0 if is_unknown else place - len(encoded)
    name = encoded[place : place + 4]
  return 0


def _is_found(
  encoded: bytes,
  looks: dict[int, tuple[int, bool]],
  groups: Sequence[Sequence[int]],
) -> bool:
  """Whether random access finds the frames of a decode from the start.

  Args:
    encoded: A video file.
    looks: That of every frame, by time stamp.
    groups: Time stamps of the groups of pictures, see `Video.groups`.
  """
  left = set(looks)
  for wanted in _attempts(groups):
    if not _finds(encoded, wanted & looks.keys(), looks, left):
      return False
  # The frames that were skipped so far; those that were not are skipped now.
  return _finds(encoded, set(left), looks, left)


def _attempts(groups: Sequence[Sequence[int]]) -> Iterator[set[int]]:
  """Yields time stamps of frames that should be found together.

  Args:
    groups: Time stamps of the groups of pictures, see `Video.groups`.
  """
  rng = random.Random(0)
  # Not all decoders forget what they decoded before a jump. Whether a group
  # needs the one before it shows only if that was not decoded: so every second
  # group is wanted, then the others. In the file that was just opened nothing
  # was decoded at all: a few groups are tried alone in one, as the first two
  # are here.
  for first in (0, 1):
    wanted = set()
    for number, group in enumerate(groups[first::2]):
      # Skipped frames must not matter, either. This depends on the encoder, so
      # a sample of the groups tells; all of them would take longer.
      tried = () if number % _TRIED_GROUPS else group[:_TRIED_FRAMES]
      wanted.update(group[len(tried) :])
      for start in range(0, len(tried), _RUN_FRAMES):
        share = rng.choice(_WANTED_SHARES)
        run = tried[start : start + _RUN_FRAMES]
        wanted.update(pts for pts in run if rng.random() < share)
    yield wanted
  rest = groups[2:]
  for group in rng.sample(rest, min(_GROUPS_ALONE, len(rest))):
    yield {pts for pts in group[:_FRAMES_ALONE] if pts >= group[0]}


def _finds(
  encoded: bytes,
  wanted: set[int],
  looks: dict[int, tuple[int, bool]],
  left: set[int],
) -> bool:
  """Whether random access finds wanted frames as a decode from the start has.

  Args:
    encoded: A video file.
    wanted: Time stamps of frames.
    looks: That of every frame, by time stamp.
    left: Time stamps of frames that no random access has found yet. Those that
      this one finds are removed.
  """
  if not wanted:
    return True
  seen = set()
  # Opened again, as for every clip: decoders learn from what they have read.
  with Video(encoded) as video:
    try:
      for frame in video.access(wanted):
        # Training takes the first frame of a time stamp. A frame that is not
        # wanted may be wrong; if it is right, it need not be tried again.
        pts = frame.pts
        if pts in seen or not (pts in wanted or pts in left):
          continue
        if _look(frame) == looks[pts]:
          seen.add(pts)
        elif pts in wanted:
          return False
    except DecodeError:
      return False
  left -= seen
  return wanted <= seen


def _look(frame: av.VideoFrame) -> tuple[int, bool]:
  """`checksum` of a frame, and whether it is interlaced.

  FFmpeg resizes the two fields of an interlaced frame apart. Where H.264 shows
  a whole picture as two fields, as films on television, FFmpeg calls it
  interlaced if it called the picture so that it decoded before.
  """
  return checksum(frame), frame.interlaced_frame


def checksum(frame: av.VideoFrame) -> int:
  """CRC-32 of a decoded frame's pixels, plane by plane, without padding."""
  crc = 0
  form = frame.format
  widths = _row_bytes(form.name, form.width, form.height)
  for plane, width in zip(frame.planes, widths, strict=True):
    rows = np.frombuffer(plane, np.uint8)
    if width:
      rows = rows.reshape(plane.height, -1)[:, :width]
    crc = zlib.crc32(np.ascontiguousarray(rows), crc)
  return crc


@functools.lru_cache
def _row_bytes(name: str, width: int, height: int) -> list[int]:
  """Returns the bytes of a row in each plane of a pixel format.

  Padding does not count. 0: the plane is no picture but a palette.
  """
  form = av.VideoFormat(name, width, height)
  parts = form.components
  widths = []
  for plane in sorted({part.plane for part in parts}):
    own = [part for part in parts if part.plane == plane]
    if len(own) == len(parts):  # Packed pixels may have unused bits.
      bits = width * form.padded_bits_per_pixel
    else:
      bits = sum(8 * -(-part.bits // 8) * part.width for part in own)
    widths.append(-(-bits // 8))
  return [*widths, 0] if form.has_palette else widths
