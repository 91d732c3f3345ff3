"""Decodes chosen frames of an encoded video, and nothing more than they need.

Decoding starts at the key frame before a wanted frame and ends with it; groups
of pictures without a wanted frame are skipped, and so are unwanted pictures
that no other refers to. Where a crop is small, only its pixels are resized.
FFmpeg conceals damage by default; here damage raises.

The packets of a file tell where its frames and key frames are. Reading all 300
of ten seconds takes as long as decoding some frames, so files that
mgjax.data.prepare encodes say that they are regular, and only what is needed of
them is read.

What a container says of its packets can be wrong. mgjax.data.scanning finds
out, by trying, whether random access finds the frames of a decode from
the start; where it does not, `Video(encoded, in_order=form)` decodes that way.
"""

import bisect
import contextlib
import functools
import io
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple, TypeVar

import av
import numpy as np
from av.stream import Disposition

from mgjax.data.orientation import Orientation, may_be_turned, orientation
from mgjax.data.views import Crop, View, converter

# Old files have titles in other encodings than UTF-8. PyAV 19 keeps their bytes
# (surrogateescape) and has lost the option; PyAV 18, the newest for Python
# 3.11, refuses such files without it.
METADATA_OPTIONS = (
  {'metadata_errors': 'replace'}
  if int(av.__version__.split('.')[0]) < 19
  else {}
)

# With so much memory to be had, FFmpeg lacks none for a sound video.
_SPARE_BYTES = 2**28

# FFmpeg conceals damage by default. CRCs are checked where a format has them.
ERR_DETECT = {'err_detect': 'crccheck+explode'}

# The comment in the header of a file whose frame i is shown i ticks after the
# start, whose pictures all belong to the key frame before them, and which is
# upright. (A tick is the file's duration over its number of frames.)
# Lossless editors keep comments: `scanning.scan` holds a file to what it says.
REGULAR = 'mgjax: regular'


# What is made of a frame.
T = TypeVar('T')


class DecodeError(Exception):
  """A video that cannot be decoded; says why."""


class Form(NamedTuple):
  """What the choice of a clip's frames and crop depends on."""

  num_frames: int
  fps: float
  height: int  # Of an upright frame, in pixels.
  width: int


@contextlib.contextmanager
def errors_of_video(what: str) -> Iterator[None]:
  """Turns FFmpeg's errors into DecodeError.

  No others: a TypeError or ValueError is a mistake of this program, and a lack
  of memory is the machine's.

  Args:
    what: Was found, as the error's message begins.
  """
  try:
    yield
  except av.error.MemoryError as error:
    # A damaged header asks for more than any machine has. Else this fails, too.
    try:
      bytearray(_SPARE_BYTES)
    except MemoryError:
      raise MemoryError(f'FFmpeg is out of memory: {error}') from error
    raise DecodeError(f'{what}: {error}') from error
  except av.FFmpegError as error:
    raise DecodeError(f'{what}: {error}') from error


