"""Predictions for video files: those of an evaluation, file by file."""

import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mgjax import models
from mgjax.cli import ConfigError
from mgjax.data import decode, digits, sampling
from mgjax.predicting import (
  command,
  contact_sheet,
  output,
  video_files,
)
from mgjax.predicting.predictor import Explained, Predictor
from mgjax.run import checkpoint
from mgjax.setup import data as data_setup
from mgjax.setup import network, run_settings
from mgjax.step import train_step
from mgjax.weights import command as transfer
from tests.data import odd_videos
from tests.predicting.tiny import run
from tests.weights import test_import_weights as weights


def test_probabilities_are_the_mean_over_the_views(folder, capsys):
  code, printed = run(
    capsys, folder, folder / 'a.mp4', '--format=json', '--top=7'
  )
  assert code == 0, printed.err
  (result,) = json.loads(printed.out)
  assert result['file'] == str(folder / 'a.mp4')
  got = {p['class']: p['probability'] for p in result['predictions']}
  # The same by hand: two clips of 4 frames, 8 apart at 30 frames a second,
  # the first from the start, the second from the middle of what is left.
  config = weights.small_config()
  model = network.model(config)
  variables = jax.tree.map(
    jnp.asarray,
    checkpoint.load_variables(
      folder / 'out' / 'checkpoints' / '0', weights.shapes_of(config)
    ),
  )
  apply = jax.jit(
    model.apply, compiler_options={'xla_backend_optimization_level': 0}
  )
  fps = digits.FPS
  with decode.Video((folder / 'a.mp4').read_bytes()) as video:
    span = 4 * 8 / 30 * fps
    scores = []
    for view in range(2):
      first = max(video.num_frames - span, 0) * view / 2
      positions = np.linspace(first, first + span - 1, 4)
      frames = np.floor(positions.clip(0, video.num_frames - 1)).astype(int)
      pixels = video.frames(frames, 32, 42)[:, :, 5:37]
      clip = train_step.normalize(
        jnp.asarray(pixels)[None], (0.45,) * 3, (0.225,) * 3
      )
      scores.append(jax.nn.softmax(apply(variables, clip))[0])
  want = np.mean(scores, 0)
  np.testing.assert_allclose([got[k] for k in range(7)], want, atol=1e-5)
  assert [p['class'] for p in result['predictions']] == list(
    np.argsort(-want, kind='stable')
  )


@pytest.mark.parametrize(
  'how',
  [
    {'format': 'avi', 'bf': 3, 'g': 12},
    {'format': 'flv', 'rate': 3000, 'g': 12},
    {'format': 'avi', 'codec': 'h263p', 'g': 10, 'b': 2_000_000},
    {'format': 'mp4', 'bf': 3, 'g': 12},
  ],
  ids=['reordered', 'same times', 'wrong key frames', 'plain'],
)
def test_clips_of_odd_files_have_the_frames_that_a_player_shows(how, tmp_path):
  path = tmp_path / 'video'
  path.write_bytes(odd_videos.encode(range(64), **how))
  config = weights.small_config()
  config.data.num_frames, config.data.stride_frames = 8, 8
  config.data.target_fps = how.get('rate', 25)
  config.eval.num_views = config.eval.num_crops = 1
  config.eval.crop_px = config.eval.short_side_px = odd_videos.HEIGHT
  config.eval.crop_width_px = odd_videos.WIDTH
  looked = video_files.look_at([path])
  assert not looked.errors
  files = video_files.VideoFiles([path], looked.in_order, 7)
  eval_stream = data_setup.eval_stream(config, files, batch_size=1)
  (clip,) = eval_stream.batch(0)['video']
  wanted = sampling.view_frames(
    64,
    decode.Video(path.read_bytes()).fps,
    num_frames=8,
    stride_frames=8,
    sampling=config.data.sampling,
    target_fps=config.data.target_fps,
    view=0,
    num_views=1,
  )
  assert [odd_videos.read(frame) for frame in clip] == list(wanted)


def test_every_file_is_scored_by_itself_and_printed_in_order(folder, capsys):
  files = [folder / 'b.mp4', folder / 'a.mp4', folder / 'b.mp4']
  code, printed = run(capsys, folder, *files, '--top=2')
  assert code == 0, printed.err
  lines = printed.out.splitlines()
  assert lines[::3] == [str(f) for f in files]
  assert lines[:3] == lines[6:]
  assert lines[1] != lines[4]
  assert all('%  class ' in line for line in lines if not line.endswith('mp4'))
  code, alone = run(capsys, folder, folder / 'a.mp4', '--top=2')
  assert alone.out.splitlines() == lines[3:6]


def test_one_checkpoint_can_be_named(folder, capsys):
  code, printed = run(
    capsys,
    folder,
    folder / 'a.mp4',
    '--config.eval.num_views=1',
    workdir='--checkpoint={}/out/checkpoints/0',
  )
  assert code == 0, printed.err
  assert len(printed.out.splitlines()) == 6


