"""An order of clips is a function of the clip number, for any schedule."""

import subprocess
import sys

import numpy as np
import pytest

from mgjax.data.order import Order
from mgjax.grids.schedule import Grid, Phase, lay_out

# Of Order(240, seed=0): clips 0, 1, 2, 239, 240 and 10,000, then what belongs
# to clip 7.
ORDER = [81, 25, 193, 69, 66, 230]
REPLACEMENTS = [157, 13]
DRAWN = [0.5844961951513712, 0.8909583303714613]


def make_schedule(num_train, batches, epochs=3):
  """One phase of steps whose batches alternate."""
  cycle = tuple(Grid(4, 8, 8, batch) for batch in batches)
  phase = Phase(
    cycle=cycle,
    end_step=0,
    end_epoch=epochs,
    lr_stage=0,
    lr_scale=1.0,
    stride_frames=(1, 1),
    jitter_px=((8, 8),) * len(cycle),
    bn_groups=(1,) * len(cycle),
  )
  return lay_out([phase], num_train=num_train, lr_at_epoch=lambda epoch: 0.1)


def test_every_example_is_shown_once_per_epoch_whatever_the_batches():
  order, schedule = Order(23, seed=5), make_schedule(23, (8, 4, 2))
  shown = np.concatenate(
    [order.batch(schedule, step) for step in range(schedule.total_steps)]
  )
  assert len(shown) >= 3 * 23 and shown.dtype == np.int64
  epochs = shown[: 3 * 23].reshape(3, 23)
  assert (np.sort(epochs) == np.arange(23)).all()
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_order_is_that_of_earlier_versions():
  """Runs go on with it: a change shows other clips after a resumption."""
  order = Order(240, seed=0)
  clips = [0, 1, 2, 239, 240, 10_000]
  assert [order.example(clip) for clip in clips] == ORDER
  assert [order.replacement(7, attempt) for attempt in (1, 2)] == REPLACEMENTS
  assert order.generator(7).random(2).tolist() == DRAWN
  # NumPy's integers are as good as Python's.
  assert [order.example(c) for c in np.array(clips)] == ORDER
  assert order.replacement(np.int64(7), 1) == REPLACEMENTS[0]


def test_shards_share_every_batch_in_its_order():
  schedule = make_schedule(23, (8, 4))
  whole = Order(23, seed=1)
  shards = [Order(23, seed=1, shard=i, num_shards=4) for i in range(4)]
  for step in range(schedule.total_steps):
    parts = [shard.batch(schedule, step) for shard in shards]
    np.testing.assert_array_equal(
      np.concatenate(parts), whole.batch(schedule, step)
    )


def test_a_batch_that_shards_cannot_share_is_refused():
  schedule = make_schedule(23, (8, 3))
  order = Order(23, shard=0, num_shards=2)
  assert len(order.batch(schedule, 0)) == 4
  with pytest.raises(ValueError, match='2 shards .* a batch of 3 clips'):
    order.batch(schedule, 1)


@pytest.mark.parametrize(
  'numbers,match',
  [
    ({'num_examples': 0}, 'num_examples=0'),
    ({'num_examples': 1, 'seed': -1}, 'seed=-1'),
    ({'num_examples': 1, 'shard': 2, 'num_shards': 2}, 'shard=2'),
  ],
)
def test_numbers_outside_their_range_are_refused(numbers, match):
  with pytest.raises(ValueError, match=match):
    Order(**numbers)


def test_an_order_of_one_example_shows_it():
  assert [Order(1).example(clip) for clip in range(3)] == [0, 0, 0]


def test_an_order_needs_neither_data_sets_nor_a_decoder():
  text = (
    'import sys, mgjax.data.order\n'
    "print({'av', 'cv2', 'tensorflow_datasets', 'mgjax.config.fields'}"
    ' & set(sys.modules))'
  )
  found = subprocess.run(
    [sys.executable, '-c', text], capture_output=True, text=True, check=True
  )
  assert found.stdout == 'set()\n'
