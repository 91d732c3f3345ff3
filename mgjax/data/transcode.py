"""Turns a video file, or a folder of frames, into what a data set stores.

A video is stored as it is wherever `mgjax.data.decode` can address each of its
frames. Where it cannot (AVI files with reordered frames have wrong time
stamps), or where a smaller copy is wanted, it becomes H.264 in mp4 with a key
frame at fixed intervals. Frame folders (Something-Something V1, Charades) are
stored as MJPEG in mp4: the publisher's JPEG files as they are, without a second
loss, and every frame can be decoded by itself; the price is their size, 5 to
10 times that of H.264, which transcoding avoids. PNG files likewise.
"""

import dataclasses
import fractions
import io
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from mgjax.data.decode import METADATA_OPTIONS, REGULAR, DecodeError, Video

# What FFmpeg reads and the data sets use.
VIDEO_SUFFIXES = frozenset(
  ('.mp4', '.webm', '.avi', '.mkv', '.mov', '.m4v', '.mpg', '.mpeg', '.flv')
)
# FFmpeg's name of the codec of each kind of frame file.
FRAME_CODECS = {'.jpg': 'mjpeg', '.jpeg': 'mjpeg', '.png': 'png'}

# FFmpeg's number of the matrix by which RGB (number 0) becomes YUV.
_BT601 = 6