def test_files_that_cannot_be_used_are_named_and_the_others_printed(
  folder, capsys
):
  bad = [folder / n for n in ('text.mp4', 'missing.mp4', 'damaged.mp4')]
  code, printed = run(
    capsys, folder, bad[0], folder / 'a.mp4', *bad[1:], '--format=json'
  )
  assert code == 1
  results = json.loads(printed.out)
  assert ['error' in r for r in results] == [True, False, True, True]
  assert 'No such file' in results[2]['error']
  assert printed.err.startswith('error: 3 of 4 files could not be used: ')
  assert printed.err.count('\n') == 1
  for file in bad:
    assert str(file) in printed.err


@pytest.mark.parametrize('name', ['text.mp4', 'missing.mp4', 'damaged.mp4'])
def test_no_usable_file_at_all_is_code_2(folder, capsys, name):
  code, printed = run(capsys, folder, folder / name)
  assert code == 2
  assert 'none of the files can be used' in printed.err
  assert name in printed.err and printed.err.count('\n') == 1


def test_bad_flags_end_in_one_line_and_code_2(folder, tmp_path, capsys):
  video = folder / 'a.mp4'
  for argv, workdir, words in (
    ([], '--workdir={}/out', 'no video'),
    ([video], '--workdir={}/nowhere', 'is not a folder'),
    ([video], f'--workdir={tmp_path}', 'config.json'),
    ([video], '--top=3', 'give --workdir'),
    ([video], '--top=0', 'top'),
    ([video, '--config.model.width=16'], '--workdir={}/out', 'model.width'),
    ([video, '--config.eval.views=3'], '--workdir={}/out', 'no such field'),
    ([video, '--features=f.csv'], '--workdir={}/out', '.npz'),
    ([video, f'--sheet={video}'], '--workdir={}/out', '--sheet='),
    (
      [video, f'--sheet={tmp_path}/p', f'--heatmap={tmp_path}/./p'],
      *('--workdir={}/out', '--sheet and --heatmap are one folder'),
    ),
  ):
    code, printed = run(capsys, folder, *argv, workdir=workdir)
    assert code == 2, argv
    assert printed.err.startswith('error: ') and printed.err.count('\n') == 1
    assert words in printed.err


def test_pooled_features_and_heat_explain_the_prediction(folder, capsys):
  code, printed = run(
    capsys,
    folder,
    *(folder / 'a.mp4', folder / 'text.mp4', folder / 'b.mp4'),
    '--format=json',
    '--top=7',
    '--config.eval.num_views=1',
    f'--features={folder}/f.npz',
    f'--sheet={folder}/sheets',
    f'--heatmap={folder}/heat',
  )
  assert code == 1  # text.mp4
  results = [r for r in json.loads(printed.out) if 'predictions' in r]
  saved = np.load(folder / 'f.npz')
  assert list(saved['files']) == [str(folder / n) for n in ('a.mp4', 'b.mp4')]
  config = weights.small_config()
  variables = checkpoint.load_variables(
    folder / 'out' / 'checkpoints' / '0', weights.shapes_of(config)
  )
  classifier = variables['params'][models.HEAD]['classifier']
  logits = saved['features'] @ classifier['kernel'] + classifier['bias']
  want = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(saved['scores'], want, atol=1e-5)
  for result, row in zip(results, want, strict=True):
    for p in result['predictions']:
      assert p['probability'] == pytest.approx(row[p['class']], abs=1e-5)
  for place in ('sheets', 'heat'):
    for name in ('a', 'b'):
      picture = cv2.imread(str(folder / place / f'{name}.png'))
      # Four frames of 128 pixels with their frames, and the labels.
      assert picture.shape[1] == 4 * 130 + 340
  sheet, heat = (
    cv2.imread(str(folder / place / 'a.png')) for place in ('sheets', 'heat')
  )
  assert (sheet != heat).any()


def test_pictures_of_files_with_one_name_are_numbered(tmp_path):
  files = ['x/a.mp4', 'a-2.mp4', 'y/a.mp4', 'z/a.mp4']

  class Explains(Predictor):
    def __init__(self): ...

    def explain(self, labels):
      for file in labels:
        clip = np.zeros((2, 8, 8, 3), np.uint8)
        yield Explained(file, clip, np.zeros(3), np.zeros((1, 2, 2)))

  predictions = [{'label': 'walk', 'class': 0, 'probability': 1.0}]
  results = [
    {'file': f, 'scores': np.ones(1), 'predictions': predictions} for f in files
  ]
  output.write_explained(
    Explains(), results, sheets=tmp_path, heatmaps=None, npz=None
  )
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {'a.png', 'a-2.png', 'a-3.png', 'a-4.png'}


