"""Chosen frames equal those of a full decode; damage is never concealed."""

import concurrent.futures
import fractions
import io
import multiprocessing
import os
import pathlib

import av
import numpy as np
import pytest

from mgjax.data import decode, views
from mgjax.data.decode import DecodeError, Video
from mgjax.data.views import Crop

NUM_FRAMES = 50


def encode(
  codec='libx264',
  container='mp4',
  size=(48, 64),
  num_frames=NUM_FRAMES,
  times=None,
  prepare=lambda stream: None,
  **options,
) -> bytes:
  """A video whose frames all differ: noise bands that move."""
  rng = np.random.default_rng(0)
  file = io.BytesIO()
  name = {'mkv': 'matroska'}.get(container, container)
  with av.open(file, 'w', format=name) as out:
    stream = out.add_stream(codec, rate=25)
    stream.height, stream.width = size
    stream.pix_fmt = 'yuv420p'
    stream.thread_count = 1
    stream.options = {k: str(v) for k, v in options.items()}
    prepare(stream)
    texture = rng.integers(0, 255, (*size, 3), np.uint8)
    for i in range(num_frames):
      frame = av.VideoFrame.from_ndarray(
        np.roll(texture, i, axis=1), format='rgb24'
      )
      if times is not None:
        frame.pts, frame.time_base = int(times[i]), fractions.Fraction(1, 25)
      out.mux(stream.encode(frame))
    out.mux(stream.encode())
  return file.getvalue()


def decode_all(encoded: bytes) -> list[np.ndarray]:
  with av.open(io.BytesIO(encoded)) as container:
    return [f.to_ndarray(format='rgb24') for f in container.decode(video=0)]


ENCODINGS = {
  'long groups, B-frames': {'g': 250, 'bf': 3},
  'short groups': {'g': 12, 'bf': 2},
  'open groups': {'g': 10, 'bf': 3, 'x264-params': 'open-gop=1'},
  'key frames only': {'g': 1},
  'fast decoding': {'g': 16, 'tune': 'fastdecode'},
  'webm': {'codec': 'libvpx', 'container': 'webm', 'g': 15},
  'avi': {'codec': 'mpeg4', 'container': 'avi', 'g': 12},
}


@pytest.mark.parametrize('name', ENCODINGS)
def test_chosen_frames_equal_those_of_a_full_decode(name):
  encoded = encode(**ENCODINGS[name])
  whole = decode_all(encoded)
  rng = np.random.default_rng(1)
  choices = [[0], [49], [0, 49], [17, 17, 18], list(range(50))]
  choices += [sorted(rng.integers(0, 50, 8)) for _ in range(8)]
  for indices in choices:
    with Video(encoded) as video:
      assert video.num_frames == len(whole) == NUM_FRAMES
      got = video.frames(np.array(indices), 48, 64)
    np.testing.assert_array_equal(got, [whole[i] for i in indices])


def test_a_video_tells_its_form():
  with Video(encode(g=12)) as video:
    assert (video.num_frames, video.fps) == (NUM_FRAMES, 25.0)
    assert (video.height, video.width) == (48, 64)


def test_frames_can_be_read_twice_and_backwards_in_time():
  with Video(encode(g=12)) as video:
    late = video.frames(np.array([40]), 48, 64)
    early = video.frames(np.array([3]), 48, 64)
    np.testing.assert_array_equal(
      video.frames(np.array([3, 40]), 48, 64), np.concatenate([early, late])
    )


def resized(pixels, height, width):
  """Bilinear between the centres of pixels, in float64."""
  for axis, n in ((0, height), (1, width)):
    m = pixels.shape[axis]
    place = ((np.arange(n) + 0.5) * m / n - 0.5).clip(0, m - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, m - 1)
    share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    pixels = (1 - share) * pixels.take(low, axis) + share * pixels.take(
      high, axis
    )
  return pixels


