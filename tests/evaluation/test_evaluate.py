"""Accuracy by hand, mAP against scikit-learn, the heads, the resumption."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from mgjax import models
from mgjax.cli import ConfigError, RunError
from mgjax.config import fields
from mgjax.data import sources, stream
from mgjax.data.description import Description
from mgjax.evaluation import eval_picture, scoring
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.setup import network, run_checks
from mgjax.step import optim, train_step
from tests import speck
from tests.data.test_stream import Acted, Damaged, Few

NAMES = ('a', 'b', 'c')


def test_accuracy_by_hand():
  scores = np.array([[3.0, 2, 1], [3, 2, 1], [1, 2, 3], [1, 3, 2]])
  labels = np.array([0, 1, 2, 0])
  result = scoring.accuracy(scores, labels, NAMES)
  assert result['top1'] == 50.0
  assert result['top5'] == 100.0
  assert result['per_class'] == {'a': 50.0, 'b': 0.0, 'c': 100.0}
  assert result['confusion'] == [[1, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_the_mean_over_classes_counts_every_class_alike():
  scores = np.eye(3)[[0, 0, 0, 0, 2]]
  result = scoring.accuracy(scores, np.array([0, 0, 0, 1, 1]), NAMES)
  assert result['top1'] == 60.0
  assert result['mean_class'] == 50.0  # 'c' has no videos.


@pytest.mark.parametrize('value', [0.0, np.nan])
def test_constant_scores_are_worth_nothing(value):
  scores = np.full((4, 3), value)
  result = scoring.accuracy(scores, np.zeros(4, int), NAMES)
  assert result['top1'] == 0.0
  result = scoring.multi_label_accuracy(scores, np.eye(3)[[0, 1, 2, 0]], NAMES)
  assert result['top1'] == 0.0


def test_top5_is_not_top1():
  scores = np.tile(np.arange(10.0), (10, 1))
  result = scoring.accuracy(scores, np.arange(10), tuple('abcdefghij'))
  assert (result['top1'], result['top5']) == (10.0, 50.0)


def test_a_class_without_videos_has_no_accuracy():
  result = scoring.accuracy(np.eye(3)[:1], np.array([0]), NAMES)
  assert result['per_class'] == {'a': 100.0, 'b': None, 'c': None}


# Any number of labels.


@pytest.mark.parametrize('num_values', [3, 1000])
def test_average_precision_is_that_of_scikit_learn(num_values):
  """Also where many scores are equal."""
  rng = np.random.default_rng(num_values)
  for share in (0.02, 0.5, 1.0):
    scores = rng.integers(0, num_values, 200) / num_values
    labels = rng.random(200) < share
    labels[7] = True
    got = scoring.average_precision(scores, labels)
    want = sklearn_metrics.average_precision_score(labels, scores)
    assert got == pytest.approx(want, abs=1e-12)


def test_map_leaves_out_classes_without_videos():
  rng = np.random.default_rng(0)
  scores, labels = rng.random((30, 3)), rng.random((30, 3)) < 0.3
  labels[:, 1] = False
  result = scoring.multi_label_accuracy(scores, labels.astype('f4'), NAMES)
  want = 100 * sklearn_metrics.average_precision_score(
    labels[:, [0, 2]], scores[:, [0, 2]], average='macro'
  )
  assert result['map'] == pytest.approx(want)
  assert result['per_class']['b'] is None


def test_top1_of_several_labels_by_hand():
  scores = np.array([[3.0, 2, 1], [3, 2, 1], [1, 1, 1], [3, 2, 1]])
  labels = np.array([[1.0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
  result = scoring.multi_label_accuracy(scores, labels, NAMES)
  # A video with no label counts as missed at 1 and, of 3 classes, found at 5.
  assert result['top1'] == 25.0


def test_smoothing_is_refused_with_the_sigmoid_loss(tiny_config):
  tiny_config.optim.update({'loss': 'sigmoid', 'label_smoothing': 0.1})
  with pytest.raises(ConfigError, match='optim.label_smoothing=0.1'):
    run_checks.check(tiny_config, None, 1)


def test_without_any_label_there_is_no_map():
  result = scoring.multi_label_accuracy(np.eye(3), np.zeros((3, 3)), NAMES)
  assert 'map' not in result and result['top1'] == 0.0


# Views and ensembles, with a program in the place of a network.


NO_STATE = train_step.TrainState(
  step=0, params={}, batch_stats={}, opt_state=(), ema={}
)


def first_pixels(unused_params, unused_stats, video):
  """Scores of 16 classes from the corner pixel: differ from view to view."""
  start = np.asarray(video)[:, 0, 0, 0, 0, None].astype(float)
  return jax.device_put(
    np.abs(np.sin(start + np.arange(16))).astype(np.float32), video.sharding
  )


@pytest.fixture
def views(tiny_config):
  tiny_config.eval.update({'num_views': 3, 'num_crops': 3, 'batch_size': 4})
  source = Few(sources.open_source(tiny_config, 'validation'), 5)
  source.manifest_sha256 = 'abc'
  return tiny_config, source


def run(config, source, **kwargs):
  eval_stream = stream.EvalStream(config, source, config.eval.batch_size)
  mesh = parallel.make_mesh()
  return scoring.evaluate(first_pixels, NO_STATE, eval_stream, mesh, **kwargs)


@pytest.mark.parametrize('ensemble', ['sum', 'max'])
def test_ensembles_equal_numpy(views, ensemble):
  config, source = views
  config.eval.ensemble = ensemble
  eval_stream = stream.EvalStream(config, source, 4)
  got = scoring.score(first_pixels, NO_STATE, eval_stream, parallel.make_mesh())
  all_views = np.concatenate([b['video'] for b in eval_stream.batches()])[:45]
  start = all_views[:, 0, 0, 0, 0, None].astype(float)
  scores = np.abs(np.sin(start + np.arange(16))).reshape(5, 9, 16)
  want = scores.max(1) if ensemble == 'max' else scores.mean(1)
  np.testing.assert_allclose(got.scores, want, rtol=1e-6)
  assert (got.views == 9).all()
  assert scores.std(1).max() > 0.1  # Views do differ.


def test_scores_are_the_same_on_any_number_of_devices(data_dir):
  config = speck.get_config()
  config.data.dir = str(data_dir)
  config.eval.update({'num_views': 2, 'batch_size': 4})
  source = Few(sources.open_source(config, 'validation'), 5)
  eval_stream = stream.EvalStream(config, source, 4)
  model = network.model(config)
  state = train_step.create_state(
    model,
    optim.make_optimizer(config.optim),
    jax.random.key(0),
    models.example_video(config.data.num_frames),
  )
  found = []
  for num_devices in (1, jax.device_count()):
    mesh = parallel.make_mesh(num_devices)
    on_mesh = jax.device_put(state, parallel.replicated(mesh))
    program = scoring.lower_eval_step(config, model, mesh, on_mesh).compile()
    found.append(scoring.score(program, on_mesh, eval_stream, mesh))
  one, all_devices = found
  assert jax.device_count() > 1
  assert (one.views == 2).all() and (all_devices.views == 2).all()
  assert np.ptp(one.scores, axis=1).min() > 1e-3
  # float32; the batches of a device differ in size.
  np.testing.assert_allclose(all_devices.scores, one.scores, rtol=1e-5)


def test_a_result_names_the_manifest_and_counts_every_video(views):
  result = run(*views)
  assert result['manifest_sha256'] == 'abc'
  assert result['num_scored'] == result['num_videos'] == 5
  assert result['num_views'] == 9 and result['failed'] == []


def test_a_video_that_cannot_be_decoded_is_counted_and_named(views):
  config, source = views
  damaged = Damaged(source, {2})
  damaged.manifest_sha256 = None
  result = run(config, damaged)
  assert result['failed'] == [source[2].id]
  assert (result['num_scored'], result['num_videos']) == (4, 5)
  assert 'manifest_sha256' not in result


def damage_view(monkeypatch, bad_clips):
  """Makes view clip % 3 of video clip // 3 undecodable, for some clips."""
  view = stream.EvalStream._view

  def damaged(self, clip):
    result = view(self, clip)
    if clip in bad_clips:
      result['error'] = f'cut off at {clip % 3}'
    return result

  monkeypatch.setattr(stream.EvalStream, '_view', damaged)


