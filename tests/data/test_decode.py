"""Chosen frames equal those of a full decode; damage is never concealed."""

import io

import av
import numpy as np
import pytest

from mgjax.data.decode import DecodeError, Video

NUM_FRAMES = 50


def encode(codec='libx264', container='mp4', size=(48, 64), **options) -> bytes:
  """A video whose frames all differ: noise bands that move."""
  rng = np.random.default_rng(0)
  file = io.BytesIO()
  with av.open(file, 'w', format=container) as out:
    stream = out.add_stream(codec, rate=25)
    stream.height, stream.width = size
    stream.pix_fmt = 'yuv420p'
    stream.options = {k: str(v) for k, v in options.items()}
    texture = rng.integers(0, 255, (*size, 3), np.uint8)
    for i in range(NUM_FRAMES):
      frame = av.VideoFrame.from_ndarray(
        np.roll(texture, i, axis=1), format='rgb24'
      )
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


def test_frames_are_resized_while_they_are_converted():
  with Video(encode(g=12)) as video:
    assert video.frames(np.array([0, 9]), 24, 40).shape == (2, 24, 40, 3)


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
