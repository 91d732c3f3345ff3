"""Labels along streams, as the command `predict` writes them."""

import csv
import json
import os
import re
import shutil
import signal
import sys
from fractions import Fraction

import av
import jax
import numpy as np
import pytest

from mgjax import cli, predict
from mgjax.config import saved
from mgjax.data import frame_reader
from mgjax.data.prepare import command as prepare
from mgjax.data.prepare.settings import Settings
from mgjax.data.prepare.transcode import Encoding
from mgjax.evaluation import scoring
from mgjax.hosts import parallel
from mgjax.predicting import command, inputs, label_writers, streaming
from mgjax.predicting.loading import Network
from mgjax.run import checkpoint
from mgjax.setup import data as data_setup
from tests.data import odd_videos
from tests.predicting.test_windows import lossless
from tests.predicting.tiny import run


def lines_of(text):
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope='module')
def long_video(tmp_path_factory):
  """77 frames at 25 per second; a clip of the tiny network spans 27."""
  path = tmp_path_factory.mktemp('long') / 'long.mp4'
  path.write_bytes(odd_videos.encode(range(77)))
  return path


def test_scores_of_windows_are_those_of_an_evaluation_of_the_same_frames(
  folder, long_video, tmp_path, capsys
):
  code, printed = run(
    *(capsys, folder, long_video, '--every_frames=9', '--format=jsonl'),
    *('--top=7', '--config.eval.num_crops=3'),
  )
  assert code == 0, printed.err
  found = lines_of(printed.out)
  starts = [0, 9, 18, 27, 36, 45, 50]
  assert [round(25 * line['start_s']) for line in found] == starts
  assert {line['file'] for line in found} == {str(long_video)}
  # The same frames as the videos of a data set, one in each class.
  with av.open(str(long_video)) as container:
    frames = list(container.decode(video=0))
  for k, start in enumerate(starts):
    for split in ('train', 'validation'):
      path = tmp_path / f'videos/{split}/{k}/window.mkv'
      path.parent.mkdir(parents=True)
      path.write_bytes(lossless(frames[start : start + 27], Fraction(25)))
  prepare.prepare(
    Settings(
      *('folder', tmp_path / 'videos', (), tmp_path / 'data', 'windows'),
      *(None, None, 1, 0.0, Encoding(0, 12, 20, 30.0), 256, 0.0, 0.0, 1),
      *('', ''),
    )
  )
  config = saved.read_saved(folder / 'out')
  config.data.name, config.data.dir = 'windows', str(tmp_path / 'data')
  config.eval.num_views, config.eval.num_crops = 1, 3
  network = Network(config, checkpoint.find(folder / 'out', 'x'), 100)
  scores = scoring.score(
    network.program,
    network.state,
    data_setup.eval_stream(
      network.config, data_setup.source(config, 'validation')
    ),
    network.mesh,
    ensemble='sum',
  )
  assert sorted(scores.labels) == list(range(7))  # Stored in another order.
  want = scores.scores[np.argsort(scores.labels)]
  got = np.zeros((7, 7))
  for line, row in zip(found, got, strict=True):
    for p in line['predictions']:
      row[p['class']] = p['probability']
  assert np.abs(want[0] - want[3]).max() > 1e-4
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_a_stream_uses_no_more_devices_than_it_has_clips(folder):
  config = saved.read_saved(folder / 'out')
  path = checkpoint.find(folder / 'out', 'x')
  assert len(parallel.find_devices()) > 1
  network = Network(config, path, 1)
  assert network.mesh.size == network.config.eval.batch_size == 1
  assert Network(config, path, 64).mesh.size == len(jax.devices())