def test_lost_views_are_counted_and_told_with_the_reason(
  views, monkeypatch, tmp_path
):
  config, source = views
  damage_view(monkeypatch, {3, 5, 12, 13, 14})
  result = run(config, source)
  assert result['failed'] == [source[4].id] and result['num_scored'] == 4
  assert (result['num_lossy_videos'], result['num_lost_views']) == (2, 15)
  assert result['lost'] == [
    {'id': source[1].id, 'views': 6, 'reason': 'cut off at 0'},
    {'id': source[4].id, 'views': 9, 'reason': 'cut off at 0'},
  ]
  words = scoring.describe(result)
  assert words.endswith(', 4 of 5 videos scored, 15 views lost')
  assert scoring.losses(result)[0] == (
    f'  {source[1].id}: 6 of 9 views lost: cut off at 0'
  )
  scoring.write_result(tmp_path, result)
  assert json.loads((tmp_path / 'eval.json').read_text()) == result


def test_long_lists_of_losses_are_cut_short(views, monkeypatch):
  config, source = views
  damage_view(monkeypatch, {0, 3, 6, 9, 12})
  monkeypatch.setattr(scoring, '_MAX_LOST', 3)
  monkeypatch.setattr(scoring, '_MAX_LOST_PRINTED', 2)
  result = run(config, source)
  assert result['num_lossy_videos'] == 5 and len(result['lost']) == 3
  lines = scoring.losses(result)
  assert len(lines) == 3 and 'views of 3 more videos' in lines[-1]


