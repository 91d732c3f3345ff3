"""Windows of a stream, and that an evaluation would see the same of them."""

import dataclasses
import io
import itertools
import time
import tracemalloc

import av
import numpy as np
import pytest

from mgjax.data.decode import Video
from mgjax.data.eval_stream import EvalStream, Views
from mgjax.data.frame_reader import FrameReader, Input, Kind
from mgjax.data.read_ahead import Workers
from mgjax.errors import ConfigError
from mgjax.predicting import video_files, window_scorer
from mgjax.predicting.window_thread import WindowThread
from mgjax.predicting.windows import Settings, windows
from tests.data import odd_videos

# A clip of 4 frames in 0.4 s.
VIEWS = Views(
  num_views=1,
  num_crops=1,
  num_frames=4,
  stride_frames=3,
  sampling='dense',
  target_fps=30.0,
  short_side_px=48,
  crop_hw=(48, 48),
)
SETTINGS = Settings(VIEWS, every_frames=4, every_s=None, window_s=None)


def reader_of(path, kind=Kind.FILE, **how):
  url = str(path) if kind is Kind.DEVICE else f'file:{path}'
  return FrameReader(Input(str(path), url, kind, **how))


def cut(tmp_path, encoded, settings):
  path = tmp_path / 'video'
  path.write_bytes(encoded)
  reader = reader_of(path)
  reader.open()
  yield from windows(reader, settings)
  reader.close()


def shown(window):
  """The numbers of a window's frames."""
  return [odd_videos.read(frame) for frame in window.video._frames]


# At 25 frames per second a clip spans 10 frames.
@pytest.mark.parametrize(
  'count,every,firsts',
  [
    (10, 4, [0]),
    (18, 4, [0, 4, 8]),
    (20, 4, [0, 4, 8, 10]),  # The last one ends with the last frame.
    (3, 4, [0]),
    (34, 15, [0, 15, 24]),
    (21, 11, [0, 11]),
  ],
)
def test_windows_begin_every_few_frames_and_end_with_the_video(
  tmp_path, count, every, firsts
):
  settings = SETTINGS._replace(every_frames=every)
  found = list(cut(tmp_path, odd_videos.encode(range(count)), settings))
  for window, first in zip(found, firsts, strict=True):
    assert shown(window) == list(range(first, min(first + 10, count)))
    assert window.start_s == pytest.approx(first / 25)
    assert window.end_s == pytest.approx(min(first + 10, count) / 25)


def test_windows_every_second_do_not_drift_from_the_seconds():
  rate = 30000 / 1001
  views = dataclasses.replace(VIEWS, target_fps=0.0)
  settings = Settings(views, None, every_s=1.0, window_s=None)
  reader = reader_of(
    'testsrc=size=64x48:rate=30000/1001:duration=60',
    Kind.DEVICE,
    format='lavfi',
  )
  reader.open()
  starts = [window.start_s for window in windows(reader, settings)]
  reader.close()
  assert len(starts) == 61
  np.testing.assert_allclose(starts[:60], np.arange(60), atol=0.51 / rate)


def test_windows_do_not_reach_over_a_cut(tmp_path, capsys):
  parts = [
    odd_videos.encode(numbers, format='mpegts', size=size)
    for numbers, size in ((range(50), (64, 96)), (range(50, 80), (96, 144)))
  ]
  found = list(cut(tmp_path, b''.join(parts), SETTINGS))
  numbers = [shown(window) for window in found]
  assert {n for window in numbers for n in window} == set(range(80))
  assert not any({49, 50} <= set(window) for window in numbers)
  assert found[-1].video.form[2:] == (96, 144)
  assert 'windows begin anew' in capsys.readouterr().err


CASES = {
  'a clock of another rate': ({}, {}),
  'a rate of 29.97': ({}, {'rate': 29.97}),
  'a rate of 50': ({'stride_frames': 1}, {'rate': 50}),
  'strides that count frames': ({'target_fps': 0.0, 'num_crops': 3}, {}),
  'ten crops of a wide clip': (
    {'num_crops': 10, 'short_side_px': 56, 'crop_hw': (32, 72)},
    {},
  ),
  'segments': ({'sampling': 'segments', 'num_views': 2}, {'window_s': 0.8}),
  'views of a long window': ({'num_views': 3}, {'window_s': 1.0}),
}