ODD_NAMES = [
  r'$\frac{$',
  '$a_{b^c$',
  'two\nlines',
  '\udcff\udcfe not UTF-8',  # Bytes that are none.
  '東京 🎥',
  246 * 'x',
]


@pytest.mark.parametrize('name', ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_names_may_have_any_characters(folder, tmp_path, capsys, name):
  video = tmp_path / f'{name}.mp4'
  video.write_bytes((folder / 'a.mp4').read_bytes())
  labels = tmp_path / 'labels.txt'
  labels.write_text('\n'.join(f'$_{{ {k} 東' for k in range(7)), 'utf-8')
  sheets, npz = tmp_path / 'sheets', tmp_path / 'f.npz'
  code, printed = run(
    capsys,
    folder,
    video,
    f'--labels={labels}',
    f'--sheet={sheets}',
    f'--features={npz}',
  )
  assert code == 0, printed.err
  assert printed.err == ''
  # The name, in one line, and five labels.
  assert len(printed.out.splitlines()) == 6
  assert '$_{ ' in printed.out
  (picture,) = sheets.iterdir()
  assert cv2.imdecode(np.fromfile(picture, np.uint8), 1).std() > 1
  with np.load(npz) as file:
    assert file['files'].tolist() == [str(video)]


def test_predictions_are_printed_whatever_becomes_of_pictures(
  folder, tmp_path, capsys, monkeypatch
):
  videos = [folder / 'a.mp4', folder / 'b.mp4', folder / 'text.mp4']
  draw = contact_sheet.draw

  def draw_or_fail(path, *args):
    if path.stem == 'a':
      raise OSError(28, 'No space left on device')
    draw(path, *args)

  monkeypatch.setattr(contact_sheet, 'draw', draw_or_fail)
  sheets = tmp_path / 'sheets'
  code, printed = run(
    capsys, folder, *videos, f'--sheet={sheets}', '--format=json'
  )
  assert code == 1
  results = json.loads(printed.out)
  assert [len(r.get('predictions', ())) for r in results] == [5, 5, 0]
  assert printed.err.count('\n') == 1
  assert 'a.png cannot be written: No space left' in printed.err
  assert 'text.mp4' in printed.err
  # The others are drawn.
  assert [p.name for p in sheets.iterdir()] == ['b.png']


def test_labels_are_those_of_the_data_set(tiny_config, tmp_path):
  source = data_setup.source(tiny_config, 'validation')
  names = command.label_names(tiny_config, tmp_path, None)
  assert names == list(source.label_names)
  tiny_config.model.num_classes = 3  # Of another data set.
  names = command.label_names(tiny_config, tmp_path, None)
  assert names == ['class 0', 'class 1', 'class 2']


def test_labels_of_a_run_need_no_data_set(tiny_config, tmp_path):
  names = [f'“{k}”' for k in range(tiny_config.model.num_classes)]
  run_settings.prepare(tiny_config, epath.Path(tmp_path), names)
  tiny_config.data.dir = str(tmp_path / 'nowhere')
  assert command.label_names(tiny_config, tmp_path, None) == names


def test_labels_can_be_given(folder, tmp_path, capsys):
  names = [f'label {k}' for k in range(7)]
  text, listed = tmp_path / 'labels.txt', tmp_path / 'labels.json'
  text.write_text('\n'.join([*names, '', '']))
  listed.write_text(json.dumps(names))
  for file in (text, listed):
    code, printed = run(
      capsys, folder, folder / 'a.mp4', '--top=7', f'--labels={file}'
    )
    assert code == 0, printed.err
    got = [line.split('%  ')[1] for line in printed.out.splitlines()[1:]]
    assert sorted(got) == names


@pytest.mark.parametrize(
  'name,content,words',
  [
    ('f.txt', 'a\nb\n', '2 names, but the network 7 classes'),
    ('f.json', '["a"]', '1 names, but the network 7 classes'),
    ('f.json', '{"a": 0}', 'must be a list'),
    ('f.json', '[1, 2]', 'no list of names'),
    ('f.json', '["a"', 'is not JSON'),
    ('f.txt', None, 'No such file'),
  ],
)
def test_labels_that_do_not_fit_are_refused(
  folder, tmp_path, capsys, name, content, words
):
  file = tmp_path / name
  if content is not None:
    file.write_text(content)
  code, printed = run(capsys, folder, folder / 'a.mp4', f'--labels={file}')
  assert code == 2 and printed.err.count('\n') == 1
  assert str(file) in printed.err and words in printed.err


def test_imported_weights_are_no_folder_for_a_run(folder):
  with pytest.raises(ConfigError, match='holds checkpoints already'):
    transfer.import_file(
      weights.small_config(),
      folder / 'x.pyth',
      folder / 'out',
      inflate='repeat',
    )
