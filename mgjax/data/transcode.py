"""Turns a video file, or a folder of frames, into what a data set stores.

A video is stored as it is wherever random access by `mgjax.data.decode` finds
the frames of a decode from the start, which `scan` tries. Where it does not
(AVI files with reordered frames have wrong time stamps, H.263 has wrong key
frames), or where a smaller copy is wanted, it becomes H.264 in mp4 with a key
frame at fixed intervals. Frame folders (Something-Something V1, Charades) are
stored as MJPEG in mp4: the publisher's JPEG files as they are, without a second
loss, and every frame can be decoded by itself; the price is their size, 5 to
10 times that of H.264, which transcoding avoids. PNG files likewise.
"""

import dataclasses
import fractions
import functools
import hashlib
import io
import itertools
import os
import pathlib
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from mgjax.data.decode import (
  METADATA_OPTIONS,
  REGULAR,
  DecodeError,
  Form,
  Video,
  errors_of_video,
  orientation,
  upright,
)

# What FFmpeg reads, and data sets or cameras use.
VIDEO_SUFFIXES = frozenset(
  '.mp4 .webm .avi .mkv .mov .m4v .mpg .mpeg .flv .wmv .asf .divx .ts .mts '
  '.m2ts .vob .mxf .3gp .ogv .gif'.split()
)
# FFmpeg's name of the codec of each kind of frame file.
FRAME_CODECS = {'.jpg': 'mjpeg', '.jpeg': 'mjpeg', '.png': 'png'}
# And of a file of one such picture.
_IMAGE_FORMATS = {'mjpeg': 'jpeg_pipe', 'png': 'png_pipe'}

# FFmpeg's number of the matrix by which RGB (number 0) becomes YUV.
_BT601 = 6

# An example is a protocol buffer, which cannot be larger.
_MAX_BYTES = 2**31 - 2**20

# The parts of a Matroska file.
_EBML_HEADER = b'\x1a\x45\xdf\xa3'
_EBML_SEGMENT = b'\x18\x53\x80\x67'

# `scan` tries skipping in one of so many groups, in so many frames; it wants
# one of these shares of each run of them. It tries so many groups alone, with
# so many frames.
_TRIED_GROUPS = 8
_TRIED_FRAMES = 24
_RUN_FRAMES = 12
_WANTED_SHARES = (1 / 16, 1 / 8, 1 / 2)
_GROUPS_ALONE = 2
_FRAMES_ALONE = 4


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
  is_addressable: bool  # Random access finds every frame.
  # MD5 of the frames' CRC-32 (`checksum`), 4 bytes each, big-endian.
  frames_md5: str

  @property
  def form(self) -> Form:
    """What the choice of a clip depends on."""
    return Form(self.num_frames, self.fps, self.height, self.width)


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
    encoded, num_frames = transcode(encoded, encoding)
    found = scan(encoded)
    if not found.is_addressable or found.num_frames != num_frames:
      raise DecodeError('the frames of the transcoded video are out of order')
  if len(encoded) > _MAX_BYTES:
    raise DecodeError(
      f'{len(encoded) / 2**30:.1f} GiB is more than a record holds (2 GiB); '
      'transcode with --short_side_px'
    )
  return Stored(encoded, found, transcodes)


def scan(encoded: bytes) -> Scan:
  """Decodes every frame of a video, and keeps none.

  Every frame is decoded once from the start, and once or twice as a clip would
  have it, by random access.

  Raises:
    DecodeError: A frame is damaged, or there is none.
  """
  missing = _missing_bytes(encoded)
  if missing > 0:
    raise DecodeError(f'cut off: the last {missing} bytes are not there')
  shown, checksums = [], []
  with Video(encoded) as video:
    for frame in video.decode_all():
      if not shown:
        rotation = frame.rotation
        sides = (frame.height, frame.width)
        height, width = sides[:: -1 if orientation(frame).turns % 2 else 1]
      shown.append(frame.pts)
      checksums.append(checksum(frame))
    if not shown:
      raise DecodeError('no frame can be decoded')
    is_addressable = (
      tuple(shown) == video.pts
      and all(a < b for a, b in itertools.pairwise(shown))
      # What is not so where a file was turned without being encoded anew.
      and (video.height, video.width) == (height, width)
      and _is_found(
        encoded, dict(zip(shown, checksums, strict=True)), video.groups
      )
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
        b''.join(c.to_bytes(4, 'big') for c in checksums)
      ).hexdigest(),
    )


