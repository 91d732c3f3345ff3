"""Frames of files, cameras and addresses, once and forward."""

import http.server
import io
import os
import re
import socketserver
import threading
import time

import av
import numpy as np
import pytest

from mgjax.data import frame_reader
from mgjax.data.decode import DecodeError, Video
from mgjax.data.frame_reader import Clock, FrameReader, Input, Kind
from mgjax.errors import RunError
from tests.data import odd_videos


@pytest.fixture
def open_reader(tmp_path):
  """Opens encoded videos, or what FFmpeg calls so."""
  readers = []

  def open_(what, kind=Kind.FILE, **how):
    url = what
    if not isinstance(what, str):
      path = tmp_path / 'video'
      path.write_bytes(what)
      url = f'file:{path}'
    reader = FrameReader(Input('name', url, kind, **how))
    readers.append(reader)
    reader.open()
    return reader

  yield open_
  for reader in readers:
    reader.close()


def numbers(reader):
  """What the reader shows: (number of the picture, ticks, since_s)."""
  return [
    (odd_videos.read(s.frame.to_ndarray(format='rgb24')), s.ticks, s.since_s)
    for s in reader.shown()
  ]


@pytest.mark.parametrize('fps', [12.0, 24000 / 1001, 25.0, 30.0, 60.0, 120.0])
@pytest.mark.parametrize('unit_s', [1e-3, 1 / 90000])
def test_at_a_constant_rate_every_frame_is_a_tick(fps, unit_s):
  # Time stamps as containers round them.
  times = np.round(np.arange(5000) / fps / unit_s) * unit_s + 7
  clock = Clock(fps, times[0])
  assert all(clock.ticks(t) == 1 for t in times[1:])


def test_a_frame_is_shown_again_or_left_out_as_time_stamps_say():
  clock = Clock(10.0, 5.0)
  times = [5.1, 5.2, 5.6, 5.61, 5.62, 5.63, 5.8, None, 6.0]
  found = [clock.ticks(t) for t in times]
  assert found == [1, 1, 4, 1, 0, 0, 1, 1, 1]
  # A rate of a half: each is shown twice, in all.
  clock = Clock(10.0, 0.0)
  assert sum(clock.ticks(i / 5) for i in range(1, 101)) in (199, 200, 201)


@pytest.mark.parametrize('fps', [0.2, 0.5, 1.0])
def test_few_frames_may_come_unevenly(fps):
  clock = Clock(fps, 0.0)
  # On average at the rate, two after each other now and then.
  times = np.array([1, 2, 2.25, 2.5, 4, 5, 6, 6.2, 8, 9]) / fps
  found = [clock.ticks(t) for t in times]
  assert None not in found and sum(found) == pytest.approx(9, abs=1)


@pytest.mark.parametrize('time_s', [-3.0, 100.0])
def test_time_stamps_of_another_recording_start_a_clock_anew(time_s):
  clock = Clock(10.0, 0.0)
  assert clock.ticks(0.1) == 1
  assert clock.ticks(time_s) is None


@pytest.mark.parametrize('form', ['mp4', 'matroska', 'mpegts', 'avi'])
def test_frames_are_those_of_the_file_in_the_order_of_a_player(
  open_reader, form
):
  reader = open_reader(odd_videos.encode(range(30), format=form, bf=2, g=12))
  assert numbers(reader) == [
    (i, 1, None if i else pytest.approx(0, abs=0.1)) for i in range(30)
  ]
  assert (reader.fps, reader.is_live, reader.num_damaged) == (25, False, 0)


def test_frames_of_a_variable_rate_are_shown_as_long_as_they_last(open_reader):
  times = [0, 1, 2, 3, 4, 14, 15, 16, 17, 18]  # Ten of 19 ticks.
  encoded = odd_videos.encode(range(10), times=times)
  with Video(encoded) as video:
    fps = video.fps
  reader = open_reader(encoded)
  assert reader.fps == fps < 20
  found = numbers(reader)
  # The fifth one is shown until the sixth one comes.
  assert {number: ticks for number, ticks, _ in found}[5] >= 4
  assert sum(ticks for _, ticks, _ in found) == pytest.approx(10, abs=1.1)


