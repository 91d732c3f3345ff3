"""Makes undamaged videos that are odd in some way, with numbered frames.

Every frame shows its number as black and white blocks, which survive lossy
coding, so that no decoder need be trusted for what a frame is.
"""

import fractions
import functools
import io
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

from mgjax.data.decode import REGULAR
from mgjax.data.prepare.transcode import Encoding, transcode

X265 = 'log-level=none:keyint=10:bframes=3:pools=none'
BLOCK_PX = 16
HEIGHT, WIDTH = 4 * BLOCK_PX, 6 * BLOCK_PX  # 24 blocks: 12 bits, twice.
_BITS = 12


def paint(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
  """A picture of a number below 4096 over noise that moves; uint8 [H, W, 3]."""
  bits = [number >> i & 1 for i in range(_BITS)]
  blocks = np.array(bits + [1 - bit for bit in bits]).reshape(4, 6)
  rows = np.arange(height) * 4 // height
  columns = np.arange(width) * 6 // width
  light = 50 + 150 * blocks[rows][:, columns]
  pixels = light + np.roll(_noise(height, width), 3 * number, axis=1)
  return np.repeat(pixels.astype(np.uint8)[..., None], 3, axis=2)


@functools.cache
def _noise(height: int, width: int) -> np.ndarray:
  return np.random.default_rng(0).integers(-25, 26, (height, width))


def read(pixels: np.ndarray) -> int:
  """The number in a picture of any size; -1: no bits, or not twice the same."""
  height, width = pixels.shape[:2]
  light = pixels.astype(float).mean(2)
  rows = [
    slice(height * (4 * i + 1) // 16, height * (4 * i + 3) // 16)
    for i in range(4)
  ]
  columns = [
    slice(width * (4 * i + 1) // 24, width * (4 * i + 3) // 24)
    for i in range(6)
  ]
  means = np.array([light[r, c].mean() for r in rows for c in columns])
  if (abs(means - 125) < 35).any():
    return -1
  bits = means > 125
  if (bits[:_BITS] == bits[_BITS:]).any():
    return -1
  return sum(int(bit) << i for i, bit in enumerate(bits[:_BITS]))


def encode(
  numbers: Iterable[int] = range(30),
  *,
  codec: str = 'libx264',
  format: str = 'mp4',
  rate: float = 25,
  size: tuple[int, int] = (HEIGHT, WIDTH),
  pixels: str = 'yuv420p',
  times: Sequence[int] | None = None,
  muxer: dict | None = None,
  tags: dict | None = None,
  unturn: Callable = lambda pixels: pixels,
  rotation: int | None = None,
  **options,
) -> bytes:
  """A video that shows the numbers."""
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format=format, options=muxer or {}) as out:
    out.metadata.update(tags or {})
    rate = fractions.Fraction(rate).limit_denominator(1001)
    stream = out.add_stream(codec, rate=rate)
    stream.pix_fmt = pixels
    stream.thread_count = 1
    stream.options = {k: str(v) for k, v in options.items()}
    if rotation is not None:
      stream.set_display_rotation(rotation)
    for i, number in enumerate(numbers):
      picture = np.ascontiguousarray(unturn(paint(number, *size)))
      if not i:
        stream.height, stream.width = picture.shape[:2]
      frame = av.VideoFrame.from_ndarray(picture)
      frame.pts = i if times is None else times[i]
      frame.time_base = 1 / rate
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  if codec == 'libsvtav1' and hasattr(os, 'sched_setscheduler'):
    # As root, this encoder makes the calling thread a real-time one of the
    # highest priority, which then starves all others of the machine.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
  return buffer.getvalue()


def remux(
  encoded: bytes,
  format: str,
  *,
  shift: int = 0,
  tags: dict | None = None,
) -> bytes:
  """Puts the packets of a video into another container, as they are.

  Args:
    encoded: The video.
    format: FFmpeg's name of the container.
    shift: Frames by which they are shown later; negative ones are not shown.
    tags: Of the container.
  """
  buffer = io.BytesIO()
  with (
    av.open(io.BytesIO(encoded)) as source,
    av.open(buffer, 'w', format=format) as out,
  ):
    stream = source.streams.video[0]
    copy = out.add_stream_from_template(stream)
    out.metadata.update(tags or {})
    packets = [p for p in source.demux(stream) if p.size]
    tick = packets[0].duration
    for packet in packets:
      packet.pts += shift * tick
      packet.dts += shift * tick
      packet.stream = copy
      out.mux(packet)
  return buffer.getvalue()


def show_as(encoded: bytes, matrix: Sequence[int]) -> bytes:
  """Changes the matrix a, b, c, d by which an mp4 file's track is shown."""
  edited = bytearray(encoded)
  start = edited.index(b'tkhd') + 44
  a, b, c, d = (n << 16 for n in matrix)
  edited[start : start + 36] = struct.pack(
    '>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30
  )
  return bytes(edited)


# By which matrix a picture is shown, and what undoes that beforehand.
TURNS = {
  'a quarter clockwise': ((0, 1, -1, 0), np.rot90),
  'by half': ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
  'a quarter counter-clockwise': ((0, -1, 1, 0), lambda p: np.rot90(p, -1)),
  'left to right': ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
  'upside down': ((1, 0, 0, -1), lambda p: p[::-1]),
  'rows to columns': ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
}


def telecined(numbers: Iterable[int] = range(48)) -> bytes:
  """H.264 of which most frames are shown as two fields, as films are on TV.

  FFmpeg takes such a frame for an interlaced one if it took the frame before
  for one, or there was none.
  """
  params = 'pic-struct=1:keyint=24:bframes=0'
  encoded = bytearray(encode(numbers, **{'x264-params': params}))
  # SEI messages on the timing of a picture, whose first four bits say it.
  found = list(re.finditer(rb'\x06\x01\x01\x04\x80', encoded))
  assert len(found) == len(list(numbers))
  for number, message in enumerate(found):
    if number % 12 != 6:
      encoded[message.start() + 3] = 0x32
  return bytes(encoded)


def without_index(avi: bytes) -> bytes:
  """Cuts the index off an AVI file, as an aborted recording has none."""
  assert b'indx' not in avi  # OpenDML's, which files above 1 GiB have.
  return avi[: avi.rindex(b'idx1')]


def without_start(ts: bytes, packets: int = 20) -> bytes:
  """Cuts packets off a transport stream, as a receiver that was late."""
  return ts[188 * packets :]


def regular(numbers: Iterable[int], **how) -> bytes:
  """A file as data sets store them, in groups of 6."""
  encoding = Encoding(short_side_px=0, gop=6, crf=10, frame_fps=25.0)
  encoded, _ = transcode(encode(numbers, **how), encoding)
  return encoded


def packed(num_frames: int = 31) -> bytes:
  """MPEG-4 in AVI as DivX 5 wrote it: a P and a B picture in one packet."""
  encoded = encode(
    range(num_frames), codec='mpeg4', format='m4v', bf=1, g=250, b=2_000_000
  )
  start = b'\0\0\1\xb6'
  head, *pictures = encoded.split(start)
  head += b'\0\0\1\xb2DivX503b1393p'  # By which decoders know.
  packets = []
  for picture in pictures:
    kind = picture[0] >> 6
    if kind == 2:  # B: goes into the packet before; a picture that says that
      # it is not coded takes its place, with P's kind and the next time.
      packets[-1] += start + picture
      bits = f'0101{len(packets) % 25:05b}10' + '01111'
      packets.append(start + int(bits, 2).to_bytes(2, 'big'))
    else:
      packets.append((b'' if packets else head) + start + picture)
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format='avi') as out:
    stream = out.add_mux_stream('mpeg4', rate=25, width=WIDTH, height=HEIGHT)
    for i, content in enumerate(packets):
      packet = av.Packet(content)
      packet.stream, packet.time_base = stream, fractions.Fraction(1, 25)
      packet.pts = packet.dts = i
      packet.duration = 1
      packet.is_keyframe = i == 0
      out.mux(packet)
  return buffer.getvalue()


def several(
  *numbers: Iterable[int], default: int, cover: int | None = None
) -> bytes:
  """A Matroska file of several video streams, one of them the default.

  It also has a cover that shows a number.
  """
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format='matroska') as out:
    if cover is not None:
      how = {'codec': 'mjpeg', 'pixels': 'yuvj420p', 'format': 'mjpeg'}
      picture = encode([cover], size=(4 * HEIGHT, 4 * WIDTH), **how)
      out.add_attachment('cover.jpg', 'image/jpeg', picture)
    streams = []
    for i, _ in enumerate(numbers):
      stream = out.add_stream('libx264', rate=25)
      stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, 'yuv420p'
      stream.disposition = Disposition.default if i == default else 0
      streams.append(stream)
    for stream, shown in zip(streams, numbers, strict=True):
      for i, number in enumerate(shown):
        frame = av.VideoFrame.from_ndarray(paint(number))
        frame.pts, frame.time_base = i, fractions.Fraction(1, 25)
        out.mux(stream.encode(frame))
      out.mux(stream.encode(None))
  return buffer.getvalue()