@pytest.mark.parametrize('height,width', [(48, 64), (61, 90), (30, 41)])
def test_a_crop_is_that_of_the_resized_frame(height, width):
  encoded = encode(g=12)
  whole = decode_all(encoded)
  crop = Crop(5, 9, 24, 28)
  with Video(encoded) as video:
    got = video.frames(np.array([3, 40]), height, width, crop)
  for frame, index in zip(got, (3, 40), strict=True):
    want = resized(whole[index].astype(float), height, width)[5:29, 9:37]
    # Weights have 5 bits on each axis: 2 * 255 / 64 at most.
    np.testing.assert_allclose(frame, want, atol=8)
    assert abs(frame - want).mean() < 0.8


def test_frames_that_become_much_smaller_are_averaged():
  encoded = encode(g=12)
  with Video(encoded) as video:
    (got,) = video.frames(np.array([20]), 12, 16)
  blocks = decode_all(encoded)[20].reshape(12, 4, 16, 4, 3).mean((1, 3))
  # The weights fall off linearly; single pixels of noise would be 40 away.
  assert abs(got - blocks).mean() < 13


def test_pictures_that_nobody_refers_to_are_not_decoded():
  encoded = encode(g=50, bf=3)
  with Video(encoded) as video:
    decoded = len(list(video.access({video.pts[30]})))
  assert decoded < 20


def test_frames_are_resized_while_they_are_converted():
  with Video(encode(g=12)) as video:
    assert video.frames(np.array([0, 9]), 24, 40).shape == (2, 24, 40, 3)