def _missing_bytes(encoded: bytes) -> int:
  """By how much a Matroska or WebM file is shorter than it says.

  FFmpeg takes the end of such a file for that of the video.

  Source: RFC 8794 (EBML), RFC 9559 (Matroska).
  """
  place, name = 0, encoded[:4]
  while name in (_EBML_HEADER, _EBML_SEGMENT):
    place += 4
    # As many bytes as the first one has leading zeros, and one, are the size.
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
  encoded: bytes, checksums: dict[int, int], groups: Sequence[Sequence[int]]
) -> bool:
  """Whether random access finds the frames of a decode from the start.

  Args:
    encoded: A video.
    checksums: Of the frames, by time stamp.
    groups: Time stamps, see `Video.groups`.
  """
  left = set(checksums)
  for wanted in _attempts(groups):
    if not _finds(encoded, wanted & checksums.keys(), checksums, left):
      return False
  # What those skipped, while what they did not skip is skipped now.
  return _finds(encoded, set(left), checksums, left)


def _attempts(groups: Sequence[Sequence[int]]) -> Iterator[set[int]]:
  """Yields time stamps of frames that should be found together.

  Args:
    groups: Time stamps, see `Video.groups`.
  """
  rng = random.Random(0)
  # Not all decoders forget what was before. If a group needs the one before
  # it, that must not have been decoded; and a few groups are tried alone, as
  # the first two are here.
  for first in (0, 1):
    wanted = set()
    for number, group in enumerate(groups[first::2]):
      # What is skipped must not matter, either. That is up to the encoder: to
      # try it on all frames would cost half as much again.
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
  encoded: bytes, wanted: set[int], checksums: dict[int, int], left: set[int]
) -> bool:
  """Whether random access finds wanted frames as they are.

  Args:
    encoded: A video.
    wanted: Time stamps.
    checksums: Of the frames, by time stamp.
    left: Time stamps not yet found; those that are found now are removed.
  """
  if not wanted:
    return True
  seen = set()
  # Opened anew, as for every clip: decoders learn from what they have read.
  with Video(encoded) as video:
    try:
      for frame in video.access(wanted):
        # The first of a time stamp counts. What is not wanted does not matter,
        # but if it is right, it need not be tried once more.
        pts = frame.pts
        if pts in seen or not (pts in wanted or pts in left):
          continue
        if checksum(frame) == checksums[pts]:
          seen.add(pts)
        elif pts in wanted:
          return False
    except DecodeError:
      return False
  left -= seen
  return wanted <= seen


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
  """Bytes per row of each plane of a pixel format, without padding; 0: all."""
  form = av.VideoFormat(name, width, height)
  parts = form.components
  widths = []
  for plane in sorted({part.plane for part in parts}):
    own = [part for part in parts if part.plane == plane]
    if len(own) == len(parts):  # Packed: there may be unused bits.
      bits = width * form.padded_bits_per_pixel
    else:
      bits = sum(8 * -(-part.bits // 8) * part.width for part in own)
    widths.append(-(-bits // 8))
  return [*widths, 0] if form.has_palette else widths


def transcode(encoded: bytes, encoding: Encoding) -> tuple[bytes, int]:
  """Encodes a video anew: H.264 in mp4, upright, at a constant frame rate.

  No frame is added or left out; sound is. Frames of a variable rate get the
  average one.

  Returns:
    The file, and how many frames it was given.

  Raises:
    DecodeError: A frame is damaged, or there is none, or they cannot be
      encoded.
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
      num_frames = 0
      for frame in itertools.chain([first], frames):
        frame.pts = num_frames
        frame.time_base = 1 / rate
        # Else the encoder takes over what kind of frame the source had here.
        frame.pict_type = av.video.frame.PictureType.NONE
        container.mux(stream.encode(frame))
        num_frames += 1
      container.mux(stream.encode(None))
  return buffer.getvalue(), num_frames


def _rate(fps: float) -> fractions.Fraction:
  """The frame rate as containers write it: 30000/1001 stays what it is."""
  rate = fractions.Fraction(fps).limit_denominator(1001)
  return max(rate, fractions.Fraction(1, 1001))


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
    # A size that changes within a video is brought to that of its first frame.
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
  """Returns width and height, even as 4:2:0 colour wants them."""
  short = min(width, height)
  scale = min(short_side_px or short, short) / short
  return tuple(max(2, round(side * scale / 2) * 2) for side in (width, height))