@pytest.mark.parametrize('case', CASES)
def test_an_evaluation_sees_the_same_of_a_video_of_the_same_frames(
  tmp_path, case
):
  changed, how = CASES[case]
  views = dataclasses.replace(VIEWS, **changed)
  settings = Settings(views, 9, None, how.get('window_s'))
  encoded = odd_videos.encode(range(60), rate=how.get('rate', 25))
  with av.open(io.BytesIO(encoded)) as container:
    decoded = list(container.decode(video=0))
    rate = container.streams.video[0].average_rate
  found = list(cut(tmp_path, encoded, settings))
  assert len(found) > 2
  for window in found:
    numbers = shown(window)
    path = tmp_path / 'window.mkv'
    path.write_bytes(lossless([decoded[i] for i in numbers], rate))
    (source,) = [video_files.VideoFiles([path], {path: None}, 7)]
    evaluated, of_window = (
      kind(s, views, 30, Workers(1, 0, 1)).batch(0)
      for kind, s in (
        (EvalStream, source),
        (window_scorer._InMemory, window_scorer._OneVideo(window, 7)),
      )
    )
    assert not evaluated['failed'] and not of_window['failed']
    for name in ('video', 'weight', 'index'):
      np.testing.assert_array_equal(evaluated[name], of_window[name])
    assert of_window['video'].std() > 10


def lossless(frames, rate):
  """A video of decoded frames, bit for bit."""
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format='nut') as out:
    stream = out.add_stream('ffv1', rate=rate)
    stream.width, stream.height = frames[0].width, frames[0].height
    stream.pix_fmt = 'yuv420p'
    for i, frame in enumerate(frames):
      copy = av.VideoFrame.from_ndarray(frame.to_ndarray(), format='yuv420p')
      copy.pts, copy.time_base = i, 1 / rate
      out.mux(stream.encode(copy))
    out.mux(stream.encode(None))
  return buffer.getvalue()


@pytest.mark.parametrize('turn', odd_videos.TURNS)
def test_windows_of_turned_videos_are_upright(tmp_path, turn):
  matrix, unturn = odd_videos.TURNS[turn]
  encoded = odd_videos.show_as(
    odd_videos.encode(range(12), unturn=unturn), matrix
  )
  window = next(cut(tmp_path, encoded, SETTINGS))
  with Video(encoded) as video:
    size = VIEWS.resized_hw(video.form)
    frames = video.frames(np.arange(10), *size)
    assert window.video.form[1:] == video.form[1:]
  np.testing.assert_array_equal(
    window.video.frames(np.arange(10), *size), frames
  )


def test_memory_does_not_grow_with_the_length():
  peaks = []
  for seconds in (10, 60):
    reader = reader_of(
      f'testsrc=size=96x64:rate=25:duration={seconds}',
      Kind.DEVICE,
      format='lavfi',
    )
    reader.open()
    tracemalloc.start()
    count = sum(1 for _ in windows(reader, SETTINGS))
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    reader.close()
    assert count > 6 * seconds - 3
  # A frame has 10 kB; kept, the 1250 others would take 13 MB.
  assert peaks[1] < peaks[0] + 100_000


def test_windows_that_cannot_work_are_refused(tmp_path):
  video = odd_videos.encode(range(30))
  for changed, words in (
    ({'window_s': 0.3}, 'shorter than a clip of the network, which spans 0.40'),
    ({'window_s': 1e5}, 'GiB, more than the 2.0 GiB that are accepted'),
  ):
    with pytest.raises(ConfigError, match=words):
      list(cut(tmp_path, video, SETTINGS._replace(**changed)))


def test_a_window_fits_or_not_whatever_the_rate():
  # 16 frames, each the second of 30 a second, span 31 / 30 s.
  views = dataclasses.replace(VIEWS, num_frames=16, stride_frames=2)
  for fps in (20.0, 24.0, 25.0, 30.0, 50.0, 60.0):
    settings = SETTINGS._replace(views=views, window_s=1.07)
    least = settings._replace(window_s=None).num_frames(fps)
    assert settings.num_frames(fps) >= least
    with pytest.raises(ConfigError, match='shorter than a clip'):
      settings._replace(window_s=1.0).num_frames(fps)


def thread_of(live):
  return WindowThread(
    reader_of(
      'testsrc=size=64x48:rate=25:duration=20', Kind.DEVICE, format='lavfi'
    ),
    SETTINGS,
    live,
  )


def taken(thread):
  """All windows that a thread still has."""
  found = []
  with pytest.raises(EOFError):
    while True:
      found.append(thread.next())
  return [window.start_s for window in found if window]


def test_a_live_source_does_not_wait_and_windows_are_left_out():
  thread = thread_of(live=None)  # A device is live.
  # 500 frames: the windows from 0, 4 ... 488, and the last one.
  while thread.num_left_out < 123 and thread._thread.is_alive():
    time.sleep(0.01)
  assert taken(thread) == [490 / 25]
  assert thread.num_left_out == 123


def test_a_source_that_can_wait_loses_no_window():
  thread = thread_of(live=False)
  starts = taken(thread)
  assert starts[:-1] == [pytest.approx(i * 4 / 25) for i in range(123)]
  assert thread.num_left_out == 0


def test_a_thread_ends_when_it_is_closed():
  thread = thread_of(live=False)
  for _ in itertools.repeat(None, 3):
    thread.next()
  thread.close()
  # It has closed the source: nobody takes what follows.
  while thread._thread.is_alive():
    time.sleep(0.01)
