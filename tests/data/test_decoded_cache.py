"""Clips are the same with decoded frames that are kept, whatever happens."""

import dataclasses
import fcntl
import functools
import io
import itertools
import os
import pathlib
import signal
import subprocess
import sys

import av
import numpy as np
import pytest

from mgjax.cli import ConfigError
from mgjax.data import decoded_cache, read_ahead
from mgjax.data.decode import DecodeError, Video
from mgjax.data.views import Crop, View
from mgjax.grids import Grid
from mgjax.setup import data as data_setup
from mgjax.setup import grids
from tests.data import odd_videos, videos
from tests.data.fake_sources import Damaged

GIB = 2.0**30
GRID = Grid(4, 12, 16, 8)
# Clips that shrink frames to less than half are decoded with PyAV 18.
SMALLEST_PX = 12 if hasattr(av.VideoFrame, 'chroma_location') else 40


@pytest.fixture
def cached(tiny_config, tmp_path):
  """A config with room for all decoded frames of its data set."""
  tiny_config.data.decoded_cache_gib = 0.1
  tiny_config.data.decoded_cache_dir = str(tmp_path / 'cache')
  return tiny_config


def make_stream(config, source=None):
  source = source or data_setup.source(config, 'train')
  schedule = grids.schedule(config, len(source))
  return data_setup.train_stream(config, schedule, source)


def without_cache(config):
  config = config.copy_and_resolve_references()
  config.data.decoded_cache_gib = 0.0
  return config


def assert_same(got, want):
  assert got.keys() == want.keys()
  for name in got:
    np.testing.assert_array_equal(got[name], want[name])


def files_of(config) -> set[pathlib.Path]:
  """The files of videos in the caches of all splits."""
  folder = pathlib.Path(config.data.decoded_cache_dir)
  return {p for p in folder.glob('*/*/*') if p.name != 'lock'}


@pytest.fixture
def no_decoder(monkeypatch):
  """Makes every attempt to decode a video fail."""

  def forbid():
    def refuse(*unused, **options):
      raise AssertionError('a video is decoded')

    monkeypatch.setattr(av, 'open', refuse)

  return forbid


def batch_of(stream, number=0):
  """Eight clips, resized to smaller and to larger frames than are stored."""
  return stream.clips_from(
    8 * number, GRID, stride_frames=(1, 4), jitter_px=(SMALLEST_PX, 70)
  )


def test_clips_are_the_same_and_videos_are_decoded_once(cached, no_decoder):
  plain, *kept = map(make_stream, (without_cache(cached), cached, cached))
  want = [batch_of(plain, number) for number in range(2)]
  for stream in (kept[0], *kept):  # Written, then read, by others, too.
    for number, batch in enumerate(want):
      assert_same(batch_of(stream, number), batch)
    no_decoder()


def test_views_of_an_evaluation_are_the_same(cached, no_decoder):
  source = data_setup.source(cached, 'validation')
  cached.eval.num_views, cached.eval.batch_size = 2, 8
  cached.eval.short_side_px = SMALLEST_PX
  cached.eval.crop_px = 12
  plain = data_setup.eval_stream(without_cache(cached), source)
  kept = data_setup.eval_stream(cached, source)
  want = plain.batch(1)
  assert_same(kept.batch(1), want)
  no_decoder()
  assert_same(kept.batch(1), want)


def test_data_workers_share_it(cached, no_decoder):
  cached.data.worker_processes = 2
  kept, plain = make_stream(cached), make_stream(without_cache(cached))
  made = list(
    read_ahead.read_ahead(
      functools.partial(batch_of, kept), range(4), kept.workers
    )
  )
  for number, batch in enumerate(made):
    assert_same(batch, batch_of(plain, number))
  no_decoder()  # They have written what this process needs.
  for number, batch in enumerate(made):
    assert_same(batch_of(kept, number), batch)


def test_a_cache_never_outgrows_its_bound(cached):
  everything = make_stream(cached)
  total = sum(everything.cache.room.values())
  assert everything.cache.is_whole
  # A part for each split, by its number of videos: 240 and 64.
  cached.data.decoded_cache_gib = total / 20 / GIB * 304 / 240
  found = []
  for first in (0, 9):
    kept = make_stream(cached)
    for number in range(first, first + 9):  # A third of the videos.
      batch = batch_of(kept, number)
      if number == first:
        assert_same(batch, batch_of(make_stream(without_cache(cached)), number))
    found.append(kept.cache.room)
    sizes = [path.stat().st_size for path in files_of(cached)]
    assert 0 < sum(sizes) <= total / 20
  # The same videos every time, and all that fit.
  assert found[0] == found[1]
  largest = max(everything.cache.room.values())
  assert total / 20 - largest < sum(found[0].values()) <= total / 20