def test_where_nothing_can_be_decoded_there_is_no_result(views):
  config, source = views
  with pytest.raises(RunError, match='none of the 5 videos.*such as'):
    run(config, Damaged(source, set(range(5))))


def test_losses_of_all_processes_are_told(views):
  config, source = views

  class Pair(Peers):
    """This process, and one that has lost views of another video."""

    def exchange(self, value):
      return [value, [['other', 'not here']]]

  eval_stream = stream.EvalStream(config, Damaged(source, {2}), 4)
  mesh = parallel.make_mesh()
  got = scoring.score(first_pixels, NO_STATE, eval_stream, mesh, peers=Pair())
  assert set(got.failures) == {source[2].id, 'other'}


def test_no_file_gets_a_number_that_is_none(tmp_path):
  with pytest.raises(ValueError, match='JSON'):
    scoring.write_result(tmp_path, {'top1': float('nan')})
  assert not list(tmp_path.iterdir())


def test_a_view_that_is_scored_twice_is_an_error(views, monkeypatch):
  once = stream.EvalStream.batch
  monkeypatch.setattr(
    stream.EvalStream, 'batch', lambda self, i: once(self, max(i, 2))
  )
  with pytest.raises(RuntimeError, match='videos were not scored 9 times'):
    run(*views)


def test_videos_with_actions_get_average_precision(views):
  config, source = views
  config.optim.loss = 'sigmoid'
  result = run(config, Acted(source))
  assert 0 < result['map'] <= 100 and 'confusion' not in result
  words = scoring.describe(result)
  assert words.startswith('mAP ') and words.endswith(', 5 of 5 videos scored')


def test_the_softmax_loss_is_refused_for_videos_with_actions(views):
  config, source = views
  data = Description(
    name='charades',
    splits={'train': 1, config.eval.split: 1},
    num_classes=config.model.num_classes,
    has_actions=True,
  )
  with pytest.raises(ConfigError, match="optim.loss='softmax'.*'sigmoid'"):
    run_checks.check_evaluation(config, data, 1)