class Video:
  """An encoded video in memory, opened for access to its frames.

  Attributes:
    num_frames: Frames that the file shows.
    fps: Average frame rate; 30 where the file does not say.
    height: Of an upright frame, in pixels.
    width: Of an upright frame, in pixels.
  """

  def __init__(self, encoded: bytes, *, in_order: Form | None = None):
    """Opens the container (nothing is decoded yet).

    Args:
      encoded: A whole file: mp4, webm, avi, mkv or what else FFmpeg reads. Of
        several video streams, the default one counts.
      in_order: None: frames are found by random access. Else all frames from
        the first on are decoded and counted, whatever the container says of
        them; this is what `scanning.scan` has found to be in the file.

    Raises:
      DecodeError: The bytes are not a video, or one without frames.
    """
    with errors_of_video('not a readable video'):
      self._container = av.open(
        io.BytesIO(encoded), options=ERR_DETECT, **METADATA_OPTIONS
      )
      self._stream = main_stream(self._container)
      codec = self._stream.codec_context
      if codec is None:
        raise DecodeError('not a readable video: FFmpeg has no decoder for it')
      # Frame threads delay output; batches are decoded in parallel instead.
      codec.thread_count = 1
      codec.options = ERR_DETECT
      self._in_order = in_order is not None
      self._is_regular = not self._in_order and self._find_regular(encoded)
      self._turns = 0
      if in_order is not None:
        self._pts = range(in_order.num_frames)
        _, self.fps, self.height, self.width = in_order
      else:
        if self._is_regular:
          count = self._stream.frames
          duration = self._stream.duration
          self._pts = range(0, duration, duration // count)
        else:
          self._pts = sorted(
            p.pts for p in self._stamped_packets if not p.is_discard
          )
          if 'mp4' in self._container.format.name and may_be_turned(encoded):
            self._turns = self._quarter_turns()
        self.fps = float(self._stream.average_rate or 30)
        sides = (codec.height, codec.width)
        self.height, self.width = sides[::-1] if self._turns % 2 else sides
    self.num_frames = len(self._pts)

  def __enter__(self) -> 'Video':
    return self

  def __exit__(self, *unused) -> None:
    self._container.close()

  def frames(
    self,
    indices: np.ndarray,
    height: int,
    width: int,
    crop: Crop | None = None,
  ) -> np.ndarray:
    """Decodes frames, resizes them, and cuts a crop out of each.

    Args:
      indices: int [T], each in [0, num_frames), repeats allowed.
      height: Of the resized frames, in pixels.
      width: Of the resized frames, in pixels.
      crop: What is returned of them; None: all.

    Returns:
      uint8 [T, crop.height, crop.width, 3], RGB, upright. Resizing is
      bilinear, between the centres of pixels; where it makes a frame less
      than half as high or wide, it averages over all pixels.

    Raises:
      DecodeError: A needed packet is damaged.
    """
    crop = crop or Crop(0, 0, height, width)
    (pixels,) = self.views(indices, [View(height, width, crop)])
    return pixels

  def views(
    self, indices: np.ndarray, views: Sequence[View]
  ) -> list[np.ndarray]:
    """Decodes frames once, and resizes and crops them in several ways.

    Args:
      indices: As those of `frames`.
      views: The ways.

    Returns:
      For each what `frames` returns.

    Raises:
      DecodeError: A needed packet is damaged.
    """
    convert = converter(views, self.height, self.width)
    wanted = {self._pts[i] for i in indices}
    found = self._find(wanted, lambda key, frame: convert(frame))
    return [
      np.stack([found[self._pts[i]][number] for i in indices])
      for number in range(len(views))
    ]

  def each_frame(self, take: Callable[[int, av.VideoFrame], None]) -> None:
    """Decodes all frames, each as `views` finds it.

    Args:
      take: Gets the index of a frame and the frame. Of frames that are shown
        at the same time it gets one. It can get a frame twice; the second one
        counts then.

    Raises:
      DecodeError: A packet is damaged.
    """
    index = {key: number for number, key in enumerate(self._pts)}
    self._find(set(index), lambda key, frame: take(index[key], frame))

  def decode_all(self) -> Iterator[av.VideoFrame]:
    """Yields every frame, in the order in which it is shown.

    A recording may begin in the middle of a group of pictures. What cannot be
    decoded before the first key frame is no damage then.

    Raises:
      DecodeError: A frame is damaged.
    """
    codec = self._stream.codec_context
    codec.flush_buffers()
    with errors_of_video('damaged'):
      for packet in (*self._packets[self._first_packet :], None):
        for frame in codec.decode(packet):
          if frame.is_corrupt:
            raise DecodeError(f'the frame at pts {frame.pts} is damaged')
          yield frame

  @functools.cached_property
  def _first_packet(self) -> int:
    """Number of the packet from which all can be decoded."""
    keys = (i for i, p in enumerate(self._packets) if p.is_keyframe)
    first_key = next(keys, 0)
    codec = self._stream.codec_context
    try:
      for packet in self._packets[:first_key]:
        if any(frame.is_corrupt for frame in codec.decode(packet)):
          return first_key
    except av.error.InvalidDataError:
      return first_key
    finally:
      codec.flush_buffers()
    return 0

  def access(self, wanted: set[int]) -> Iterator[av.VideoFrame]:
    """Yields the frames that `frames` decodes where it wants some of them.

    Args:
      wanted: Their time stamps.

    Raises:
      DecodeError: A needed packet is damaged.
    """
    decode = self._decode_regular if self._is_regular else self._decode
    try:
      with errors_of_video('damaged'):
        yield from decode(wanted)
    finally:
      self._stream.codec_context.skip_frame = 'DEFAULT'

  @property
  def form(self) -> Form:
    """What the choice of a clip depends on."""
    return Form(self.num_frames, self.fps, self.height, self.width)

  @property
  def stored_as(self) -> tuple[int, int, str] | None:
    """Width, height and pixel format of frames before they are upright.

    None where the file does not say the format.
    """
    codec = self._stream.codec_context
    return codec.pix_fmt and (codec.width, codec.height, codec.pix_fmt)

  @property
  def pts(self) -> tuple[int, ...]:
    """Time stamps of the frames, ascending, in units of the container."""
    return tuple(self._pts)

  @functools.cached_property
  def groups(self) -> list[list[int]]:
    """Time stamps of the packets from one key frame to the next.

    As the container has it: in the order of the file, key frame first.
    """
    groups = [[]]
    for packet in self._stamped_packets:
      if packet.is_keyframe and groups[-1]:
        groups.append([])
      groups[-1].append(packet.pts)
    return groups

  def _find_regular(self, encoded: bytes) -> bool:
    """Whether the file says that it is regular, and can be."""
    return (
      self._container.metadata.get('comment') == REGULAR
      and len(self._container.streams) == 1
      and (self._stream.duration or 0) > 0
      and self._stream.frames > 0
      and self._stream.duration % self._stream.frames == 0
      and not may_be_turned(encoded)
    )

  @functools.cached_property
  def _packets(self) -> list[av.Packet]:
    """All packets, in the order of the file.

    Raises:
      DecodeError: There is none.
    """
    if self._is_regular:  # Frames may have been read before.
      self._container.seek(0, stream=self._stream)
    packets = [p for p in self._container.demux(self._stream) if p.size]
    if not packets:
      raise DecodeError('the video has no frames')
    return packets

  @functools.cached_property
  def _stamped_packets(self) -> list[av.Packet]:
    """Those that random access can tell apart."""
    return [p for p in self._packets if p.pts is not None]

  def _quarter_turns(self) -> int:
    """Quarter turns, counter-clockwise, that make a decoded frame upright."""
    # Only frames tell; what decoding says of damage, it says again later.
    try:
      first = next(self.decode_all(), None)
    except DecodeError:
      return 0
    return orientation(first).turns if first else 0

  def _find(
    self, wanted: set[int], take: Callable[[int, av.VideoFrame], T]
  ) -> dict[int, T]:
    """What `take` makes of the frame of each wanted time stamp (or number)."""
    if self._in_order:
      return self._collect(self.decode_all(), wanted, take)
    try:
      return self._collect(self.access(wanted), wanted, take)
    except DecodeError:
      # Some key frames are none: what follows them refers to what was before
      # (open groups of pictures). Only a decode from the start then shows
      # whether the file is damaged.
      return self._collect(self.decode_all(), wanted, take)

  def _collect(
    self,
    frames: Generator[av.VideoFrame],
    wanted: set[int],
    take: Callable[[int, av.VideoFrame], T],
  ) -> dict[int, T]:
    """Takes the first frame of each wanted time stamp (or number)."""
    found = {}
    with contextlib.closing(frames), errors_of_video('damaged'):
      for number, frame in enumerate(frames):
        key = number if self._in_order else frame.pts
        if key not in wanted or key in found:
          continue
        if frame.is_corrupt:
          raise DecodeError(f'the frame at pts {frame.pts} is damaged')
        found[key] = take(key, frame)
        if len(found) == len(wanted):
          return found
    raise DecodeError(
      f'{len(wanted) - len(found)} frames are missing from the file'
    )

  def _decode_regular(self, wanted: set[int]) -> Iterator[av.VideoFrame]:
    """As `_decode`, without reading the packets of other groups."""
    codec = self._stream.codec_context
    left = set(wanted)
    while left:
      first = min(left)
      self._container.seek(first, stream=self._stream)
      group_start = None
      for packet in self._container.demux(self._stream):
        if packet.pts is None:
          break  # The end of the file.
        if group_start is None:
          group_start = packet.pts
        elif packet.is_keyframe:
          break
        codec.skip_frame = 'DEFAULT' if packet.pts in wanted else 'NONREF'
        left.discard(packet.pts)
        yield from codec.decode(packet)
        if not left:
          break
      yield from codec.decode(None)
      codec.flush_buffers()
      if first in left:
        return

  def _decode(self, wanted: set[int]) -> Iterator[av.VideoFrame]:
    """Yields the frames of what has to be decoded for the wanted ones."""
    packets = self._stamped_packets
    codec = self._stream.codec_context
    codec.flush_buffers()
    starts = [i for i, p in enumerate(packets) if p.is_keyframe] or [0]
    starts[0] = 0
    last = {}  # The last wanted packet of each group that has one.
    leading = set()  # Groups that cannot be decoded without the one before.
    for i, packet in enumerate(packets):
      if packet.pts in wanted:
        group = bisect.bisect_right(starts, i) - 1
        last[group] = i
        # A picture shown before the key frame of its own group (open group)
        # refers to the group before.
        if group and packet.pts < packets[starts[group]].pts:
          leading.add(group)
    starts.append(len(packets))
    for group in sorted(last.keys() | {g - 1 for g in leading}):
      first, end = starts[group], starts[group + 1]
      if group + 1 not in leading:
        end = last[group] + 1
      key = packets[first]
      if group not in leading:
        yield from codec.decode(None)
        codec.flush_buffers()
      for packet in packets[first:end]:
        # Without the group before, an open group's first pictures have
        # nothing to refer to; they are not wanted then.
        if group and group not in leading and packet.pts < key.pts:
          continue
        # Of pictures that no other refers to, the wanted ones.
        codec.skip_frame = 'DEFAULT' if packet.pts in wanted else 'NONREF'
        yield from codec.decode(packet)
    yield from codec.decode(None)


class FramesVideo(Video):
  """Frames that are no file, as a video: resized and cropped like others."""

  def __init__(self, form: Form):
    """Has no frames of its own: `frame` gives them.

    Args:
      form: Of the video.
    """
    self.num_frames, self.fps, self.height, self.width = form

  def __exit__(self, *unused) -> None:
    """There is nothing to close."""

  # What makes the frames upright.
  how = Orientation(False, 0)

  def frame(self, index: int) -> av.VideoFrame:
    """A frame; it may be changed by the next call."""
    raise NotImplementedError

  def views(
    self, indices: np.ndarray, views: Sequence[View]
  ) -> list[np.ndarray]:
    convert = converter(views, self.height, self.width, self.how)
    made = [
      np.empty((len(indices), *view.crop[2:], 3), np.uint8) for view in views
    ]
    # Each once: a short video repeats frames. And copied before the next one:
    # what is made of an RGB frame may be a view of its pixels.
    for index in np.unique(indices):
      for out, pixels in zip(
        made, convert(self.frame(int(index))), strict=True
      ):
        out[indices == index] = pixels
    return made


def main_stream(container: av.container.InputContainer) -> av.VideoStream:
  """The video stream that players show.

  Raises:
    DecodeError: There is none.
  """
  # The cover of a film is a stream as well.
  streams = [
    stream
    for stream in container.streams.video
    if not stream.disposition & Disposition.attached_pic
  ]
  if not streams:
    raise DecodeError('not a readable video: the file has no video stream')
  best = container.streams.best('video')
  return best if best in streams else streams[0]