def test_what_does_not_fit_is_told(cached, capsys):
  cached.data.decoded_cache_gib = 0.001
  make_stream(cached)
  (line,) = capsys.readouterr().err.splitlines()
  assert "split 'train' has room for" in line


def test_a_smaller_room_and_another_decoder_remove_files(cached, monkeypatch):
  stream = make_stream(cached)
  batch_of(stream)
  before = files_of(cached)
  del stream  # While one has it open, nothing is removed.
  cached.data.decoded_cache_gib = 0.002
  kept = make_stream(cached)
  after = files_of(cached)
  assert after < before
  assert {path.name for path in after} <= kept.cache.room.keys()
  del kept
  # Another version of FFmpeg.
  decoded_cache._decoder.cache_clear()
  monkeypatch.setitem(av.library_versions, 'libavcodec', (1, 2, 3))
  other = make_stream(cached)
  decoded_cache._decoder.cache_clear()
  assert not other.cache.room.keys() & {path.name for path in before}
  assert not files_of(cached)


def test_nothing_is_removed_while_a_process_uses_it(cached):
  stream = make_stream(cached)
  batch_of(stream)
  before = files_of(cached)
  cached.data.decoded_cache_gib = 0.002
  make_stream(cached)
  assert files_of(cached) == before


# One video.


def opened(tmp_path, encoded, decode=None):
  """The frames of a video that a new cache has; None where it has none."""
  cache = decoded_cache.open_cache(tmp_path / 'cache', [encoded], GIB)
  return cache.open(encoded, decode or (lambda: Video(encoded)))


def pixels(video, *sizes) -> list[np.ndarray]:
  """All frames, in several sizes; the video is closed."""
  with video:
    ways = [
      View(height, width, Crop(1, 2, height - 1, width - 2))
      for height, width in sizes
    ]
    return video.views(np.arange(video.num_frames), ways)


CASES = list(odd_videos.cases())
# Frames that are RGB already are not converted.
RGB = [case for case in CASES if {'png', 'qtrle'} & set(case.name.split())]


@pytest.mark.parametrize('case', CASES[::9] + RGB, ids=lambda case: case.name)
def test_odd_videos_stay_what_they_are(case, tmp_path):
  try:
    encoded = case.make()
  except av.codec.codec.UnknownCodecError as error:
    pytest.skip(f'this FFmpeg cannot write it: {error}')
  with Video(encoded) as video:
    form = video.form
  sizes = [(form.height, form.width), (90, 70), (20, 30)]
  found = opened(tmp_path, encoded)
  if found is not None:
    assert found.form == form
    got, want = pixels(found, *sizes), pixels(Video(encoded), *sizes)
    for one, other in zip(got, want, strict=True):
      np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('turn', odd_videos.TURNS)
def test_frames_that_a_phone_has_turned_are_kept(turn, tmp_path, no_decoder):
  encoded = odd_videos.show_as(videos.encode(), odd_videos.TURNS[turn][0])
  want = pixels(Video(encoded), (64, 64))
  opened(tmp_path, encoded).__exit__()
  no_decoder()
  np.testing.assert_array_equal(
    pixels(opened(tmp_path, encoded), (64, 64)), want
  )


def test_frames_of_several_sizes_are_not_kept(tmp_path):
  small, large = (
    odd_videos.encode(range(8), format='mpegts', codec='mpeg2video', size=size)
    for size in ((64, 96), (96, 160))
  )
  encoded = small + large
  assert opened(tmp_path, encoded) is None
  # Nor are they decoded as a whole again, to find that out.
  assert opened(tmp_path, encoded, decode=pytest.fail) is None