class Stop(Exception):
  pass


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(views, tmp_path):
  config, source = views
  partial = lambda key: scoring.Partial(tmp_path, key, 0.0)
  whole = run(config, source)
  done = []

  def stop(number, total):
    done.append(number)
    if number == 5:
      raise Stop

  with pytest.raises(Stop):
    run(config, source, report=stop, partial=partial('a'))
  assert partial('b').load() is None
  number, scores = partial('a').load()
  assert number == 5 and scores.views.sum() == 20
  resumed = run(
    config,
    source,
    report=lambda number, total: done.append(number),
    partial=partial('a'),
  )
  assert done == list(range(1, 13))  # 45 views in batches of 4, each once.
  del whole['seconds'], resumed['seconds']
  assert resumed == whole
  partial('a').remove()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('damage', ['empty', 'cut', 'zeros', 'text', 'flipped'])
def test_a_damaged_partial_file_is_told_and_begun_anew(
  views, tmp_path, capsys, damage
):
  partial = lambda: scoring.Partial(tmp_path, 'a', 0.0)
  whole = run(*views, partial=partial())
  path = tmp_path / 'eval.partial.npz'
  content = path.read_bytes()
  middle = len(content) // 2
  flipped = bytearray(content)
  for i in range(40, len(content), 16):
    flipped[i] ^= 255
  path.write_bytes(
    {
      'empty': b'',
      'cut': content[:middle],
      'zeros': bytes(len(content)),
      'text': b'not a file of arrays',
      'flipped': bytes(flipped),
    }[damage]
  )
  assert partial().load() is None
  assert partial().load() is None
  told = capsys.readouterr().err.strip()
  assert told.count('\n') == 0 and 'the evaluation begins anew' in told
  assert str(path) in told
  again = run(*views, partial=partial())
  del whole['seconds'], again['seconds']
  assert again == whole


def test_the_key_of_an_evaluation_knows_its_views_weights_and_videos(views):
  config, source = views
  source.name, source.split = 'digits', 'validation'
  state = train_step.TrainState(
    step=3, params={'w': np.ones(3)}, batch_stats={}, opt_state=(), ema={}
  )
  key = scoring.partial_key(config, state, source)
  assert key == scoring.partial_key(config, state, source)
  config.data.num_workers += 1
  assert key == scoring.partial_key(config, state, source)
  weights = state.replace(params={'w': np.array([1, 1, 1.5])})
  assert key != scoring.partial_key(config, weights, source)
  config.eval.num_views = 2
  assert key != scoring.partial_key(config, state, source)


def start(workdir, data_dir):
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'mgjax.evaluate', f'--workdir={workdir}'),
      '--config=configs/moving_digits.py:size=tiny',
      f'--config.data.dir={data_dir}',
      '--config.eval.num_views=20',
      '--config.eval.batch_size=2',
      '--config.data.prefetch_batches=1',
      '--config.eval.save_every_s=0.001',
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ,
  )


@pytest.mark.slow
def test_a_killed_evaluation_is_resumed_bit_for_bit(
  tiny_config, data_dir, tmp_path
):
  """640 batches; killed twice on the way."""
  from mgjax.run import checkpoint

  state = train_step.create_state(
    network.model(tiny_config),
    optim.make_optimizer(tiny_config.optim),
    jax.random.key(0),
    models.example_video(tiny_config.data.num_frames),
  )
  results = []
  for name, kills in (('whole', []), ('killed', [40, 300])):
    workdir = tmp_path / name
    workdir.mkdir()
    checkpoints = checkpoint.Checkpoints(workdir, tiny_config.train)
    checkpoints.save(state, 7, {})
    checkpoints.close()
    for after in kills:
      process = start(workdir, data_dir)
      wait_for_batch(process, workdir / 'eval.partial.npz', after)
      process.send_signal(signal.SIGKILL)
      process.communicate()
      assert not (workdir / 'eval.json').exists()
    process = start(workdir, data_dir)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    result = json.loads((workdir / 'eval.json').read_text())
    assert result['num_scored'] == result['num_videos'] == 64
    assert result['num_views'] == 20 and result.pop('seconds') > 0
    results.append(result)
    left = {path.name for path in workdir.iterdir()}
    assert left == {'checkpoints', 'eval.json', 'eval.png'}
  assert results[0] == results[1]