def hurt(encoded, count=3000):
  damaged = bytearray(encoded)
  start = len(damaged) // 2
  damaged[start : start + count] = bytes(count)
  return bytes(damaged)


@pytest.mark.parametrize('form', ['mp4', 'mpegts'])
def test_damage_is_named_and_what_follows_is_read(open_reader, form, capsys):
  reader = open_reader(
    hurt(odd_videos.encode(range(90), format=form, bf=0, g=10))
  )
  found = numbers(reader)
  shown = [number for number, _, _ in found]
  assert shown[:20] == list(range(20)) and shown[-20:] == list(range(70, 90))
  # Time goes on: the frame before is shown for longer.
  assert sum(ticks for _, ticks, _ in found) == 90
  lines = capsys.readouterr().err.splitlines()
  assert reader.num_damaged > 0
  assert len(lines) == min(reader.num_damaged, 5)
  assert 'name, time stamp ' in lines[0] and 'damaged (Invalid' in lines[0]


def test_who_joins_in_the_middle_reads_from_the_next_key_frame(
  open_reader, capsys
):
  late = odd_videos.without_start(
    odd_videos.encode(range(60), format='mpegts', bf=2, g=12)
  )
  found = numbers(open_reader(late))
  assert [n for n, _, _ in found] == list(range(60))[-len(found) :]
  assert capsys.readouterr().err == ''


def test_joined_recordings_are_two_parts_and_time_goes_on(open_reader, capsys):
  parts = [
    odd_videos.encode(numbers, format='mpegts')
    for numbers in (range(50), range(50, 80))
  ]
  found = numbers(open_reader(b''.join(parts)))
  assert [n for n, _, _ in found] == list(range(80))
  since = {n: since_s for n, _, since_s in found if since_s is not None}
  assert list(since) == [0, 50] and since[50] == pytest.approx(2, abs=0.1)
  assert 'the time stamps jump; windows begin anew' in capsys.readouterr().err


def test_what_can_not_be_read_is_refused_without_its_address(open_reader):
  for what, kind, words in (
    ('file:/nowhere.mp4', Kind.FILE, 'No such file'),
    (b'no video', Kind.FILE, 'not a readable video'),
    ('rtsp://me:secret@127.0.0.1:1/', Kind.ADDRESS, 'Connection refused'),
  ):
    with pytest.raises(DecodeError, match=words) as raised:
      open_reader(what, kind)
    assert 'secret' not in str(raised.value)
  with pytest.raises(DecodeError, match="'no-such'"):
    open_reader(b'', format='no-such')


def test_a_device_is_live_and_its_format_and_options_are_given(open_reader):
  reader = open_reader(
    'testsrc=duration=2', Kind.DEVICE, format='lavfi', options={'rate': '10'}
  )
  assert reader.is_live
  assert len(list(reader.shown())) == reader.num_frames == 50


class Server(http.server.BaseHTTPRequestHandler):
  """Sends a transport stream of unknown length, and perhaps no end."""

  video = b''
  stalls = threading.Event()

  def do_GET(self):
    self.send_response(200)
    self.send_header('Connection', 'close')
    self.end_headers()
    self.wfile.write(self.video)
    if self.path == '/stalls':
      self.wfile.flush()
      self.stalls.wait(20)

  def log_message(self, *unused): ...


@pytest.fixture(scope='module')
def address():
  Server.video = odd_videos.encode(range(40), format='mpegts', bf=0, g=10)
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield f'http://127.0.0.1:{server.server_port}'
  Server.stalls.set()
  server.shutdown()
  server.server_close()
  thread.join()


def test_an_address_without_a_length_is_live(open_reader, address, capsys):
  reader = open_reader(f'{address}/live', Kind.ADDRESS)
  assert reader.is_live
  assert [n for n, _, _ in numbers(reader)] == list(range(40))
  assert capsys.readouterr().err == 'name: the transmission has ended\n'