@pytest.mark.parametrize(
  'how',
  [
    {},
    {'codec': 'mpeg2video', 'format': 'mpegts', 'flags': '+ildct+ilme'},
  ],
  ids=['h264', 'interlaced'],
)
def test_a_black_frame_is_not_taken_for_all(how, tmp_path):
  is_first = itertools.chain([True], itertools.repeat(False))
  shades = np.random.default_rng(0).integers(
    0, 256, (*odd_videos.paint(0).shape[:2], 3), np.uint8
  )
  encoded = odd_videos.encode(
    range(20), unturn=lambda _: shades * (not next(is_first)), **how
  )
  found = opened(tmp_path, encoded)
  if found is not None:
    sizes = (64, 96), (48, 72), (90, 70), (20, 30)
    got, want = pixels(found, *sizes), pixels(Video(encoded), *sizes)
    for one, other in zip(got, want, strict=True):
      np.testing.assert_array_equal(one, other)


def test_frames_with_palettes_are_not_kept(tmp_path):
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format='mov') as out:
    stream = out.add_stream('png', rate=25)
    stream.width, stream.height, stream.pix_fmt = 96, 64, 'pal8'
    for shade in range(4):
      indices = np.full((64, 96), shade, np.uint8)
      palette = np.full((256, 4), 50 * shade, np.uint8)
      frame = av.VideoFrame.from_ndarray((indices, palette), 'pal8')
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  with Video(buffer.getvalue()) as video:
    assert video.stored_as[2] == 'pal8'
  assert opened(tmp_path, buffer.getvalue()) is None


@pytest.mark.parametrize('parts', ['i', 'ip', 'pi'])
def test_interlaced_frames_are_not_kept(parts, tmp_path):
  """FFmpeg resizes their two fields apart, and held frames have no fields."""
  encoded = b''.join(
    odd_videos.encode(
      range(8),
      times=range(20 * number, 20 * number + 8),
      format='mpegts',
      codec='mpeg2video',
      **({'flags': '+ildct+ilme'} if part == 'i' else {}),
    )
    for number, part in enumerate(parts)
  )
  with Video(encoded) as video:
    # No other reason not to keep them.
    assert len(set(video.pts)) == video.num_frames
    video.frames(np.arange(video.num_frames), 48, 64)
  assert opened(tmp_path, encoded) is None


def test_a_damaged_video_raises_what_it_raised(cached):
  source = data_setup.source(cached, 'train')
  clips = make_stream(without_cache(cached), source)
  bad = Damaged(source, {clips.order.example(3)})
  plain = batch_of(make_stream(without_cache(cached), bad))
  kept = make_stream(cached, source)
  with_bad = dataclasses.replace(kept, source=bad)
  assert plain['skipped']
  assert_same(batch_of(with_bad), plain)


def test_a_clip_before_the_damage_is_still_one(tmp_path):
  encoded = bytearray(videos.encode(num_frames=36, g='12', bf='0'))
  with Video(bytes(encoded)) as video:
    last = max(p.pos for p in video._packets if p.is_keyframe)
    sizes = {p.pos: p.size for p in video._packets}
  encoded[last + 8 : last + sizes[last]] = bytes(sizes[last] - 8)
  encoded = bytes(encoded)
  with Video(encoded) as video:
    video.frames(np.arange(4), 48, 64)
    with pytest.raises(DecodeError):
      video.frames(np.arange(36), 48, 64)
  assert opened(tmp_path, encoded) is None


def test_a_flipped_bit_is_decoded_again_and_mended(tmp_path, no_decoder):
  encoded = videos.encode()
  want = pixels(Video(encoded), (48, 64))
  for place in (3, 60, decoded_cache._HEADER_BYTES + 2, -5):
    opened(tmp_path, encoded).__exit__()
    (path,) = [p for p in (tmp_path / 'cache').iterdir() if p.name != 'lock']
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(
      pixels(opened(tmp_path, encoded), (48, 64)), want
    )
  opened(tmp_path, encoded).__exit__()
  no_decoder()
  np.testing.assert_array_equal(
    pixels(opened(tmp_path, encoded), (48, 64)), want
  )


def test_a_file_that_was_cut_is_decoded_again(tmp_path):
  encoded = videos.encode()
  want = pixels(Video(encoded), (48, 64))
  opened(tmp_path, encoded).__exit__()
  (path,) = [p for p in (tmp_path / 'cache').iterdir() if p.name != 'lock']
  whole = path.stat().st_size
  for size in (0, 100, decoded_cache._HEADER_BYTES + 3, whole - 1):
    os.truncate(path, size)
    np.testing.assert_array_equal(
      pixels(opened(tmp_path, encoded), (48, 64)), want
    )