class Case(NamedTuple):
  """An odd video.

  Attributes:
    name: What is odd.
    make: Returns the file.
    numbers: That it shows, in order.
  """

  name: str
  make: Callable[[], bytes]
  numbers: Sequence[int] = range(30)


def cases(count: int = 30) -> Iterator[Case]:
  """Yields odd videos of `count` frames, or some less or more."""
  all_ = range(count)
  more = range(count, count + 20)
  both = range(count + 20)

  def case(name: str, numbers: Sequence[int] = all_, **how) -> Case:
    return Case(name, functools.partial(encode, numbers, **how), numbers)

  def made(name: str, make: Callable, numbers: Sequence[int] = all_):
    return Case(name, make, numbers)

  # H.264, with and without reordered pictures, in what takes it.
  for format in 'mp4 mov matroska avi flv mpegts 3gp asf nut'.split():
    for bf in (0, 3):
      yield case(f'H.264 in {format}, bf={bf}', format=format, bf=bf, g=12)
  for name, params in {
    'one group': 'keyint=250',
    'all key frames': 'keyint=1',
    'pyramid': 'keyint=12:bframes=5:b-pyramid=normal:b-adapt=0',
    'open groups': 'keyint=10:bframes=3:open-gop=1:b-adapt=0',
    'fields, top first': 'keyint=12:bframes=2:tff=1',
    'fields, bottom first': 'keyint=12:bframes=2:bff=1',
    'fake interlacing': 'keyint=12:fake-interlaced=1',
    'intra refresh': 'keyint=12:intra-refresh=1',
    'slices': 'keyint=12:bframes=2:slices=4',
    'many references': 'keyint=30:bframes=3:ref=8',
  }.items():
    for format in ('mp4', 'mpegts', 'matroska'):
      yield case(
        f'H.264 in {format}, {name}', format=format, **{'x264-params': params}
      )
  for pixels in ('yuv420p10le', 'yuv422p', 'yuv444p', 'yuvj420p'):
    yield case(f'H.264, {pixels}', pixels=pixels, bf=2, g=12)
  yield case('H.264, RGB', codec='libx264rgb', pixels='rgb24', bf=2, g=12)
  yield case('odd sides', pixels='yuv444p', size=(65, 97), bf=2, g=12)
  yield case('one frame', range(1))
  yield case('two frames', range(2), bf=1)
  for format in ('mp4', 'matroska', 'avi', 'mpegts'):
    yield case(
      f'a tenth of a frame per second in {format}', rate=0.1, format=format
    )
  for format in ('mp4', 'matroska'):
    times = [i + 7 * (i // 5) for i in all_]
    yield case(f'a variable rate in {format}', format=format, times=times, bf=2)
  # 1 ms is their unit of time.
  for rate in (240, 1500, 3000):
    for format in ('matroska', 'flv', 'mp4'):
      yield case(
        f'{rate} frames per second in {format}',
        rate=rate,
        format=format,
        bf=2,
        g=10,
      )

  # Other codecs.
  for codec, pixels, formats in (
    ('libx265', 'yuv420p', 'mp4 matroska mpegts'),
    ('mpeg4', 'yuv420p', 'mp4 matroska avi mov 3gp'),
    ('msmpeg4', 'yuv420p', 'avi matroska asf'),
    ('msmpeg4v2', 'yuv420p', 'avi asf'),
    ('wmv1', 'yuv420p', 'avi asf'),
    ('wmv2', 'yuv420p', 'avi asf'),
    ('flv', 'yuv420p', 'avi flv'),
    ('h263p', 'yuv420p', 'avi'),
    ('rv10', 'yuv420p', 'rm'),
    ('rv20', 'yuv420p', 'rm'),
    ('mpeg1video', 'yuv420p', 'mpeg mpegts avi matroska'),
    ('mpeg2video', 'yuv420p', 'mpeg mpegts vob matroska mp4'),
    ('mjpeg', 'yuvj420p', 'avi mov matroska mp4'),
    ('libvpx', 'yuv420p', 'webm avi ogv'),
    ('libvpx-vp9', 'yuv420p', 'webm mp4'),
    ('libsvtav1', 'yuv420p', 'mp4 webm'),
    ('ffv1', 'yuv420p', 'matroska avi'),
    ('huffyuv', 'yuv422p', 'avi'),
    ('utvideo', 'yuv420p', 'avi'),
    ('zmbv', 'bgr0', 'avi'),
    ('prores_ks', 'yuv422p10le', 'mov matroska'),
    ('qtrle', 'rgb24', 'mov'),
    ('png', 'rgb24', 'mov avi'),
    ('rawvideo', 'bgr24', 'avi'),
    ('rawvideo', 'rgb555le', 'nut'),
    ('snow', 'yuv420p', 'matroska avi'),
    ('svq1', 'yuv410p', 'mov'),
    ('msvideo1', 'rgb555le', 'avi'),
    ('flashsv', 'bgr24', 'flv avi'),
    ('gif', 'rgb8', 'gif'),
    ('cfhd', 'yuv422p10le', 'mov'),
    ('asv1', 'yuv420p', 'avi'),
  ):
    for format in formats.split():
      how = {'codec': codec, 'pixels': pixels, 'format': format}
      if codec == 'libx265':
        how['x265-params'] = X265
      if codec == 'libvpx':
        how |= {
          'deadline': 'realtime',
          'cpu-used': 8,
          'auto-alt-ref': 1,
          'lag-in-frames': 12,
        }
      if codec == 'libvpx-vp9':
        how |= {'cpu-used': 8, 'auto-alt-ref': 1, 'lag-in-frames': 12}
      yield case(f'{codec} in {format}', g=10, b=2_000_000, **how)
  for codec in ('mpeg4', 'mpeg1video', 'mpeg2video'):
    for format in ('avi', 'matroska', 'mpegts'):
      yield case(
        f'{codec} in {format}, B',
        codec=codec,
        format=format,
        bf=2,
        g=10,
        b=2_000_000,
      )
  yield case(
    'MPEG-2 of fields',
    codec='mpeg2video',
    format='mpeg',
    flags='+ildct+ilme',
    g=12,
    bf=2,
    b=2_000_000,
  )
  for format in ('avi', 'mov', '3gp'):
    yield made(
      f'H.263 in {format}',
      lambda f=format: remux(
        encode(
          all_, codec='h263', size=(144, 176), format='3gp', g=10, b=4_000_000
        ),
        f,
      ),
    )
  yield case('MXF', codec='mpeg2video', format='mxf', g=12, bf=2, b=2_000_000)

  # Files without what tells where frames are.
  for codec, pixels in (
    ('flv', 'yuv420p'),
    ('wmv2', 'yuv420p'),
    ('msmpeg4', 'yuv420p'),
    ('zmbv', 'bgr0'),
    ('mpeg4', 'yuv420p'),
    ('mjpeg', 'yuvj420p'),
    ('libx264', 'yuv420p'),
    ('ffv1', 'yuv420p'),
    ('h263p', 'yuv420p'),
  ):
    yield made(
      f'{codec} in AVI without an index',
      lambda c=codec, p=pixels: without_index(
        encode(all_, codec=c, pixels=p, format='avi', g=10, b=2_000_000)
      ),
    )
  # Their decoders keep the picture that was last, so that only some ways of
  # reading go wrong; least where it is the same all the time.
  still = [5] * count
  for codec, pixels in (('wmv2', 'yuv420p'), ('zmbv', 'bgr0')):
    for name, numbers in {'moving': all_, 'still': still}.items():
      yield made(
        f'{codec} in AVI without an index, {name}, long groups',
        lambda c=codec, p=pixels, n=numbers: without_index(
          encode(n, codec=c, pixels=p, format='avi', g=24, b=2_000_000)
        ),
        numbers,
      )
  yield made('packed MPEG-4', lambda: packed(count + 1), range(count + 1))

  # mp4 files that were edited, or are cut into pieces.
  for name, flags in {
    'fragments': 'frag_keyframe+empty_moov',
    'negative offsets': 'negative_cts_offsets',
  }.items():
    yield case(f'mp4, {name}', bf=2, g=12, muxer={'movflags': flags})
  for skipped in (1, 5, 12, 17):
    yield made(
      f'an edit list that skips {skipped} frames',
      lambda k=skipped: remux(encode(all_, bf=2, g=12), 'mp4', shift=-k),
      range(skipped, count),
    )
  for name, (matrix, unturn) in TURNS.items():
    for codec, pixels in (('libx264', 'yuv420p'), ('mjpeg', 'yuvj420p')):
      yield made(
        f'{codec}, shown turned {name}',
        lambda c=codec, p=pixels, m=matrix, u=unturn: show_as(
          encode(all_, codec=c, pixels=p, unturn=u, g=12), m
        ),
      )
  for format in ('matroska', 'mov'):
    yield case(
      f'turned in {format}',
      format=format,
      rotation=90,
      unturn=lambda p: np.rot90(p, -1),
      g=12,
    )
  # Edited copies of files from a data set keep the comment.
  mark = {'comment': REGULAR}
  for name, (matrix, unturn) in TURNS.items():
    yield made(
      f'a regular file, turned {name}',
      lambda m=matrix, u=unturn: show_as(regular(all_, unturn=u), m),
    )
  for skipped in (1, 6, 12):
    yield made(
      f'a regular file, but for {skipped} frames',
      lambda k=skipped: remux(regular(all_), 'mp4', shift=-k, tags=mark),
      range(skipped, count),
    )
  for name, params in {
    'open groups': 'keyint=10:bframes=3:open-gop=1:b-adapt=0',
    'intra refresh': 'keyint=12:intra-refresh=1:bframes=0',
    'groups': 'keyint=10:bframes=2',
  }.items():
    yield case(
      f'{name}, said to be regular', tags=mark, **{'x264-params': params}
    )
  yield case(
    'a variable rate, said to be regular',
    tags=mark,
    bf=2,
    times=[i + 7 * (i // 5) for i in all_],
  )
  yield case('key frames, said to be regular', tags=mark, g=1)

  # Transport streams that were joined, or begin in the middle.
  def ts(numbers, **how):
    return encode(numbers, format='mpegts', g=10, bf=2, **how)

  yield made(
    'joined, stamps begin anew',
    lambda: ts(all_) + ts(more),
    both,
  )
  yield made(
    'joined, another size',
    lambda: ts(all_) + ts(more, size=(128, 192)),
    both,
  )
  yield made(
    'joined, smaller',
    lambda: ts(all_, size=(128, 192)) + ts(more),
    both,
  )
  yield made(
    'joined MPEG-2',
    lambda: (
      ts(all_, codec='mpeg2video', b=2_000_000)
      + ts(more, codec='mpeg2video', b=2_000_000)
    ),
    both,
  )
  yield made(
    'M2TS',
    lambda: encode(
      all_, format='mpegts', g=12, bf=2, muxer={'mpegts_m2ts_mode': '1'}
    ),
  )

  for codec, first in (('libx264', 10), ('mpeg2video', 12)):
    yield made(
      f'{codec}, begins in the middle',
      lambda c=codec: without_start(ts(all_, codec=c, b=2_000_000)),
      range(first, count),
    )

  yield made('H.264 in mp4, telecined', lambda: telecined(all_))

  # Several streams.
  yield made(
    'the second stream is the default',
    lambda: several(more, all_, default=1),
  )
  yield made(
    'the first stream is the default',
    lambda: several(all_, more, default=0),
  )
  yield made('a cover', lambda: several(all_, default=-1, cover=90))
  yield case('transparency', codec='png', pixels='rgba', format='mov')
  yield case(
    'transparency, ProRes',
    codec='prores_ks',
    pixels='yuva444p10le',
    format='mov',
  )
