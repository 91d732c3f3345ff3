"""What a data set stores has the frames of the file it was made from."""

import dataclasses
import fractions
import io
import struct

import av
import numpy as np
import pytest

from mgjax.data import decode
from mgjax.data.decode import DecodeError, Video
from mgjax.data.prepare import transcode
from mgjax.data.prepare.transcode import Encoding
from tests.data import videos

AS_IS = Encoding(short_side_px=0, gop=6, crf=10, frame_fps=12.0)
SMALL = Encoding(short_side_px=32, gop=6, crf=10, frame_fps=12.0)
# Mean difference of 8-bit values that lossy coding at this quality stays
# below; different pictures differ by 30 and more.
CLOSE = 5


def load(tmp_path, encoded, encoding=AS_IS):
  path = tmp_path / 'video'
  path.write_bytes(encoded)
  return transcode.load(path, encoding)


def frames_of(encoded, height=48, width=64):
  with Video(encoded) as video:
    return video.frames(np.arange(video.num_frames), height, width)


def differences(frames, first=0):
  """Mean absolute difference of each frame from its picture."""
  return [
    np.abs(
      frame.astype(int) - videos.picture(first + i, *frame.shape[:2])
    ).mean()
    for i, frame in enumerate(frames)
  ]


@pytest.mark.parametrize(
  'kind',
  [
    {'format': 'mp4'},
    {'format': 'matroska'},
    {'format': 'webm', 'codec': 'libvpx-vp9'},
    {'format': 'avi', 'codec': 'mpeg4', 'bf': '2', 'g': '5', 'b': '1000000'},
  ],
)
def test_addressable_videos_are_stored_as_they_are(tmp_path, kind):
  encoded = videos.encode(**kind)
  stored = load(tmp_path, encoded)
  assert stored.encoded == encoded and not stored.is_transcoded
  scan = stored.scan
  assert (scan.num_frames, scan.width, scan.height) == (12, 64, 48)
  assert scan.fps == pytest.approx(12) and scan.duration_s == pytest.approx(1)
  # Each frame, by itself, is the one of its place.
  with Video(encoded) as video:
    for i in range(12):
      frame = video.frames(np.array([i]), 48, 64)
      assert max(differences(frame, first=i)) < CLOSE


def test_avi_with_reordered_frames_is_encoded_anew_in_their_order(tmp_path):
  encoded = videos.encode(format='avi', bf='2')
  # As it is, random access finds wrong frames.
  assert max(differences(frames_of(encoded))) > 20
  stored = load(tmp_path, encoded)
  assert stored.is_transcoded and stored.scan.num_frames == 12
  assert max(differences(frames_of(stored.encoded))) < CLOSE


@pytest.mark.parametrize('gop', [1, 5, 12, 250])
@pytest.mark.parametrize('fps', [12, 30, fractions.Fraction(30000, 1001)])
def test_only_the_needed_packets_of_a_transcoded_video_are_read(
  tmp_path, monkeypatch, gop, fps
):
  encoding = dataclasses.replace(SMALL, gop=gop)
  original = videos.encode(num_frames=40, fps=fps)
  encoded = load(tmp_path, original, encoding).encoded
  rng = np.random.default_rng(gop)
  wanted = [np.arange(40), np.array([39]), np.array([0, 0, 39])]
  wanted += [rng.integers(0, 40, 6) for _ in range(12)]
  with Video(encoded) as video:
    got = [video.frames(indices, 32, 42) for indices in wanted]
    assert '_packets' not in vars(video)
    shown = [frame.pts for frame in video.decode_all()]
    assert tuple(shown) == video.pts
  monkeypatch.setattr(decode, 'REGULAR', 'something else')
  with Video(encoded) as video:
    assert '_packets' in vars(video)
    assert tuple(shown) == video.pts
    for indices, pixels in zip(wanted, got, strict=True):
      np.testing.assert_array_equal(video.frames(indices, 32, 42), pixels)