def test_every_second_of_each_video_of_a_folder_is_labelled(
  folder, long_video, tmp_path, capsys
):
  for name in ('b/2.mp4', 'a.MP4'):
    path = tmp_path / 'videos' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(long_video, path)
  (tmp_path / 'videos/notes.txt').write_text('no video')
  out = tmp_path / 'labels'
  code, printed = run(
    *(capsys, folder, tmp_path / 'videos', '--every_s=1', '--format=csv'),
    *('--top=2', f'--output={out}/'),
  )
  assert code == 0, printed.err
  assert printed.out == ''
  assert sorted(p.name for p in out.iterdir()) == ['2.csv', 'a.csv']
  rows = list(csv.DictReader((out / '2.csv').read_text().splitlines()))
  assert [row['start_s'] for row in rows[::2]] == ['0.000', '1.000', '2.000']
  assert [row['rank'] for row in rows] == ['1', '2'] * 3
  # One file for all has the name of each.
  code, printed = run(
    *(capsys, folder, tmp_path / 'videos', '--every_s=1', '--format=csv'),
    *('--top=1', f'--output={out}/all.csv'),
  )
  assert code == 0, printed.err
  rows = list(csv.DictReader((out / 'all.csv').read_text().splitlines()))
  names = [row['file'] for row in rows]
  assert names == sorted(names) and len(set(names)) == 2 and len(names) == 6
  assert re.search(r'2\.mp4: 77 frames.*; 3 windows$', printed.err, re.M)


def test_the_pace_is_told_beside_that_of_the_source(capsys, monkeypatch):
  clock = iter([0.0, 100.0, 102.0])  # The first window waits for a compiler.
  monkeypatch.setattr(streaming.time, 'monotonic', lambda: next(clock))
  reader = frame_reader.FrameReader(
    frame_reader.Input('a.mp4', 'file:a.mp4', frame_reader.Kind.FILE)
  )
  reader.fps = 25.0
  pace = streaming._Pace(reader)
  reader.num_frames = 50
  pace.count()
  pace.count()
  reader.num_frames, reader.num_damaged = 250, 3
  pace.say(7)
  assert capsys.readouterr().err == (
    'a.mp4: 250 frames, 100 per second, 4.0 x their rate; 2 windows; 7 more '
    'came while the network was busy; 3 packets were damaged\n'
  )


def test_folders_are_their_videos_without_a_stream_too(
  folder, tmp_path, capsys
):
  shutil.copy(folder / 'a.mp4', tmp_path / 'a.mp4')
  code, printed = run(capsys, folder, tmp_path, '--format=json')
  assert code == 0, printed.err
  assert [r['file'] for r in json.loads(printed.out)] == [
    str(tmp_path / 'a.mp4')
  ]


def test_smoothing_is_of_the_probabilities(folder, long_video, capsys):
  found = {}
  for flags in ((), ('--ema_alpha=0.5',), ('--moving_average=2',)):
    code, printed = run(
      *(capsys, folder, long_video, '--every_s=1', '--format=jsonl'),
      *('--top=7', *flags),
    )
    assert code == 0, printed.err
    found[flags] = np.array(
      [
        [p['probability'] for p in sorted(ps, key=lambda p: p['class'])]
        for ps in (line['predictions'] for line in lines_of(printed.out))
      ]
    )
  plain, ema, mean = found.values()
  np.testing.assert_allclose(ema[1], (plain[0] + plain[1]) / 2, atol=1e-6)
  np.testing.assert_allclose(ema[2], (ema[1] + plain[2]) / 2, atol=1e-6)
  np.testing.assert_allclose(mean[2], (plain[1] + plain[2]) / 2, atol=1e-6)


SOURCE = 'testsrc=size=64x48:rate=25'  # Has no end.
LAVFI = ('--input_format=lavfi', '--every_s=1', '--top=1')


def test_what_a_camera_loses_is_counted(folder, capsys):
  code, printed = run(
    capsys, folder, f'{SOURCE}:duration=100', *LAVFI, '--format=jsonl'
  )
  assert code == 0, printed.err
  found = re.search(
    r'2500 frames.*; (\d+) windows; (\d+) more came while the network',
    printed.err,
  )
  labels = lines_of(printed.out)
  assert int(found[1]) == len(labels)
  assert int(found[1]) + int(found[2]) == 100 and int(found[2]) > 0
  starts = [line['start_s'] for line in labels]
  assert starts == sorted(set(starts))