def wait_for_batch(process, path: pathlib.Path, number: int) -> None:
  while process.poll() is None:
    if path.exists():
      with np.load(path) as file:
        if file['num_batches'] >= number:
          return
    time.sleep(0.005)
  raise AssertionError(process.communicate()[1])


# Pictures.


def random_result(num_classes, *, multi_label=False):
  rng = np.random.default_rng(0)
  # Names that are no formulas, and that the font lacks.
  names = tuple(f'$_{{ 東 class number {k}' for k in range(num_classes))
  n = 20 * num_classes
  labels = rng.integers(0, num_classes, n)
  scores = rng.normal(size=(n, num_classes))
  scores[np.arange(n), labels] += rng.normal(3, 1, num_classes)[labels]
  scores[np.arange(n), (labels + 1) % num_classes] += 1.5
  if multi_label:
    vectors = np.eye(num_classes)[labels]
    result = scoring.multi_label_accuracy(scores, vectors, names)
  else:
    result = scoring.accuracy(scores, labels, names)
  return result | {'num_scored': n, 'num_videos': n}


@pytest.mark.parametrize(
  'num_classes,multi_label', [(16, False), (400, False), (157, True)]
)
def test_pictures_are_drawn(tmp_path, num_classes, multi_label):
  result = random_result(num_classes, multi_label=multi_label)
  path = tmp_path / 'eval.png'
  eval_picture.draw(path, result, title=r'run $\frac{$')
  height, width = cv2.imread(str(path)).shape[:2]
  assert (height, width) == (1000, 1700)


# Heads.


def small_config(head):
  config = fields.base()
  config.model.name = 'slow'
  config.model.blocks = (1,)  # One position is 4 x 4 pixels.
  config.model.width = 8
  config.model.num_classes = 3
  config.data.num_frames = 2
  config.data.crop_px = 8
  config.eval.crop_px = 12
  config.eval.head = head
  return config


class ColourClassifier(nn.Module):
  """Its logits are the mean colour, of the clip or of windows of it."""

  dtype: Any = jnp.float32

  def __call__(self, video, pool=None, *, window=None):
    return nn.avg_pool(video, window) if window else video.mean((1, 2, 3))


def test_the_heads_score_as_their_names_say():
  video = np.random.default_rng(0).integers(
    0, 256, (2, 2, 10, 9, 3), dtype=np.uint8
  )
  scores = {}
  for head in ('global', 'fully_conv'):
    step = train_step.make_eval_step(
      ColourClassifier(),
      mean=(0.0, 0.0, 0.0),
      std=(0.01, 0.01, 0.01),  # Windows differ in what they take for likely.
      window=scoring.head_window(small_config(head), ColourClassifier()),
    )
    scores[head] = jax.jit(step)({}, {}, video)

  def softmax(logits):
    exp = np.exp(logits)
    return exp / exp.sum(-1, keepdims=True)

  colours = video / 255 / 0.01
  windows = [  # 8 x 8 pixels.
    colours[:, :, i : i + 8, j : j + 8].mean((1, 2, 3))
    for i in range(3)
    for j in range(2)
  ]
  # float32.
  np.testing.assert_allclose(
    scores['fully_conv'], np.mean([softmax(w) for w in windows], 0), rtol=1e-4
  )
  np.testing.assert_allclose(
    scores['global'], softmax(colours.mean((1, 2, 3))), rtol=1e-4
  )
  assert np.abs(scores['global'] - scores['fully_conv']).max() > 1e-3


def test_a_fully_convolutional_head_on_a_smaller_crop_is_refused():
  config = small_config('fully_conv')
  config.eval.crop_px = 4
  with pytest.raises(ConfigError, match=r'\(4, 4\).*smaller.*\(8, 8\)'):
    scoring.head_window(config, network.model(config))


def test_a_model_without_a_fully_convolutional_head_is_refused():
  with pytest.raises(ConfigError, match="'slow' has no such head"):
    scoring.head_window(small_config('fully_conv'), nn.Dense(3))