@pytest.mark.parametrize('degrees', [90, 180, 270])
@pytest.mark.parametrize('container', ['mp4', 'mov'])
def test_a_turned_video_is_shown_upright(container, degrees):
  def turned(stream):
    stream.set_display_rotation(degrees)

  encoded = encode(container=container, prepare=turned, g=12)
  stored = decode_all(encoded)
  with Video(encoded) as video:
    upright = np.rot90(stored[7], degrees // 90)
    assert (video.height, video.width) == upright.shape[:2]
    got = video.frames(np.array([7]), video.height, video.width)
    np.testing.assert_array_equal(got, [upright])
    # Also where frames shrink while they are converted.
    small = video.frames(np.array([7]), *(n // 4 for n in upright.shape[:2]))
  height, width = (n // 4 for n in upright.shape[:2])
  blocks = upright.reshape(height, 4, width, 4, 3).mean((1, 3))
  assert abs(small[0] - blocks).mean() < 13


def test_frames_of_a_variable_rate_are_counted_not_timed():
  times = np.cumsum([1 + 7 * (i % 5 == 0) for i in range(NUM_FRAMES)])
  encoded = encode(container='mkv', g=12, times=times)
  whole = decode_all(encoded)
  with Video(encoded) as video:
    assert video.num_frames == NUM_FRAMES
    got = video.frames(np.array([0, 4, 5, 6, 49]), 48, 64)
  np.testing.assert_array_equal(got, [whole[i] for i in (0, 4, 5, 6, 49)])


def test_a_video_of_one_frame_is_a_video():
  with Video(encode(num_frames=1)) as video:
    assert video.num_frames == 1
    assert video.frames(np.zeros(8, int), 48, 64).shape == (8, 48, 64, 3)


def test_a_huge_video_is_reduced_while_it_is_decoded():
  encoded = encode(size=(2160, 3840), num_frames=1, preset='ultrafast')
  with Video(encoded) as video:
    assert (video.height, video.width) == (2160, 3840)
    got = video.frames(np.array([0]), 128, 227, Crop(8, 50, 112, 112))
  assert got.shape == (1, 112, 112, 3)


def without_frames() -> bytes:
  """An mp4 that announces a video stream and ends."""
  file = io.BytesIO()
  with av.open(file, 'w', format='mp4') as out:
    stream = out.add_stream('libx264', rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
    out.start_encoding()
  return file.getvalue()


def sound() -> bytes:
  file = io.BytesIO()
  with av.open(file, 'w', format='mp4') as out:
    stream = out.add_stream('aac', rate=16000, layout='mono')
    for i in range(8):
      frame = av.AudioFrame.from_ndarray(
        np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
      )
      frame.sample_rate, frame.pts = 16000, 1024 * i
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return file.getvalue()


def titled(title: bytes) -> bytes:
  name = 'x' * len(title)

  def name_it(stream):
    stream.container.metadata['title'] = name

  return encode(prepare=name_it).replace(name.encode(), title)


def test_a_title_in_another_encoding_does_no_harm():
  encoded = titled('Café de la Paix'.encode('latin-1'))
  assert b'Caf\xe9 de' in encoded
  with Video(encoded) as video:
    assert video.num_frames == NUM_FRAMES


def test_a_video_without_a_decoder_raises():
  encoded = encode()
  assert encoded.count(b'avc1') == 2
  with pytest.raises(DecodeError, match='no decoder'):
    Video(encoded.replace(b'avc1', b'zzzz'))


@pytest.mark.parametrize('make', [without_frames, sound])
def test_a_file_without_frames_raises(make):
  with pytest.raises(DecodeError):
    Video(make())


def growth_mib() -> float:
  """By how much reading good and bad videos again makes this process grow."""
  encoded = encode(g=12)
  broken = encoded[:3000]

  def read(count):
    for i in range(count):
      with Video(encoded) as video:
        video.frames(np.array([i % 40, 45]), 24, 32, Crop(2, 3, 20, 24))
      with pytest.raises(DecodeError):
        Video(broken)

  read(200)
  before = resident_mib()
  read(2000)
  return resident_mib() - before


@pytest.mark.slow
def test_memory_stays_flat_over_many_clips():
  # A leak of a single frame per clip would be 9 MiB.
  assert in_new_process(growth_mib) < 4


def in_new_process(function, *arguments):
  """Calls a function where what other tests have left does not count."""
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(function, *arguments).result()


def resident_mib(pid: int | str = 'self') -> float:
  pages = int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


@pytest.mark.parametrize('error', [TypeError, ValueError, KeyError])
def test_a_mistake_of_the_program_is_no_damage(monkeypatch, error):
  def mistaken(frame):
    raise error('an argument is gone')

  with Video(encode(num_frames=3)) as video:
    monkeypatch.setattr(views, 'orientation', mistaken)
    with pytest.raises(error, match='is gone'):
      video.frames(np.array([1]), 48, 64)


def test_a_lack_of_memory_is_no_damage(monkeypatch):
  def lacking(*unused, **options):
    raise av.error.MemoryError(12, 'Cannot allocate memory')

  monkeypatch.setattr(av, 'open', lacking)
  # A damaged header can ask for more than there is.
  with pytest.raises(DecodeError, match='Cannot allocate'):
    Video(b'')
  monkeypatch.setattr(decode, '_SPARE_BYTES', 2**62)
  with pytest.raises(MemoryError, match='FFmpeg is out of memory'):
    Video(b'')


@pytest.mark.parametrize('junk', [b'', b'<html>404</html>', bytes(5000)])
def test_what_is_not_a_video_raises(junk):
  with pytest.raises(DecodeError):
    Video(junk)


def test_a_truncated_file_raises():
  with pytest.raises(DecodeError):
    Video(encode(g=12)[:3000])


def test_damage_in_a_needed_frame_raises():
  """FFmpeg's default would return a repaired picture."""
  clean = encode(g=50, bf=0)
  start = clean.index(b'mdat') + 4
  caught = 0
  rng = np.random.default_rng(0)
  for _ in range(20):
    damaged = bytearray(clean)
    for position in rng.integers(start + 2000, len(clean) - 4000, 20):
      damaged[position] ^= 1 << rng.integers(8)
    try:
      with Video(bytes(damaged)) as video:
        video.frames(np.arange(NUM_FRAMES), 48, 64)
    except DecodeError:
      caught += 1
  # A flipped bit can be another valid code; most are not.
  assert caught >= 18