@pytest.mark.parametrize('form', ['jsonl', 'srt'])
def test_after_ctrl_c_the_file_is_complete(
  folder, tmp_path, capfd, monkeypatch, form
):
  text, written = label_writers.WRITERS[form]._text, []

  def interrupt(self, label):
    written.append(label)
    if len(written) == 3:
      os.kill(os.getpid(), signal.SIGINT)
    return text(self, label)

  monkeypatch.setattr(label_writers.WRITERS[form], '_text', interrupt)
  path = tmp_path / 'labels'
  with pytest.raises(SystemExit) as ended:
    run(
      *(capfd, folder, SOURCE, *LAVFI, '--nolive', f'--format={form}'),
      f'--output={path}',
    )
  assert ended.value.code == 130
  assert 'Ctrl-C: the process will end after the window at hand' in (
    capfd.readouterr().err
  )
  content = path.read_text()
  assert len(written) >= 3
  if form == 'jsonl':
    assert len(lines_of(content)) == len(written)
  else:
    assert content.count(' --> ') == len(written)
    assert content.endswith(' %\n\n')


def test_a_reader_that_has_seen_enough_ends_the_command(folder, monkeypatch):
  end, start = os.pipe()
  with os.fdopen(start, 'w') as stdout:
    monkeypatch.setattr(sys, 'stdout', stdout)
    os.close(end)
    code = cli.run(
      command.main,
      predict.define_flags,
      ['predict', f'--workdir={folder}/out', SOURCE, *LAVFI, '--nolive'],
      arguments='VIDEO',
      find_config=predict.find_config,
    )
  assert code == 0


def test_sources_that_cannot_be_used_are_named_and_the_others_labelled(
  folder, long_video, capsys
):
  bad = [folder / name for name in ('text.mp4', 'missing.mp4')]
  code, printed = run(capsys, folder, bad[0], long_video, bad[1], '--every_s=1')
  assert code == 1
  assert printed.out.splitlines()[0] == str(long_video)
  assert len(printed.out.splitlines()) == 4
  last = printed.err.splitlines()[-1]
  assert last.startswith('error: 2 of 3 sources could not be used')
  assert all(str(path) in last for path in bad)
  code, printed = run(capsys, folder, *bad, '--every_s=1')
  assert code == 2 and printed.err.count('\n') == 1
  assert 'none of the sources can be used' in printed.err
  assert 'No such file' in printed.err


@pytest.mark.parametrize(
  'argv,words',
  [
    (['-'], '-: a stream is labelled piece by piece; give --every_s'),
    (['rtsp://host/x'], 'give --every_s'),
    (['rtsp://me:secret@host/x'], 'rtsp://me:***@host/x: a stream is'),
    (['a.mp4', '--output=x'], '--output is for labels along a stream'),
    (['a.mp4', '--ema_alpha=1'], '--ema_alpha is for labels along a stream'),
    (['a.mp4', '--format=srt'], '--format=srt is for labels along a stream'),
    (['a.mp4', '--every_s=1', '--every_frames=9'], 'not both'),
    (
      ['a.mp4', '--every_s=1', '--ema_alpha=0.5', '--moving_average=2'],
      'give --ema_alpha or --moving_average, not both',
    ),
    (['a.mp4', '--every_s=0'], 'every_s'),
    (['a.mp4', '--every_s=nan'], 'every_s'),
    (['a.mp4', '--every_frames=0'], 'every_frames'),
    (['a.mp4', '--every_s=1', '--ema_alpha=1.5'], 'ema_alpha'),
    (['a.mp4', '--every_s=1', '--moving_average=0'], 'moving_average'),
    (['a.mp4', '--every_s=1', '--format=json'], 'text, jsonl, csv, srt, vtt'),
    (['a.mp4', '--every_s=1', '--heatmap=x'], '--heatmap explains files'),
    (['a.mp4', '--every_s=1', '--window_s=0.1'], 'shorter than a clip'),
    (['a.mp4', 'b.mp4', '--every_s=1', '--format=srt'], '--output=FOLDER/'),
    (['a.mp4', '--every_s=1', '--output=a.mp4'], 'is a video that is to be'),
    (['a.mp4', '--every_s=1', '--output=no/where.csv'], 'is not a folder'),
    (['-', '-', '--every_s=1'], "'-' is given twice"),
    (['a.mp4', '--every_s=1', '--input_options=rate'], "'rate' has no value"),
    (['empty', '--every_s=1'], 'there is no video file in the folder'),
    (['empty'], 'there is no video file in the folder'),
  ],
)
def test_bad_flags_end_in_one_line_and_code_2(
  folder, capsys, monkeypatch, argv, words
):
  (folder / 'empty').mkdir(exist_ok=True)
  monkeypatch.chdir(folder)
  before = (folder / 'a.mp4').read_bytes()
  code, printed = run(capsys, folder, *argv)
  assert code == 2, printed
  assert printed.err.startswith('error: ') and printed.err.count('\n') == 1
  assert words in printed.err
  assert (folder / 'a.mp4').read_bytes() == before