def test_an_address_that_sends_no_more_ends_in_an_error_after_its_frames(
  open_reader, address, monkeypatch
):
  monkeypatch.setattr(frame_reader, '_TIMEOUT_S', (5.0, 0.5))
  reader = open_reader(f'{address}/stalls', Kind.ADDRESS)
  found = []
  with pytest.raises(RunError, match='name has broken off: nothing came for'):
    found.extend(s.ticks for s in reader.shown())
  with pytest.raises(RunError):
    for _ in open_reader(f'{address}/stalls', Kind.ADDRESS).shown():
      found.append(1)
  assert len(found) >= 38


class Camera(socketserver.StreamRequestHandler):
  """Answers RTSP, and sends a video by RTP, a packet now and then."""

  video = b''
  description = (
    'v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 127.0.0.1\r\n'
    't=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n'
    'a=fmtp:96 packetization-mode=1\r\na=control:track0\r\n'
  )

  def handle(self):
    port = 0
    while request := self.request_lines():
      method = request[0].split()[0]
      fields = dict(line.split(': ', 1) for line in request[1:])
      answer, body = {'CSeq': fields['CSeq'], 'Session': '1'}, ''
      if method == 'OPTIONS':
        answer['Public'] = 'DESCRIBE, SETUP, PLAY, TEARDOWN'
      elif method == 'DESCRIBE':
        body = self.description
        answer['Content-Type'] = 'application/sdp'
        answer['Content-Length'] = str(len(body))
      elif method == 'SETUP':
        port = int(re.search(r'client_port=(\d+)', fields['Transport'])[1])
        answer['Transport'] = (
          f'RTP/AVP/UDP;unicast;client_port={port}-{port + 1}'
        )
      head = ''.join(f'{k}: {v}\r\n' for k, v in answer.items())
      self.wfile.write(f'RTSP/1.0 200 OK\r\n{head}\r\n{body}'.encode())
      if method == 'PLAY':
        self.send(port)
        time.sleep(0.5)  # Until all has been read.
        return

  def request_lines(self):
    lines = []
    while line := self.rfile.readline().decode().strip():
      lines.append(line)
    return lines

  def send(self, port):
    with (
      av.open(io.BytesIO(self.video)) as source,
      av.open(f'rtp://127.0.0.1:{port}', 'w', format='rtp') as out,
    ):
      stream = out.add_stream_from_template(source.streams.video[0])
      for packet in source.demux(video=0):
        if packet.dts is not None:
          packet.stream = stream
          out.mux(packet)
          time.sleep(0.01)  # A camera takes its time, and UDP drops a flood.


def test_a_camera_is_read_by_rtsp(open_reader):
  Camera.video = odd_videos.encode(range(40), format='mpegts', bf=0, g=10)
  with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Camera) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host, port = server.server_address
    reader = open_reader(f'rtsp://{host}:{port}/', Kind.ADDRESS)
    assert reader.is_live
    found = [n for n, _, _ in numbers(reader)]
    reader.close()
    server.shutdown()
    thread.join()
  # All that came after the first key frame.
  assert found == list(range(40))[-len(found) :] and len(found) >= 30


def test_standard_input_is_read_as_a_pipe(open_reader):
  encoded = odd_videos.encode(range(30), format='mpegts')
  end, start = os.pipe()

  def write():
    with os.fdopen(start, 'wb') as file:
      file.write(encoded)

  stdin = os.dup(0)
  os.dup2(end, 0)
  thread = threading.Thread(target=write)
  thread.start()
  try:
    reader = open_reader('fd:', Kind.PIPE)
    assert [n for n, _, _ in numbers(reader)] == list(range(30))
  finally:
    os.dup2(stdin, 0)
    for descriptor in (stdin, end):
      os.close(descriptor)
    thread.join()


def test_turned_frames_have_the_sides_that_are_shown(open_reader):
  matrix, unturn = odd_videos.TURNS['a quarter clockwise']
  encoded = odd_videos.show_as(
    odd_videos.encode(range(5), unturn=unturn), matrix
  )
  frame = next(open_reader(encoded).shown()).frame
  assert isinstance(frame, av.VideoFrame)
  assert (
    frame_reader.upright_sides(frame)
    == (64, 96)
    == (
      frame.width,
      frame.height,
    )
  )
