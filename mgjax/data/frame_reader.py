"""Decodes a video once, from its first frame to its last, and keeps none.

So it reads what has no end, or cannot be sought: a camera, an address, a pipe,
and files of any length. Damage is left out, as far as a player could go on; in
a data set, which `decode.Video` reads, it is an error.
"""

import enum
import errno
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import av

from mgjax.data import decode
from mgjax.data.decode import DecodeError
from mgjax.data.orientation import orientation
from mgjax.errors import RunError

# A network that sends nothing for so long (to open; then) has gone.
_TIMEOUT_S = (10.0, 30.0)
# Time stamps that go on this much later, or earlier, are those of another
# recording: what lies between is no frame that was shown for so long.
_LATER_S = 60.0
_EARLIER_S = 1.0
# So many places of damage are named; the sum tells of the others.
_NAMED = 5
# Errors in a row after which a file has no more to read.
_LAST_ERROR = 100


class Kind(enum.Enum):
  """What FFmpeg reads from."""

  FILE = 'file'
  PIPE = 'pipe'
  DEVICE = 'device'
  ADDRESS = 'address'


class Input(NamedTuple):
  """What to read.

  Attributes:
    name: As messages and labels have it.
    url: As FFmpeg has it.
    kind: What it is.
    format: FFmpeg's name of the format; None: FFmpeg finds out.
    options: FFmpeg's, of the format or the protocol.
  """

  name: str
  url: str
  kind: Kind
  format: str | None = None
  options: Mapping[str, str] = {}


class Shown(NamedTuple):
  """A frame on the clock of its source.

  Attributes:
    frame: As decoded.
    ticks: Its distance to the frame before it, in ticks: 1, or more where that
      one was shown for longer.
    since_s: Set where frames begin that do not follow those before, and at the
      first one: seconds from the start of the source.
  """

  frame: av.VideoFrame
  ticks: int
  since_s: float | None


class Clock:
  """Puts frames on a clock that ticks at the average rate of their source.

  Training takes frames of a video by their numbers, as if all were equally far
  apart. Here a source has no end, and its rate can change: so a frame is shown
  again, or left out, where time stamps are more than a tick away. At a
  constant rate every frame is one tick.

  Source: -fps_mode cfr of FFmpeg (the threshold of 1.1 ticks).
  """

  def __init__(self, fps: float, first_s: float | None):
    """Starts it at a first frame.

    Args:
      fps: Ticks per second.
      first_s: Time stamp of the first frame; None: it has none.
    """
    self._fps = fps
    self._first_s = first_s
    self._ticks = 1

  def ticks(self, time_s: float | None) -> int | None:
    """Ticks from the frame before to this one; 0: it is left out.

    Args:
      time_s: Its time stamp; None: it has none, and follows.

    Returns:
      None where the time stamps are those of another recording.
    """
    if time_s is None:
      count = 1
    else:
      if self._first_s is None:
        self._first_s = time_s - self._ticks / self._fps
      late = (time_s - self._first_s) * self._fps - self._ticks
      # Two ticks at least: a source of few frames may be so uneven.
      earliest = -max(_EARLIER_S * self._fps, 2.0)
      if not earliest <= late <= _LATER_S * self._fps:
        return None
      count = 1 + round(late) if late > 1.1 else int(late >= -1.1)
    self._ticks += count
    return count


class _Times:
  """When frames are shown, where a container may say it wrong.

  Presentation times count, unless they went back more often than decoding
  times did: AVI files have none, and get those of another frame.

  Source: guess_correct_pts of FFmpeg.
  """

  def __init__(self, unit_s: float):
    self._unit_s = unit_s  # PyAV 18 does not say it of every frame.
    self._last: dict[str, int] = {}
    self._faults = {'pts': 0, 'dts': 0}

  def of(self, frame: av.VideoFrame) -> float | None:
    """Seconds; None: the container says nothing."""
    stamps = {'pts': frame.pts, 'dts': frame.dts}
    for name, stamp in stamps.items():
      if stamp is not None:
        self._faults[name] += stamp <= self._last.get(name, stamp - 1)
        self._last[name] = stamp
    stamp = frame.dts
    if self._faults['pts'] <= self._faults['dts'] and frame.pts is not None:
      stamp = frame.pts
    return None if stamp is None else stamp * self._unit_s


