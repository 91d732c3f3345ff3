"""Decodes chosen frames of an encoded video, and nothing more than they need.

Reading starts at the key frame before the first wanted frame; groups of
pictures without a wanted frame are skipped. Colour conversion and resizing are
one pass. FFmpeg conceals damage by default; here damage raises.
"""

import bisect
import io
from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter


class DecodeError(Exception):
  """A video that cannot be decoded; says why."""


class Video:
  """An encoded video in memory, opened for random access to its frames.

  Attributes:
    num_frames: Frames that the file shows.
    fps: Average frame rate; 30 where the file does not say.
    height: Of a frame, in pixels.
    width: Of a frame, in pixels.
  """

  def __init__(self, encoded: bytes):
    """Opens the container and reads its packets (nothing is decoded yet).

    Args:
      encoded: A whole file: mp4, webm, avi, mkv or what else FFmpeg reads.

    Raises:
      DecodeError: The bytes are not a video, or one without frames.
    """
    try:
      self._container = av.open(
        io.BytesIO(encoded), options={'err_detect': 'explode'}
      )
      self._stream = self._container.streams.video[0]
      packets = [
        p
        for p in self._container.demux(self._stream)
        if p.pts is not None and p.size
      ]
    except (av.FFmpegError, IndexError, ValueError) as error:
      raise DecodeError(f'not a readable video: {error}') from error
    if not packets:
      raise DecodeError('the video has no frames')
    codec = self._stream.codec_context
    # Frame threads delay output; batches are decoded in parallel instead.
    codec.thread_count = 1
    codec.options = {'err_detect': 'explode'}
    self._packets = packets
    self._pts = sorted(p.pts for p in packets if not p.is_discard)
    self.num_frames = len(self._pts)
    self.fps = float(self._stream.average_rate or 30)
    self.height, self.width = codec.height, codec.width

  def __enter__(self) -> 'Video':
    return self

  def __exit__(self, *unused) -> None:
    self._container.close()

  def frames(self, indices: np.ndarray, height: int, width: int) -> np.ndarray:
    """Decodes frames at a given size.

    Args:
      indices: int [T], each in [0, num_frames), ascending, repeats allowed.
      height: Of the result, in pixels.
      width: Of the result, in pixels.

    Returns:
      uint8 [T, height, width, 3], RGB.

    Raises:
      DecodeError: A needed packet is damaged.
    """
    wanted = {self._pts[i] for i in indices}
    try:
      found = self._find(wanted, height, width, from_start=False)
    except DecodeError:
      # Some key frames are none: what follows them refers to what was before
      # (open groups of pictures). Only a decode from the start then tells
      # damage from that.
      found = self._find(wanted, height, width, from_start=True)
    return np.stack([found[self._pts[i]] for i in indices])

  def decode_all(self) -> Iterator[av.VideoFrame]:
    """Yields every frame, in the order in which it is shown.

    Raises:
      DecodeError: A frame is damaged.
    """
    codec = self._stream.codec_context
    codec.flush_buffers()
    try:
      for packet in (*self._packets, None):
        for frame in codec.decode(packet):
          if frame.is_corrupt:
            raise DecodeError(f'the frame at pts {frame.pts} is damaged')
          yield frame
    except (av.FFmpegError, ValueError) as error:
      raise DecodeError(f'damaged: {error}') from error

  @property
  def pts(self) -> tuple[int, ...]:
    """Time stamps of the frames, ascending, in units of the container."""
    return tuple(self._pts)

  def _find(
    self, wanted: set[int], height: int, width: int, *, from_start: bool
  ) -> dict[int, np.ndarray]:
    """Decodes and resizes the frames with these time stamps."""
    found = {}
    resize = VideoReformatter()
    try:
      for frame in self._decode(wanted, from_start):
        if frame.pts not in wanted or frame.pts in found:
          continue
        if frame.is_corrupt:
          raise DecodeError(f'the frame at pts {frame.pts} is damaged')
        found[frame.pts] = resize.reformat(
          frame,
          width,
          height,
          'rgb24',
          interpolation=Interpolation.BILINEAR,
          # The default starts threads for every frame: 5 times the time.
          threads=1,
        ).to_ndarray()
        if len(found) == len(wanted):
          return found
    except (av.FFmpegError, ValueError) as error:
      raise DecodeError(f'damaged: {error}') from error
    raise DecodeError(
      f'{len(wanted) - len(found)} frames are missing from the file'
    )

  def _decode(self, wanted: set[int], from_start: bool):
    """Yields the frames of all groups of pictures that hold a wanted one."""
    packets = self._packets
    starts = [i for i, p in enumerate(packets) if p.is_keyframe] or [0]
    starts[0] = 0
    needed = set()
    for i, packet in enumerate(packets):
      if packet.pts in wanted:
        group = bisect.bisect_right(starts, i) - 1
        needed.add(group)
        # A picture shown before the key frame of its own group (open group)
        # refers to the group before.
        if group and packet.pts < packets[starts[group]].pts:
          needed.add(group - 1)
    if from_start:
      needed.update(range(max(needed)))
    codec = self._stream.codec_context
    codec.flush_buffers()
    previous = None
    for group in sorted(needed):
      key = packets[starts[group]]
      resumes = group != 0 and group - 1 != previous
      if resumes and previous is not None:
        yield from codec.decode(None)
        codec.flush_buffers()
      end = starts[group + 1] if group + 1 < len(starts) else len(packets)
      for packet in packets[starts[group] : end]:
        # Without the group before, an open group's first pictures have
        # nothing to refer to; they are not wanted then.
        if not (resumes and packet.pts < key.pts):
          yield from codec.decode(packet)
      previous = group
    yield from codec.decode(None)
