"""Turns a video file, or a folder of frames, into what a data set stores.

A video file is stored as it is if random access finds the frames of a decode
from the start (mgjax/data/scanning.py). It becomes H.264 in mp4, with a key
frame at fixed intervals, if random access does not find them (AVI files with
reordered frames have wrong time stamps, H.263 has wrong key frames) or if a
smaller copy is wanted.

Frame folders (Something-Something V1, Charades) become MJPEG in mp4: the
publisher's JPEG files without a second loss, each of which can be decoded by
itself. They are several times as large as H.264; transcoding avoids that. PNG
files are stored in the same way.
"""

import dataclasses
import fractions
import io
import itertools
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import av
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from mgjax.data.decode import (
  METADATA_OPTIONS,
  REGULAR,
  DecodeError,
  Video,
  errors_of_video,
)
from mgjax.data.orientation import orientation, upright
from mgjax.data.scanning import Scan, refuse_cut_off, scan
from mgjax.data.suffixes import FRAME_CODECS, suffix_of

# FFmpeg's name of the format of a file of one picture, by its codec.
_IMAGE_FORMATS = {'mjpeg': 'jpeg_pipe', 'png': 'png_pipe'}

# FFmpeg's number of the matrix by which RGB (number 0) becomes YUV.
_BT601 = 6

