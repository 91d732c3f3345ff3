"""Scores view by view, lost views, ensembles; an evaluation that goes on."""

import json

import jax
import numpy as np
import pytest

from mgjax import models
from mgjax.cli import RunError
from mgjax.data.eval_stream import EvalStream
from mgjax.evaluation import results, scoring
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.setup import data as data_setup
from mgjax.setup import evaluation, network
from mgjax.step import train_state
from mgjax.step.train_state import TrainState
from tests import speck
from tests.data.fake_sources import Acted, Damaged, Few

# Views and ensembles, with a program in the place of a network.


NO_STATE = TrainState(step=0, params={}, batch_stats={}, opt_state=(), ema={})


def first_pixels(unused_params, unused_stats, video):
  """Scores of 16 classes from the corner pixel: differ from view to view."""
  start = np.asarray(video)[:, 0, 0, 0, 0, None].astype(float)
  return jax.device_put(
    np.abs(np.sin(start + np.arange(16))).astype(np.float32), video.sharding
  )


@pytest.fixture
def views(tiny_config):
  tiny_config.eval.update({'num_views': 3, 'num_crops': 3, 'batch_size': 4})
  source = Few(data_setup.source(tiny_config, 'validation'), 5)
  source.manifest_sha256 = 'abc'
  return tiny_config, source


def run(config, source, **kwargs):
  eval_stream = data_setup.eval_stream(config, source)
  mesh = parallel.make_mesh()
  return results.evaluate(
    first_pixels,
    NO_STATE,
    eval_stream,
    mesh,
    ensemble=config.eval.ensemble,
    **kwargs,
  )


@pytest.mark.parametrize('ensemble', ['sum', 'max'])
def test_ensembles_equal_numpy(views, ensemble):
  config, source = views
  eval_stream = data_setup.eval_stream(config, source, batch_size=4)
  got = scoring.score(
    first_pixels, NO_STATE, eval_stream, parallel.make_mesh(), ensemble=ensemble
  )
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
  source = Few(data_setup.source(config, 'validation'), 5)
  eval_stream = data_setup.eval_stream(config, source, batch_size=4)
  model = network.model(config)
  state = train_state.create_state(
    model,
    network.optimizer(config),
    jax.random.key(0),
    models.example_video(model, config.data.num_frames),
  )
  found = []
  for num_devices in (1, jax.device_count()):
    mesh = parallel.make_mesh(num_devices)
    on_mesh = jax.device_put(state, parallel.replicated(mesh))
    program = evaluation.lower_eval_step(config, model, mesh, on_mesh).compile()
    found.append(
      scoring.score(program, on_mesh, eval_stream, mesh, ensemble='sum')
    )
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


def test_a_result_has_a_bit_for_each_video(views, monkeypatch):
  config, source = views
  scored = scoring.Scores(
    scores=np.eye(16)[[3, 5, 0, 7, 1]],
    views=np.array([9, 9, 0, 9, 9]),
    lost=np.array([0, 0, 9, 0, 0]),
    labels=np.array([3, 4, 0, 7, 1]),
    failures={source[2].id: 'not a video'},
  )
  monkeypatch.setattr(scoring, 'score', lambda *args, **kwargs: scored)
  result = run(config, source)
  assert result['correct'] == '98'  # 10011, and three bits that fill the byte.
  correct = results.correct_videos(result)
  assert correct.tolist() == [True, False, False, True, True]
  assert result['top1'] == 100 * correct.sum() / result['num_scored']


def damage_view(monkeypatch, bad_clips):
  """Makes view clip % 3 of video clip // 3 undecodable, for some clips."""
  view = EvalStream._view

  def damaged(self, clip):
    result = view(self, clip)
    if clip in bad_clips:
      result['error'] = f'cut off at {clip % 3}'
    return result

  monkeypatch.setattr(EvalStream, '_view', damaged)


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
  words = results.describe(result)
  assert words.endswith(', 4 of 5 videos scored, 15 views lost')
  assert results.lost_views(result)[0] == (
    f'  {source[1].id}: 6 of 9 views lost: cut off at 0'
  )
  results.write(tmp_path, result)
  assert json.loads((tmp_path / 'eval.json').read_text()) == result


def test_long_lists_of_losses_are_cut_short(views, monkeypatch):
  config, source = views
  damage_view(monkeypatch, {0, 3, 6, 9, 12})
  monkeypatch.setattr(results, '_MAX_LOST', 3)
  monkeypatch.setattr(results, '_MAX_LOST_PRINTED', 2)
  result = run(config, source)
  assert result['num_lossy_videos'] == 5 and len(result['lost']) == 3
  lines = results.lost_views(result)
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

  eval_stream = data_setup.eval_stream(
    config, Damaged(source, {2}), batch_size=4
  )
  mesh = parallel.make_mesh()
  got = scoring.score(
    first_pixels, NO_STATE, eval_stream, mesh, ensemble='sum', peers=Pair()
  )
  assert set(got.failures) == {source[2].id, 'other'}


def test_no_file_gets_a_number_that_is_none(tmp_path):
  with pytest.raises(ValueError, match='JSON'):
    results.write(tmp_path, {'top1': float('nan')})
  assert not list(tmp_path.iterdir())


def test_a_view_that_is_scored_twice_is_an_error(views, monkeypatch):
  once = EvalStream.batch
  monkeypatch.setattr(
    EvalStream, 'batch', lambda self, i: once(self, max(i, 2))
  )
  with pytest.raises(RuntimeError, match='videos were not scored 9 times'):
    run(*views)


def test_videos_with_actions_get_average_precision(views):
  config, source = views
  config.optim.loss = 'sigmoid'
  result = run(config, Acted(source))
  assert 0 < result['map'] <= 100
  assert not {'confusion', 'correct'} & result.keys()
  words = results.describe(result)
  assert words.startswith('mAP ') and words.endswith(', 5 of 5 videos scored')


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
