"""Decoded frames on a disk, or in memory, in the place of decoding them again.

Clips of a small data set are cut out of the same videos in every epoch. A cache
has the frames of a video as the decoder gives them, of the size in which they
are stored: what comes after that is the same, and so are the clips. It is a
folder with a file for each video, which all threads and processes of a host
share. The kernel keeps in memory what is read again; a folder in /dev/shm is
in memory.

A file has the name of what it is made of: the encoded video, the decoder and
the processor, and what of this module decides its contents. So what is out of
date is not found. It appears under its name once it is complete, and every
frame has a checksum: a kill or a loss of power leaves no frame that is taken
for another one.

Which videos a cache has is settled before the first one is decoded: the first
of the data set's order whose frames fit. So it never outgrows its bound, and no
process has to ask another one.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import sys
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import av
import numpy as np

from mgjax import environment, files
from mgjax.data import held_frame
from mgjax.data.decode import DecodeError, Form, FramesVideo, Video
from mgjax.data.orientation import Orientation
from mgjax.data.views import shrinks
from mgjax.errors import ConfigError

# Part of the names of files: another layout of them is another number.
_LAYOUT = 2
# The header is JSON and its CRC-32. Behind it a file has the CRC-32 of every
# frame, then the frames.
_HEADER_BYTES = 512
_CRC = np.dtype('<u4')
# Share of the disk that stays free for what the run itself writes.
_SPARE = 0.05
# Every so many frames are compared with what they are made of, as they are
# written. One does not do: where it is all black, others may differ.
_COMPARED_FRAMES = 16
_LOCK = 'lock'


class _Damaged(Exception):
  """A frame in a file is not what was written."""


class _StoredVideo(FramesVideo):
  """A video whose decoded frames are in a file."""

  def __init__(
    self, file: IO[bytes], header: dict, decode: Callable[[], Video]
  ):
    """Takes a file that is open.

    Args:
      file: It is closed when the video is.
      header: Of the file.
      decode: Opens the encoded video.

    Raises:
      KeyError, ValueError: The file is damaged.
    """
    super().__init__(Form(*header['form']))
    width, height, pixel_format, colours, how, _ = header['kind']
    self.how = Orientation(*how)
    self._held = held_frame.HeldFrame(
      held_frame.Kind(width, height, pixel_format, colours, self.how)
    )
    self._shrinks = header['shrinks']
    self._file, self._decode = file, decode
    size = _CRC.itemsize * self.num_frames
    crcs = os.pread(file.fileno(), size, _HEADER_BYTES)
    self._crcs = np.frombuffer(crcs, _CRC, self.num_frames).tolist()
    self._start = _HEADER_BYTES + size

  def __exit__(self, *unused) -> None:
    self._file.close()

  def frame(self, index: int) -> av.VideoFrame:
    size = self._held.num_bytes
    # Not a mapping of the file: where the disk fails, that ends the process.
    pixels = os.pread(self._file.fileno(), size, self._start + index * size)
    if len(pixels) != size or zlib.crc32(pixels) != self._crcs[index]:
      raise _Damaged
    self._held.load(pixels)
    return self._held.frame

  def views(self, indices, views):
    if self._shrinks or not any(
      shrinks(view, self.height, self.width) for view in views
    ):
      try:
        return super().views(indices, views)
      except (_Damaged, OSError):
        # Whoever wants the video next writes it anew.
        with contextlib.suppress(OSError):
          os.unlink(self._file.name)
    with self._decode() as video:
      return video.views(indices, views)


@dataclasses.dataclass
class DecodedCache:
  """Decoded frames of the videos of a split.

  Attributes:
    folder: With a file for each video.
    room: Bytes that the file of each video may have, by the file's name.
    is_whole: Whether these are all videos.
    is_full: Whether this process writes no more.
  """

  folder: pathlib.Path
  room: dict[str, int]
  is_whole: bool
  is_full: bool = False

  def open(self, encoded: bytes, decode: Callable[[], Video]) -> Video | None:
    """Opens the decoded frames of a video, which are written where they lack.

    Args:
      encoded: The video's file.
      decode: Opens it for decoding.

    Returns:
      None where the video has to be decoded: it does not fit, is damaged, is
      being written by another thread or process, or the disk is full.
    """
    name = _name(encoded)
    if name not in self.room:
      return None
    path = self.folder / name
    found = _open(path, decode)
    if found is None and not self.is_full:
      self._write(path, decode)
      found = _open(path, decode)
    return found or None

  def _write(self, path: pathlib.Path, decode: Callable[[], Video]) -> None:
    """Writes the file of a video, unless somebody else does."""
    room = self.room[path.name]
    temporary = path.with_suffix('.tmp')
    try:
      with _alone(temporary) as file:
        if file is None:
          return
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < room + _SPARE * (
          disk.f_blocks * disk.f_frsize
        ):
          self._stop(f'has less than {_SPARE:.0%} of its disk free')
          temporary.unlink()
          return
        try:
          with decode() as video:
            _fill(file, video, room)
        except (DecodeError, held_frame.NotKept) as error:
          # Not decoded as a whole again: what is asked for may be sound.
          file.truncate(0)
          _write_header(file, {'room': room, 'reason': str(error)[:60]})
        file.flush()
        temporary.replace(path)
    except OSError as error:
      self._stop(f'cannot be written: {error.strerror}')
      with contextlib.suppress(OSError):
        temporary.unlink()

  def _stop(self, why: str) -> None:
    self.is_full = True
    print(
      f'\ndata.decoded_cache_gib: {self.folder} {why}; videos that are not in '
      'it yet are decoded for every clip',
      file=sys.stderr,
    )


def open_cache(
  folder: pathlib.Path, encoded: Iterable[bytes], room_bytes: float
) -> DecodedCache:
  """Opens the cache of a split, and removes what does not belong into it.

  Nothing is removed while another process has it open.

  Args:
    folder: Of the cache; need not exist.
    encoded: The files of the videos; it has those of the first ones that fit.
    room_bytes: What its files may take together.

  Raises:
    ConfigError: The folder cannot be written.
  """
  what = f'data.decoded_cache_dir: {folder}'
  files.make_folder(folder, what)
  room, is_whole = _choose(folder, encoded, room_bytes)
  found = DecodedCache(folder, room, is_whole)
  try:
    # As long as this process, which outlives its data workers, uses it.
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    weakref.finalize(found, os.close, lock)
    with contextlib.suppress(BlockingIOError):
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      for path in folder.iterdir():
        if path.name not in room and path.name != _LOCK:
          path.unlink()
    fcntl.flock(lock, fcntl.LOCK_SH)
  except OSError as error:
    raise ConfigError(f'{what} cannot be used: {error.strerror}') from error
  return found


def _choose(
  folder: pathlib.Path, encoded: Iterable[bytes], room_bytes: float
) -> tuple[dict[str, int], bool]:
  """The files of the first videos that fit, and whether these are all.

  Returns:
    Bytes that each may have, by name; and whether the room was enough.
  """
  room: dict[str, int] = {}
  for video in encoded:
    name = _name(video)
    if name in room:
      continue
    size = _room_of(folder / name, video)
    if size is None:
      continue
    # The first that does not fit is the last that is looked at: a cache of a
    # few videos of a large data set opens in a moment, and one with more room
    # has all of these.
    room_bytes -= size
    if room_bytes < 0:
      return room, False
    room[name] = size
  return room, True


def _room_of(path: pathlib.Path, encoded: bytes) -> int | None:
  """Bytes that the file of a video may have; None: it can have none."""
  # The same whether it is there or not: else other videos would fit.
  with contextlib.suppress(OSError), path.open('rb') as file:
    header = _read_header(file)
    if isinstance(header.get('room'), int):
      return header['room']
  try:
    with Video(encoded) as video:
      stored, count = video.stored_as, video.num_frames
  except DecodeError:
    return None
  size = stored and held_frame.frame_bytes(*stored)
  return size and _HEADER_BYTES + count * (_CRC.itemsize + size)


def _name(encoded: bytes) -> str:
  """Name of the file of a video."""
  return hashlib.sha256(_decoder() + encoded).hexdigest()[:32]


@functools.cache
def _decoder() -> bytes:
  """What decoded pixels depend on besides the video."""
  # Not all codecs prescribe every bit: decoders of MPEG-4 and MJPEG have other
  # instructions, and so other pixels, on other processors.
  versions = sorted(av.library_versions.items())
  cpu = environment.cpu_name()
  return repr((_LAYOUT, av.__version__, versions, cpu)).encode()


def _open(
  path: pathlib.Path, decode: Callable[[], Video]
) -> _StoredVideo | bool | None:
  """Opens the file of a video.

  Returns:
    None where there is none or it is damaged; False where it says that the
    frames cannot be kept.
  """
  try:
    file = path.open('rb', buffering=0)
  except OSError:
    return None
  try:
    header = _read_header(file)
    if 'reason' not in header:
      return _StoredVideo(file, header, decode)
    file.close()
    return False
  except (KeyError, OSError, ValueError):  # It is damaged, or was cut.
    file.close()
    return None


def _read_header(file: IO[bytes]) -> dict:
  """The header of a file; {} where it is damaged."""
  content = os.pread(file.fileno(), _HEADER_BYTES, 0)
  text, crc = content[: -_CRC.itemsize], content[-_CRC.itemsize :]
  return json.loads(text) if crc == _crc_bytes(text) else {}


def _write_header(file: IO[bytes], header: dict) -> None:
  text = json.dumps(header).encode().ljust(_HEADER_BYTES - _CRC.itemsize)
  file.seek(0)
  file.write(text + _crc_bytes(text))


def _crc_bytes(content: bytes) -> bytes:
  return zlib.crc32(content).to_bytes(_CRC.itemsize, 'little')


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[IO[bytes] | None]:
  """Opens a file, empty, that this thread alone writes; None: another does.

  What a killed process has begun is so begun anew: it takes no more room.
  """
  with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # Another may have completed it, and given it its name, since it was
      # opened.
      if not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
        raise FileNotFoundError
    except (BlockingIOError, FileNotFoundError):
      yield None
      return
    file.truncate(0)
    yield file


def _fill(file: IO[bytes], video: Video, room: int) -> None:
  """Writes the frames of a video.

  Raises:
    DecodeError: One is damaged.
    OSError: The disk is full, or refuses it.
    NotKept: They are not of one kind, or they take more than `room` bytes.
  """
  form, pts = video.form, video.pts
  if len(set(pts)) < len(pts):
    raise held_frame.NotKept('several frames are shown at the same time')
  held: held_frame.HeldFrame | None = None
  does_shrink = True
  crcs = np.zeros(len(pts), _CRC)
  start = _HEADER_BYTES + crcs.nbytes

  def take(index: int, frame: av.VideoFrame) -> None:
    nonlocal held, does_shrink
    kind = held_frame.Kind.of(frame)
    held = held or held_frame.hold(kind)
    if kind != held.kind:
      raise held_frame.NotKept('its frames are not all of one kind')
    if start + len(pts) * held.num_bytes > room:
      raise held_frame.NotKept('it has other frames than its header says')
    pixels = held.copy(frame)
    if not index % _COMPARED_FRAMES:
      does_shrink &= held_frame.stays(frame, held, form)
    crcs[index] = zlib.crc32(pixels)
    file.seek(start + index * len(pixels))
    file.write(pixels)

  video.each_frame(take)
  assert held is not None  # A video without frames is damaged.
  header = {
    'room': room,
    'form': form,
    'kind': dataclasses.astuple(held.kind),
    'shrinks': does_shrink,
  }
  _write_header(file, header)
  file.write(crcs.tobytes())
