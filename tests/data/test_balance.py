"""Balanced sampling and class weights are functions of labels and numbers."""

import pickle

import numpy as np
import pytest

from mgjax.data import balance, digits
from mgjax.data.order import BalancedOrder
from mgjax.setup import data as data_setup
from mgjax.setup import grids

COUNTS = (40, 12, 6, 2)
LABELS = tuple(k for k, n in enumerate(COUNTS) for _ in range(n))


def shown(order, epochs):
  clips = epochs * order.num_examples * order.clips_per_example
  return np.array([order.example(clip) for clip in range(clips)])


@pytest.mark.parametrize('power', [0.2, 0.5, 1.0])
def test_a_class_has_its_share_of_every_epoch(power):
  order = BalancedOrder(60, seed=1, labels=LABELS, power=power)
  labels = np.array(LABELS)[shown(order, 5)].reshape(5, 60)
  shares = np.array(COUNTS) ** (1 - power)
  for epoch in labels:
    found = np.bincount(epoch, minlength=4)
    assert np.abs(found - 60 * shares / shares.sum()).max() <= 1
  assert len({tuple(epoch) for epoch in labels}) == 5


def test_the_examples_of_a_class_take_turns_from_epoch_to_epoch():
  times = np.bincount(shown(BalancedOrder(60, labels=LABELS), 7), minlength=60)
  for k, count in enumerate(COUNTS):
    of_class = times[np.array(LABELS) == k]
    assert of_class.max() - of_class.min() <= 1
    assert of_class.sum() == 7 * 15 and len(of_class) == count


def test_a_clip_depends_on_its_number_alone():
  order = BalancedOrder(60, seed=3, labels=LABELS)
  whole = shown(order, 4)
  again = pickle.loads(pickle.dumps(order))
  assert [again.example(c) for c in range(239, 100, -1)] == [*whole[239:100:-1]]
  assert (shown(BalancedOrder(60, seed=4, labels=LABELS), 4) != whole).any()


def test_repeated_clips_show_one_example():
  order = BalancedOrder(60, labels=LABELS, clips_per_example=2)
  found = shown(order, 2)
  assert (found[::2] == found[1::2]).all()
  assert (found[::2] == shown(BalancedOrder(60, labels=LABELS), 2)).all()


def test_an_example_of_unknown_class_is_not_shown():
  order = BalancedOrder(60, labels=(-1, *LABELS[1:]))
  assert 0 not in shown(order, 3)
  with pytest.raises(ValueError, match='no example has a class'):
    BalancedOrder(2, labels=(-1, -1))
  with pytest.raises(ValueError, match='1 labels cannot be those of 2'):
    BalancedOrder(2, labels=(0,))


def test_every_class_is_shown_however_rare_it_is():
  labels = (0,) * 5000 + (1, 2, 3)
  order = BalancedOrder(5003, labels=labels, power=1e-6)
  assert set(np.array(labels)[shown(order, 1)]) == {0, 1, 2, 3}


def test_weights_have_a_mean_of_one_over_the_videos():
  labels = np.array((*LABELS, -1))
  for power in (0.0, 0.5, 1.0):
    weights = balance.class_weights(labels, 5, power)
    assert weights[labels[:-1]].mean() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
      weights[:4] / weights[0],
      (np.array(COUNTS) / COUNTS[0]) ** -power,
      rtol=1e-6,
    )
    assert weights[4] == 0  # Nothing is divided by no videos.


def test_labels_without_a_manifest_are_read(tiny_config):
  source = data_setup.source(tiny_config, 'train')
  assert source.labels().tolist() == [source[i].label for i in range(240)]


def test_weights_are_those_of_the_training_videos(tiny_config, tmp_path):
  assert data_setup.class_weights(tiny_config) is None  # Nothing is opened.
  tiny_config.optim.class_balance = 1.0
  labels = data_setup.source(tiny_config, 'train').labels()
  expected = balance.class_weights(labels, 16, 1.0)
  assert data_setup.class_weights(tiny_config) == expected.tolist()
  tiny_config.data.dir = str(tmp_path)  # A plan needs no data.
  assert data_setup.class_weights(tiny_config) == [1.0] * 16


def test_the_stream_takes_the_balanced_order(tiny_config):
  tiny_config.data.class_balance = 0.5
  source = data_setup.source(tiny_config, 'train')
  schedule = grids.schedule(tiny_config, len(source))
  stream = data_setup.train_stream(tiny_config, schedule, source)
  assert stream.order.power == 0.5
  assert stream.order.labels == tuple(source.labels())


def test_long_tailed_digits_have_the_ratio_in_training_alone():
  spec = digits.Spec(num_train=800, num_validation=160, imbalance=20.0)
  count = lambda split, number: np.bincount(
    [digits.label_of(spec, split, i) for i in range(number)], minlength=16
  )
  train = count('train', 800)
  assert train.max() / train.min() == pytest.approx(20, rel=0.15)
  for split in ('validation', 'test'):
    assert (count(split, 160) == 10).all()
