"""The picture of a run shows its schedule, loss and waits as they were."""

import numpy as np
import pytest
from matplotlib import figure

from mgjax.run import report
from mgjax.setup import grids
from tests import speck

# Two lines: after a wait of half a minute, and after none.
LINES = [
  {'step': 2, 'train_s': 60.0, 'compile_wait_s': 30.0, 'loss': 2.0},
  {'step': 6, 'train_s': 180.0, 'compile_wait_s': 30.0, 'loss': 1.0},
]


@pytest.fixture
def schedule():
  return grids.schedule(speck.get_config('grid=both'), 240)


def test_time_is_that_of_training_and_of_waits_for_programs():
  clock = report._Clock(LINES)
  assert clock.minutes(np.array([0, 1, 2, 4, 6])).tolist() == [
    *(0, 0.75, 1.5, 2.5, 3.5)
  ]
  assert clock.compiling == [(0.0, 0.5)]


def test_every_step_has_its_grid_and_rate_however_few_lines_there_are(schedule):
  clock = report._Clock(LINES)
  axis = figure.Figure().subplots()
  report._draw_rate(axis, clock, schedule)
  (drawn,) = axis.patches
  values, edges, _ = drawn.get_data()
  steps = range(schedule.total_steps)
  assert values.tolist() == [schedule.lr(step) for step in steps]
  assert edges.tolist() == [clock.minutes(i) for i in range(len(steps) + 1)]
  axis = figure.Figure().subplots()
  report._draw_grids(axis, clock, schedule)
  volume, batch = (patch.get_data().values for patch in axis.patches)
  assert len(set(volume)) > 2 and max(volume) == 1
  assert batch.tolist() == [
    schedule(step).batch / min(g.batch for g in schedule.grids)
    for step in steps
  ]


@pytest.mark.parametrize('name,num_lines', [('eval_top1', 2), ('eval_map', 1)])
def test_the_accuracy_of_chance_is_drawn_where_there_is_one(name, num_lines):
  evals = [{'step': 6, name: 50.0}]
  fig = figure.Figure()
  report._draw_loss(fig.subplots(), report._Clock(LINES), LINES, evals, 16)
  accuracy = fig.axes[1]
  assert len(accuracy.lines) == num_lines
  if num_lines == 2:
    assert set(accuracy.lines[1].get_ydata()) == {100 / 16}


def test_a_smooth_loss_is_the_mean_of_its_neighbours():
  values = np.arange(100.0) ** 2
  found = report._smooth(values)
  assert found[50] == pytest.approx(values[48:53].mean())
  assert found[0] == pytest.approx(values[:3].mean())
  assert found[-1] == pytest.approx(values[-3:].mean())
  assert report._smooth(np.array([3.0])).tolist() == [3.0]
  assert report._smooth(np.array([])).tolist() == []