# An example is a protocol buffer, which cannot be larger.
_MAX_BYTES = 2**31 - 2**20


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How videos are encoded, if they are.

  Attributes:
    short_side_px: Short side of the stored videos, which are all encoded anew
      (smaller ones keep their size): even, from 16; 0: videos are stored as
      they are.
    gop: Frames from one key frame to the next, from 1. Short groups cost bytes
      and make random access cheap.
    crf: x264's constant quality, from 0 (lossless) to 51 (the worst).
    frame_fps: Frames per second of frame folders, which do not say it.
  """

  short_side_px: int
  gop: int
  crf: int
  frame_fps: float


class Stored(NamedTuple):
  """A video as the data set stores it."""

  encoded: bytes  # A video file.
  scan: Scan  # Of these bytes.
  is_transcoded: bool  # Whether they were encoded here.


def load(path: pathlib.Path, encoding: Encoding) -> Stored:
  """Reads a video file or a folder of frames, and checks every frame.

  Args:
    path: Video file, or folder of JPEG or PNG files (see `join_frames`).
    encoding: How to encode it, and when.

  Raises:
    DecodeError: A frame is damaged, there is none, or the file is too large to
      be stored.
    OSError: The file cannot be read.
  """
  if path.is_dir():
    encoded = join_frames(path, fps=encoding.frame_fps)
  else:
    encoded = path.read_bytes()
    # Once it is encoded anew, nothing tells that it was longer.
    refuse_cut_off(encoded)
  transcodes = encoding.short_side_px > 0
  if not transcodes:
    found = scan(encoded)
    transcodes = not found.is_addressable
  if transcodes:
    encoded, num_frames = transcode(encoded, encoding)
    # The encoder is not trusted either.
    found = scan(encoded)
    if not found.is_addressable or found.num_frames != num_frames:
      raise DecodeError('the frames of the transcoded video are out of order')
  if len(encoded) > _MAX_BYTES:
    raise DecodeError(
      f'{len(encoded) / 2**30:.1f} GiB is more than a record holds (2 GiB); '
      'transcode with --short_side_px'
    )
  return Stored(encoded, found, transcodes)


def transcode(encoded: bytes, encoding: Encoding) -> tuple[bytes, int]:
  """Encodes a video anew: H.264 in mp4, upright, at a constant frame rate.

  The file has the same frames and no sound. Frames of a variable rate get the
  average rate.

  Args:
    encoded: A video file.
    encoding: Size, key frames and quality.

  Returns:
    The new file, and the number of frames that were encoded.

  Raises:
    DecodeError: A frame is damaged, there is none, or they cannot be encoded.
  """
  buffer = io.BytesIO()
  with Video(encoded) as video, errors_of_video('cannot be encoded anew'):
    frames = _resized(video, encoding.short_side_px)
    first = next(frames, None)
    if first is None:
      raise DecodeError('no frame can be decoded')
    with av.open(buffer, 'w', format='mp4') as container:
      container.metadata['comment'] = REGULAR
      rate = _rate(video.fps)
      stream = container.add_stream('libx264', rate=rate)
      stream.width, stream.height = first.width, first.height
      stream.pix_fmt = 'yuv420p'
      # Decoders take what says nothing for BT.601, also where it is BT.709.
      stream.colorspace = first.colorspace or _BT601
      stream.color_range = ColorRange.MPEG
      stream.thread_count = 1  # One process per core does the rest.
      stream.options = {
        'crf': str(encoding.crf),
        'preset': 'veryfast',
        # Without deblocking: less time to decode, some more bytes.
        'tune': 'fastdecode',
        'g': str(encoding.gop),
        'keyint_min': str(encoding.gop),
        'sc_threshold': '0',
        # No other frame refers to a B-frame, five of six: a decoder skips those
        # that are not wanted.
        'bf': '5',
        'b_strategy': '0',
        'b-pyramid': 'none',
      }
      num_frames = 0
      for frame in itertools.chain([first], frames):
        frame.pts = num_frames
        frame.time_base = 1 / rate
        # Without this the encoder takes over the kind that the source's frame
        # had, key frames among them.
        frame.pict_type = av.video.frame.PictureType.NONE
        container.mux(stream.encode(frame))
        num_frames += 1
      container.mux(stream.encode(None))
  return buffer.getvalue(), num_frames


def _rate(fps: float) -> fractions.Fraction:
  """The frame rate as containers write it: 30000/1001 stays what it is."""
  rate = fractions.Fraction(fps).limit_denominator(1001)
  return max(rate, fractions.Fraction(1, 1001))


def _by_number(path: pathlib.Path) -> tuple:
  """A key that sorts names as a person does: 2.jpg, 10.jpg."""
  # Text and numbers take turns, so that like is compared with like.
  parts = re.split(r'([0-9]+)', path.name)
  parts[1::2] = map(int, parts[1::2])
  return (*parts, path.name)


def join_frames(folder: pathlib.Path, *, fps: float) -> bytes:
  """Puts the JPEG or PNG files of a folder into an mp4, as they are.

  Args:
    folder: Its files are taken in the order of their names, numbers in them by
      value (2.jpg before 10.jpg). Files of other kinds do not matter.
    fps: Frames per second.

  Raises:
    DecodeError: There is no such file, there are both kinds, or the first one
      is not a picture.
    OSError: A file cannot be read.
  """
  paths = sorted(
    (p for p in folder.iterdir() if suffix_of(p.name) in FRAME_CODECS),
    key=_by_number,
  )
  kinds = {FRAME_CODECS[suffix_of(path.name)] for path in paths}
  if len(kinds) != 1:
    raise DecodeError('the folder holds no JPEG or PNG files, or both')
  # The others are scanned later; the first one gives the size of the video.
  first = paths[0].read_bytes()
  codec_name = kinds.pop()
  with errors_of_video(f'{paths[0].name} is not a picture'):
    with av.open(
      io.BytesIO(first), format=_IMAGE_FORMATS[codec_name], **METADATA_OPTIONS
    ) as image:
      codec = image.streams.video[0].codec_context
      width, height = codec.width, codec.height
  rate = _rate(fps)
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format='mp4') as container:
    stream = container.add_mux_stream(
      codec_name, rate=rate, width=width, height=height
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
    how = orientation(frame)
    step = -1 if how.turns % 2 else 1
    # An encoder takes one size: frames of another one get that of the first.
    if size is None:
      size = _encoded_size(frame.width, frame.height, short_side_px)[::step]
    turned = any(how)
    frame = resize.reformat(
      frame,
      *size[::step],
      'rgb24' if turned else 'yuv420p',
      interpolation=Interpolation.AREA,
      # JPEG's values span 0..255, video's 16..235.
      dst_color_range=ColorRange.JPEG if turned else ColorRange.MPEG,
      threads=1,
    )
    if turned:
      frame = av.VideoFrame.from_ndarray(
        upright(frame.to_ndarray(), how), format='rgb24'
      )
      frame = frame.reformat(format='yuv420p', dst_color_range=ColorRange.MPEG)
    yield frame


def _encoded_size(
  width: int, height: int, short_side_px: int
) -> tuple[int, int]:
  """Returns width and height, even: 4:2:0 has a colour for 2 x 2 pixels."""
  short = min(width, height)
  scale = min(short_side_px or short, short) / short
  return tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))