def test_damage_in_a_transcoded_video_is_noticed(tmp_path):
  encoded = bytearray(
    load(tmp_path, videos.encode(num_frames=40), SMALL).encoded
  )
  place = encoded.find(b'mdat') + 4
  size = int.from_bytes(encoded[place - 8 : place - 4], 'big') - 8
  encoded[place + size // 3 : place + size // 2] = bytes(size // 2 - size // 3)
  with Video(bytes(encoded)) as video:
    with pytest.raises(DecodeError):
      video.frames(np.arange(40), 32, 42)


def test_transcoding_fixes_short_side_and_key_frames(tmp_path):
  stored = load(tmp_path, videos.encode(num_frames=20, g='250'), SMALL)
  scan = stored.scan
  # 64 x 48 at a short side of 32 is 42.7 wide; colour wants even sides.
  assert (scan.num_frames, scan.width, scan.height) == (20, 42, 32)
  assert scan.fps == 12 and scan.is_addressable
  with av.open(io.BytesIO(stored.encoded)) as container:
    keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
  assert [i for i, key in enumerate(keys) if key] == [0, 6, 12, 18]


def test_transcoding_never_enlarges(tmp_path):
  large = Encoding(short_side_px=256, gop=6, crf=10, frame_fps=12.0)
  stored = load(tmp_path, videos.encode(), large)
  assert (stored.scan.width, stored.scan.height) == (64, 48)
  assert stored.is_transcoded
  assert max(differences(frames_of(stored.encoded))) < CLOSE


def test_rotated_videos_are_stored_upright(tmp_path):
  encoded = bytearray(videos.encode())
  # The matrix in the track's header: a quarter turn clockwise.
  start = encoded.index(b'tkhd') + 44
  turn = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
  encoded[start : start + 36] = struct.pack('>9i', *turn)
  assert load(tmp_path, encoded).scan.rotation_degrees == -90
  large = Encoding(short_side_px=48, gop=6, crf=10, frame_fps=12.0)
  stored = load(tmp_path, encoded, large)
  assert (stored.scan.width, stored.scan.height) == (48, 64)
  assert stored.scan.rotation_degrees == 0
  upright = frames_of(stored.encoded, 64, 48)
  assert max(differences(np.rot90(upright, 1, (1, 2)))) < CLOSE


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_frame_folders_keep_their_files(tmp_path, suffix):
  videos.write_frames(tmp_path / 'v', suffix=suffix)
  stored = transcode.load(tmp_path / 'v', AS_IS)
  with av.open(io.BytesIO(stored.encoded)) as container:
    packets = [bytes(p) for p in container.demux(video=0) if p.size]
  files = sorted((tmp_path / 'v').iterdir())
  assert packets == [file.read_bytes() for file in files]
  assert stored.scan.num_frames == 8 and stored.scan.fps == 12
  assert max(differences(frames_of(stored.encoded))) < CLOSE


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_frame_folders_keep_their_colours_when_encoded(tmp_path, suffix):
  videos.write_frames(tmp_path / 'v', suffix=suffix)
  large = Encoding(short_side_px=48, gop=6, crf=10, frame_fps=12.0)
  stored = transcode.load(tmp_path / 'v', large)
  assert max(differences(frames_of(stored.encoded))) < CLOSE


@pytest.mark.parametrize('matrix', ['bt709', 'smpte170m', 'bt2020nc', None])
@pytest.mark.parametrize('full_range', [False, True])
def test_colours_do_not_depend_on_the_matrix_of_the_source(
  tmp_path, matrix, full_range
):
  tags = [f'colormatrix={matrix}'] if matrix else []
  tags += ['fullrange=on'] if full_range else []
  more = {'x264-params': ':'.join(tags)} if tags else {}
  encoded = videos.encode(**more)
  large = Encoding(short_side_px=48, gop=6, crf=2, frame_fps=12.0)
  stored = load(tmp_path, encoded, large)
  difference = np.abs(
    frames_of(encoded).astype(int) - frames_of(stored.encoded)
  ).mean()
  # Read with another matrix, the frames are 3 to 5 away.
  assert difference < 1.2


@pytest.mark.parametrize('format', ['mp4', 'matroska'])
def test_a_variable_rate_keeps_every_frame(tmp_path, format):
  times = np.cumsum([1 + 7 * (i % 5 == 0) for i in range(40)])
  encoded = videos.encode(format=format, num_frames=40, times=times)
  large = Encoding(short_side_px=48, gop=6, crf=10, frame_fps=12.0)
  for encoding in (AS_IS, large):
    stored = load(tmp_path, encoded, encoding)
    assert stored.scan.num_frames == 40
    # What Matroska states; in mp4, 40 frames in 96 ticks of 1/12 s.
    want = 12 if format == 'matroska' else 5
    assert stored.scan.fps == pytest.approx(want, rel=0.1)
    assert max(differences(frames_of(stored.encoded))) < CLOSE


def test_one_frame_is_a_video(tmp_path):
  encoded = videos.encode(num_frames=1)
  assert load(tmp_path, encoded).scan.num_frames == 1
  assert load(tmp_path, encoded, SMALL).scan.num_frames == 1


def sound():
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format='mp4') as container:
    stream = container.add_stream('aac', rate=8000)
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
    )
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return buffer.getvalue()