# An example is a protocol buffer, which cannot be larger.
_MAX_BYTES = 2**31 - 2**20


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How videos are encoded, where they are.

  Attributes:
    short_side_px: Short side of the stored videos, which are all encoded anew
      (smaller ones keep their size); 0: videos are stored as they are.
    gop: Frames from one key frame to the next. Short groups cost bytes and
      make random access cheap.
    crf: x264's constant quality: 0 is lossless, 51 the worst.
    frame_fps: Frames per second of frame folders.
  """

  short_side_px: int
  gop: int
  crf: int
  frame_fps: float


def without_suffix(path: str) -> str:
  """Returns the path without the suffix of a video file, if it has one."""
  stem, suffix = os.path.splitext(path)
  return stem if suffix.lower() in VIDEO_SUFFIXES else path


class Scan(NamedTuple):
  """What a full decode of a video tells."""

  num_frames: int
  fps: float
  width: int  # Of an upright frame, in pixels.
  height: int
  duration_s: float
  rotation_degrees: int  # By which a player turns the frames.
  is_addressable: bool  # Time stamps tell each frame's place.


class Stored(NamedTuple):
  """A video as the data set stores it."""

  encoded: bytes
  scan: Scan
  is_transcoded: bool


def load(path: pathlib.Path, encoding: Encoding) -> Stored:
  """Reads a video file or a folder of frames, and checks every frame.

  Args:
    path: Video file, or folder of JPEG or PNG files whose names sort by time.
    encoding: What to make of it.

  Raises:
    DecodeError: A frame is damaged, or there is none.
    OSError: The file cannot be read.
  """
  if path.is_dir():
    encoded = join_frames(path, fps=encoding.frame_fps)
  else:
    encoded = path.read_bytes()
  transcodes = encoding.short_side_px > 0
  if not transcodes:
    found = scan(encoded)
    transcodes = not found.is_addressable
  if transcodes:
    encoded = transcode(encoded, encoding)
    found = scan(encoded)
    if not found.is_addressable:
      raise DecodeError('the frames of the transcoded video are out of order')
  if len(encoded) > _MAX_BYTES:
    raise DecodeError(
      f'{len(encoded) / 2**30:.1f} GiB is more than a record holds (2 GiB); '
      'transcode with --short_side_px'
    )
  return Stored(encoded, found, transcodes)


def scan(encoded: bytes) -> Scan:
  """Decodes every frame of a video, and keeps none.

  Raises:
    DecodeError: A frame is damaged, or there is none.
  """
  with Video(encoded) as video:
    shown = []
    rotation = 0
    for frame in video.decode_all():
      shown.append(frame.pts)
      rotation = frame.rotation
    if not shown:
      raise DecodeError('no frame can be decoded')
    return Scan(
      num_frames=len(shown),
      fps=video.fps,
      width=video.width,
      height=video.height,
      duration_s=len(shown) / video.fps,
      rotation_degrees=rotation,
      is_addressable=tuple(shown) == video.pts,
    )


def transcode(encoded: bytes, encoding: Encoding) -> bytes:
  """Encodes a video anew: H.264 in mp4, upright, at a constant frame rate.

  No frame is added or left out; sound is. Frames of a variable rate get the
  average one.

  Raises:
    DecodeError: A frame is damaged, or there is none.
  """
  buffer = io.BytesIO()
  with Video(encoded) as video:
    frames = _resized(video, encoding.short_side_px)
    first = next(frames, None)
    if first is None:
      raise DecodeError('no frame can be decoded')
    with av.open(buffer, 'w', format='mp4') as container:
      container.metadata['comment'] = REGULAR
      # 30000/1001 stays what it is.
      rate = fractions.Fraction(video.fps).limit_denominator(1001)
      stream = container.add_stream('libx264', rate=rate)
      stream.width, stream.height = first.width, first.height
      stream.pix_fmt = 'yuv420p'
      # Else a decoder takes BT.601 for what is BT.709.
      stream.colorspace = first.colorspace or _BT601
      stream.color_range = ColorRange.MPEG
      stream.thread_count = 1  # One process per core does the rest.
      stream.options = {
        'crf': str(encoding.crf),
        'preset': 'veryfast',
        # Half the time to decode (no deblocking) for about a tenth more bytes.
        'tune': 'fastdecode',
        'g': str(encoding.gop),
        'keyint_min': str(encoding.gop),
        'sc_threshold': '0',
        # Five of six pictures are such that no other refers to: decoding
        # skips those that are not wanted.
        'bf': '5',
        'b_strategy': '0',
        'b-pyramid': 'none',
      }
      for number, frame in enumerate(_chain(first, frames)):
        frame.pts = number
        frame.time_base = 1 / rate
        # Else the encoder takes over what kind of frame the source had here.
        frame.pict_type = av.video.frame.PictureType.NONE
        container.mux(stream.encode(frame))
      container.mux(stream.encode(None))
  return buffer.getvalue()


def join_frames(folder: pathlib.Path, *, fps: float) -> bytes:
  """Puts the JPEG or PNG files of a folder into an mp4, as they are.

  Args:
    folder: Its files are taken in the order of their names, in which numbers
      have leading zeros.
    fps: Frames per second.

  Raises:
    DecodeError: There is no such file, there are both kinds, or the first is
      none.
  """
  paths = sorted(
    p for p in folder.iterdir() if p.suffix.lower() in FRAME_CODECS
  )
  kinds = {FRAME_CODECS[path.suffix.lower()] for path in paths}
  if len(kinds) != 1:
    raise DecodeError('the folder holds no JPEG or PNG files, or both')
  try:
    with av.open(str(paths[0]), format='image2', **METADATA_OPTIONS) as image:
      codec = image.streams.video[0].codec_context
      width, height = codec.width, codec.height
  except (av.FFmpegError, IndexError) as error:
    raise DecodeError(f'{paths[0].name} is not a picture: {error}') from error
  rate = fractions.Fraction(fps).limit_denominator(1001)
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format='mp4') as container:
    stream = container.add_mux_stream(
      kinds.pop(), rate=rate, width=width, height=height
    )
    for number, path in enumerate(paths):
      packet = av.Packet(path.read_bytes())
      packet.stream = stream
      packet.pts = packet.dts = number
      packet.duration = 1
      packet.time_base = 1 / rate
      packet.is_keyframe = True
      container.mux(packet)
  return buffer.getvalue()


def _resized(video: Video, short_side_px: int) -> Iterator[av.VideoFrame]:
  """Yields the frames, upright, in the size in which they are encoded."""
  resize = VideoReformatter()
  size = None
  for frame in video.decode_all():
    # A size that changes within a video is brought to that of its first frame.
    if size is None:
      size = _encoded_size(frame.width, frame.height, short_side_px)
    turns = frame.rotation // 90 % 4
    frame = resize.reformat(
      frame,
      *size,
      'rgb24' if turns else 'yuv420p',
      interpolation=Interpolation.AREA,
      # JPEG's values span 0..255, video's 16..235.
      dst_color_range=ColorRange.JPEG if turns else ColorRange.MPEG,
      threads=1,
    )
    if turns:
      upright = np.ascontiguousarray(np.rot90(frame.to_ndarray(), turns))
      frame = av.VideoFrame.from_ndarray(upright, format='rgb24')
      frame = frame.reformat(format='yuv420p', dst_color_range=ColorRange.MPEG)
    yield frame


def _encoded_size(
  width: int, height: int, short_side_px: int
) -> tuple[int, int]:
  """Returns width and height, even as 4:2:0 colour wants them."""
  short = min(width, height)
  scale = min(short_side_px or short, short) / short
  return tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))


def _chain(
  first: av.VideoFrame, rest: Iterator[av.VideoFrame]
) -> Iterator[av.VideoFrame]:
  yield first
  yield from rest