_KILLED = """
import os, pathlib, signal, sys, zlib
from mgjax.data import decoded_cache
from mgjax.data.decode import Video

folder, encoded = map(pathlib.Path, sys.argv[1:3])
encoded, left, crc32 = encoded.read_bytes(), int(sys.argv[3]), zlib.crc32

def count(pixels):
  global left
  left -= 1
  if left < 0:
    os.kill(os.getpid(), signal.SIGKILL)
  return crc32(pixels)

zlib.crc32 = count
if left == 13:  # All frames and the header are written.
  pathlib.Path.replace = lambda *unused: count(b'')
cache = decoded_cache.open_cache(folder, [encoded], 2**30)
cache.open(encoded, lambda: Video(encoded))
"""


@pytest.mark.parametrize('checksums', [0, 5, 13])
def test_a_killed_writer_leaves_nothing_that_is_read(
  checksums, tmp_path, no_decoder
):
  encoded = videos.encode(num_frames=12)
  (tmp_path / 'video').write_bytes(encoded)
  folder = tmp_path / 'cache'
  died = subprocess.run(
    [
      *(sys.executable, '-c', _KILLED),
      *map(str, (folder, tmp_path / 'video', checksums)),
    ],
    env={**os.environ, 'PYTHONPATH': os.getcwd()},
  )
  assert died.returncode == -signal.SIGKILL
  # Of what it wrote, nothing has a video's name.
  assert {p.suffix for p in folder.iterdir() if p.name != 'lock'} == {'.tmp'}
  want = pixels(Video(encoded), (48, 64))
  opened(tmp_path, encoded).__exit__()
  no_decoder()
  np.testing.assert_array_equal(
    pixels(opened(tmp_path, encoded), (48, 64)), want
  )
  assert not list(folder.glob('*.tmp'))


def test_a_video_that_another_process_writes_is_decoded(tmp_path):
  encoded = videos.encode()
  cache = decoded_cache.open_cache(tmp_path / 'cache', [encoded], GIB)
  (name,) = cache.room
  with open(tmp_path / 'cache' / f'{name}.tmp', 'wb') as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    assert cache.open(encoded, pytest.fail) is None
  with cache.open(encoded, lambda: Video(encoded)) as video:
    assert video.form == Video(encoded).form


def test_a_full_disk_is_told_once_and_decoding_goes_on(
  cached, monkeypatch, capsys
):
  def full(fd, *unused):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(decoded_cache, '_write_header', full)
  kept, plain = make_stream(cached), make_stream(without_cache(cached))
  for number in range(2):
    assert_same(batch_of(kept, number), batch_of(plain, number))
  told = capsys.readouterr().err
  assert told.count('No space left on device') == 1
  assert not files_of(cached)


def test_a_part_of_the_disk_stays_free(tmp_path, monkeypatch, capsys):
  encoded = videos.encode()
  cache = decoded_cache.open_cache(tmp_path / 'cache', [encoded], GIB)
  disk = list(os.statvfs(tmp_path))
  disk[4] = disk[2] // 25  # Of all blocks, 4 % are free.
  monkeypatch.setattr(os, 'statvfs', lambda path: os.statvfs_result(disk))
  assert cache.open(encoded, lambda: Video(encoded)) is None
  assert 'less than 5% of its disk free' in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused(cached, tmp_path):
  (tmp_path / 'file').write_text('')
  cached.data.decoded_cache_dir = str(tmp_path / 'file')
  with pytest.raises(ConfigError, match='decoded_cache_dir: .*file') as caught:
    make_stream(cached)
  assert '\n' not in str(caught.value)
  cached.data.decoded_cache_dir = 'gs://bucket/frames'
  with pytest.raises(ConfigError, match='gs://bucket/frames.*give a folder'):
    make_stream(cached)


def test_it_is_in_the_folder_for_caches(cached, tmp_path, monkeypatch):
  cached.data.decoded_cache_dir = ''
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  folder = make_stream(cached).cache.folder
  assert folder.is_relative_to(tmp_path / 'xdg' / 'mgjax' / 'frames')
  assert folder.parent.name.startswith('moving_digits-motion_tiny-')