class FrameReader:
  """Reads the frames of a source, in the order in which they are shown.

  Attributes:
    source: What is read.
    fps: Average frame rate; 30 where the source does not say. Set by `open`.
    is_live: Whether frames are lost where nobody takes them in time, or come
      in their own time. Set by `open`.
    num_frames: Read so far.
    num_damaged: Packets that could not be decoded so far.
  """

  fps: float
  is_live: bool

  def __init__(self, source: Input):
    self.source = source
    self.num_frames = self.num_damaged = 0
    self._begun = False
    self._first_s: float | None = None

  def open(self) -> None:
    """Opens the source.

    Raises:
      DecodeError: It is not there, or not a video.
    """
    source = self.source
    try:
      with decode.errors_of_video('not a readable video'):
        self._container = av.open(
          source.url,
          format=source.format,
          options={**decode.ERR_DETECT, **source.options},
          timeout=_TIMEOUT_S if source.kind == Kind.ADDRESS else None,
          **decode.METADATA_OPTIONS,
        )
    except DecodeError as error:
      raise _without_url(error) from error
    except ValueError as error:  # Of PyAV: there is no such format.
      raise DecodeError(str(error)) from error
    self._stream = decode.main_stream(self._container)
    codec = self._stream.codec_context
    if codec is None:
      raise DecodeError('not a readable video: FFmpeg has no decoder for it')
    codec.thread_count = 1  # The other cores are the network's.
    codec.options = decode.ERR_DETECT
    rate = self._stream.average_rate or self._stream.guessed_rate
    self.fps = float(rate or 30)
    self.is_live = source.kind == Kind.DEVICE or (
      source.kind == Kind.ADDRESS and self._container.duration is None
    )

  def close(self) -> None:
    """Closes the source."""
    if hasattr(self, '_container'):
      self._container.close()

  def shown(self) -> Iterator[Shown]:
    """Yields the frames, on the clock of the source.

    Raises:
      DecodeError: No frame can be decoded.
      RunError: The source has broken off.
    """
    clock, size, now_s = None, None, 0.0
    times = _Times(float(self._stream.time_base))
    for frame in self._frames():
      sides = upright_sides(frame)
      time_s = times.of(frame)
      ticks = clock.ticks(time_s) if clock and sides == size else None
      if ticks is None:
        if clock:
          self._say(
            'the size of the frames changes; windows begin anew'
            if sides != size
            else 'the time stamps jump; windows begin anew',
            time_s,
          )
        clock, size = Clock(self.fps, time_s), sides
        # Where time stamps go back, the time of the source does not.
        now_s = max(now_s, self._since_start_s(time_s))
        yield Shown(frame, 1, now_s)
        now_s += 1 / self.fps
      elif ticks:
        yield Shown(frame, ticks, None)
        now_s += ticks / self.fps
    if clock is None:
      raise DecodeError('no frame can be decoded')

  def _since_start_s(self, time_s: float | None) -> float:
    """Seconds from the start of the source to a time stamp."""
    if time_s is None:
      return 0.0
    # Sound may begin before the pictures. A camera does not say.
    start_us = self._container.start_time
    if start_us is not None:
      return time_s - start_us / 1e6
    if self._first_s is None:
      self._first_s = time_s
    return time_s - self._first_s

  def _frames(self) -> Iterator[av.VideoFrame]:
    """Yields all frames that are not damaged."""
    codec = self._stream.codec_context
    for packet in self._packets():
      self._begun |= packet is not None and packet.is_keyframe
      frames = []
      try:
        with decode.errors_of_video('damaged'):
          frames = codec.decode(packet)
      except DecodeError as error:
        cause = error.__cause__
        self._add_damage(cause.strerror, packet and packet.pts)
      for frame in frames:
        if frame.is_corrupt:
          self._add_damage('the frame is marked so', frame.pts)
          continue
        self.num_frames += 1
        yield frame

  def _packets(self) -> Iterator[av.Packet | None]:
    """Yields all packets that can be read, then None.

    Raises:
      RunError: The source has broken off; what the decoder still has comes
        before.
    """
    errors, broken = 0, None
    while errors < _LAST_ERROR and not broken:
      try:
        for packet in self._container.demux(self._stream):
          if packet.size:  # The empty one at the end would end the decoder.
            errors = 0
            yield packet
        break
      except av.error.EOFError:
        break
      except av.error.InvalidDataError as error:
        # The next call goes on behind it.
        errors += 1
        self._add_damage(error.strerror, None)
      except av.FFmpegError as error:
        if error.errno == errno.EIO and self.is_live:
          # FFmpeg's HTTP says so at the end of what has no length.
          self._say('the transmission has ended', None)
          break
        broken = error
    yield None
    if broken:
      reason = broken.strerror
      if isinstance(broken, av.error.ExitError):
        reason = f'nothing came for {_TIMEOUT_S[1]:g} s'
      raise RunError(f'{self.source.name} has broken off: {reason}')

  def _add_damage(self, reason: str, pts: int | None) -> None:
    # Who joins a transmission has not what its first pictures refer to.
    if not self._begun:
      return
    self.num_damaged += 1
    if self.num_damaged <= _NAMED:
      time_s = None if pts is None else float(pts * self._stream.time_base)
      self._say(f'damaged ({reason}); going on', time_s)

  def _say(self, text: str, time_s: float | None) -> None:
    where = '' if time_s is None else f', time stamp {time_s:.2f} s'
    print(f'{self.source.name}{where}: {text}', file=sys.stderr, flush=True)


def upright_sides(frame: av.VideoFrame) -> tuple[int, int]:
  """Height and width of a frame as it is shown, in pixels."""
  sides = (frame.height, frame.width)
  return sides[::-1] if orientation(frame).turns % 2 else sides


def _without_url(error: DecodeError) -> DecodeError:
  """The reason alone: addresses have passwords."""
  cause = error.__cause__
  if isinstance(cause, av.error.InvalidDataError):
    return DecodeError('not a readable video')
  if isinstance(cause, av.error.ExitError):  # The timeout's.
    return DecodeError(f'nothing came for {_TIMEOUT_S[0]:g} s')
  return DecodeError(str(getattr(cause, 'strerror', None) or error))
