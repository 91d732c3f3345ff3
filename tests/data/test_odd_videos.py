"""Of any undamaged video, frame i is the i-th that a decode shows.

So it is where a prepared data set stores the video, and where prediction reads
the file itself.
"""

import io

import av
import numpy as np
import pytest

from mgjax.data import scanning
from mgjax.data.decode import Video
from mgjax.data.prepare import transcode
from tests.data import odd_videos

CASES = list(odd_videos.cases())
AS_IS = transcode.Encoding(short_side_px=0, gop=6, crf=12, frame_fps=25.0)


def test_there_are_many():
  assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_every_frame_is_that_of_a_decode_from_the_start(case, tmp_path):
  try:
    encoded = case.make()
  except av.codec.codec.UnknownCodecError as error:
    pytest.skip(f'this FFmpeg cannot write it: {error}')
  found = scanning.scan(encoded)
  direct = None if found.is_addressable else found.form
  (tmp_path / 'video').write_bytes(encoded)
  stored = transcode.load(tmp_path / 'video', AS_IS)
  assert stored.scan.is_addressable
  assert stored.is_transcoded or stored.encoded == encoded
  for content, in_order in ((encoded, direct), (stored.encoded, None)):
    with Video(content, in_order=in_order) as video:
      size = video.height, video.width
      frames = video.frames(np.arange(video.num_frames), *size)
    assert [odd_videos.read(frame) for frame in frames] == list(case.numbers)
    hold_to_a_plain_decode(content, frames)
    for indices in choices(len(frames)):
      with Video(content, in_order=in_order) as video:
        got = video.frames(indices, *size)
      np.testing.assert_array_equal(got, frames[indices])


def test_fields_that_the_frames_before_decide_are_read_in_order():
  """They are resized apart, where a frame is taken for interlaced."""
  encoded = odd_videos.telecined()
  found = scanning.scan(encoded)
  assert not found.is_addressable
  size = 20, 30
  with Video(encoded, in_order=found.form) as video:
    frames = video.frames(np.arange(48), *size)
  for indices in choices(48):
    with Video(encoded, in_order=found.form) as video:
      np.testing.assert_array_equal(
        video.frames(indices, *size), frames[indices]
      )


def hold_to_a_plain_decode(encoded, frames):
  """Compares pixels with those of PyAV alone, which does not turn them."""
  with av.open(io.BytesIO(encoded)) as container:
    shown = container.decode(container.streams.best('video'))
    for frame, plain in zip(frames, shown, strict=True):
      if frame.shape == (plain.height, plain.width, 3) and not plain.side_data:
        pixels = plain.to_ndarray(format='rgb24')
        np.testing.assert_array_equal(frame, pixels)


def choices(count):
  """Frames as clips have them: sparse, at the end, one alone, any."""
  rng = np.random.default_rng(count)
  yield np.arange(count)[rng.integers(4) % count :: 4]
  yield np.arange(count)[-(count // 3) :]
  yield rng.integers(0, count, 1)
  yield np.sort(rng.integers(0, count, 6))