def damaged():
  encoded = bytearray(videos.encode())
  start = encoded.index(b'mdat') + len(encoded) // 3
  encoded[start : start + 400] = bytes(400)
  return bytes(encoded)


@pytest.mark.parametrize('encoding', [AS_IS, SMALL])
@pytest.mark.parametrize(
  'make',
  [
    lambda: b'',
    lambda: b'<html>Not found</html>',
    lambda: videos.encode()[:2000],
    lambda: videos.encode(format='matroska', num_frames=0),
    sound,
    damaged,
  ],
  ids=['empty', 'html', 'truncated', 'no frames', 'sound', 'damaged'],
)
def test_what_is_no_sound_video_is_refused(tmp_path, make, encoding):
  with pytest.raises(DecodeError):
    load(tmp_path, make(), encoding)


@pytest.mark.parametrize(
  'how', [{'format': 'matroska'}, {'format': 'webm', 'codec': 'libvpx'}]
)
@pytest.mark.parametrize('missing', [1, 100, 0.3])
@pytest.mark.parametrize('encoding', [AS_IS, SMALL])
def test_a_matroska_file_that_was_cut_off_is_refused(
  tmp_path, how, missing, encoding
):
  encoded = videos.encode(num_frames=40, **how)
  load(tmp_path, encoded, encoding)
  count = missing if missing >= 1 else int(missing * len(encoded))
  with pytest.raises(DecodeError, match=f'cut off: the last {count} bytes'):
    load(tmp_path, encoded[:-count], encoding)


def test_a_live_recording_does_not_say_how_long_it_is(tmp_path):
  encoded = videos.encode(format='matroska')
  start = encoded.index(b'\x18\x53\x80\x67') + 4
  live = encoded[:start] + b'\1' + b'\xff' * 7 + encoded[start + 8 :]
  assert load(tmp_path, live).scan.num_frames == 12


@pytest.mark.parametrize('form', ['{}.jpg', 'frame{}.jpg', 'a2_{}_x.jpg'])
def test_frames_are_in_the_order_of_their_numbers(tmp_path, form):
  videos.write_frames(tmp_path / 'v', num_frames=12)
  for path in (tmp_path / 'v').iterdir():
    path.rename(path.with_name(form.format(int(path.stem))))
  stored = transcode.load(tmp_path / 'v', AS_IS)
  assert stored.scan.num_frames == 12
  assert max(differences(frames_of(stored.encoded))) < CLOSE


def test_a_folder_of_two_kinds_of_frames_is_refused(tmp_path):
  videos.write_frames(tmp_path / 'v')
  (tmp_path / 'v' / '00009.png').write_bytes(b'')
  with pytest.raises(DecodeError, match='or both'):
    transcode.load(tmp_path / 'v', AS_IS)


def test_damaged_frames_are_refused(tmp_path):
  videos.write_frames(tmp_path / 'v')
  (tmp_path / 'v' / '00003.jpg').write_bytes(b'no image')
  with pytest.raises(DecodeError):
    transcode.load(tmp_path / 'v', AS_IS)