def test_a_source_that_has_no_such_windows_does_not_end_the_others(
  folder, long_video, tmp_path, capsys
):
  slow = tmp_path / 'slow.mp4'
  slow.write_bytes(odd_videos.encode(range(30), rate=5))
  # Where clips are of so many frames, whatever the rate.
  code, printed = run(
    *(capsys, folder, slow, long_video, '--every_s=1', '--window_s=2'),
    *('--format=jsonl', '--config.data.target_fps=0', '--allow_config_change'),
  )
  assert code == 1, printed.err
  assert {line['file'] for line in lines_of(printed.out)} == {str(long_video)}
  assert f'{slow}: --window_s=2 is shorter than a clip' in printed.err


def test_networks_of_segments_need_the_length_of_a_window(
  folder, long_video, capsys
):
  argv = (
    *(capsys, folder, long_video, '--every_s=1', '--allow_config_change'),
    '--config.data.sampling=segments',
  )
  code, printed = run(*argv)
  assert code == 2
  assert 'give --window_s, the seconds of a window' in printed.err
  code, printed = run(*argv, '--window_s=1.2', '--format=jsonl')
  assert code == 0, printed.err
  assert [line['end_s'] for line in lines_of(printed.out)] == [1.2, 2.2, 3.08]


def test_inputs_are_what_they_look_like(tmp_path):
  os.mkfifo(tmp_path / 'fifo')
  (tmp_path / '12:30.mp4').touch()
  found = inputs.inputs_of(
    ['-', 'rtsp://me:secret@host:554/1', str(tmp_path / 'fifo'), '/dev/null'],
    None,
    'framerate=15,video_size=640x480',
  )
  assert [(i.kind.value, i.format) for i in found] == [
    ('pipe', None),
    ('address', None),
    ('pipe', None),
    ('device', 'v4l2'),
  ]
  assert found[1].name == 'rtsp://me:***@host:554/1'
  assert found[1].url == 'rtsp://me:secret@host:554/1'
  (found_at,) = inputs.inputs_of(['rtsp://me:p@ss:w@host/a@b'], None, None)
  assert found_at.name == 'rtsp://me:***@host/a@b'
  assert found[0].options == {'framerate': '15', 'video_size': '640x480'}
  (found,) = inputs.inputs_of([str(tmp_path)], None, None)
  assert found.url == f'file:{tmp_path}/12:30.mp4'
  (found,) = inputs.inputs_of(['0'], 'avfoundation', None)
  assert (found.url, found.kind.value) == ('0', 'device')


def test_standard_input_is_labelled_as_a_file_is(folder, tmp_path, capsys):
  path = tmp_path / 'long.ts'
  path.write_bytes(odd_videos.encode(range(77), format='mpegts'))
  arguments = ('--every_frames=9', '--format=jsonl')
  code, of_file = run(capsys, folder, path, *arguments)
  assert code == 0, of_file.err
  stdin = os.dup(0)
  try:
    with path.open('rb') as file:
      os.dup2(file.fileno(), 0)
      code, piped = run(capsys, folder, '-', *arguments)
  finally:
    os.dup2(stdin, 0)
    os.close(stdin)
  assert code == 0, piped.err
  labels = lambda printed: [
    {k: v for k, v in line.items() if k != 'file'}
    for line in lines_of(printed.out)
  ]
  assert len(labels(piped)) > 3 and labels(piped) == labels(of_file)
