"""Costs of clips and of whole schedules."""

import pytest

from experiments import costs
from experiments.runs import settings
from mgjax import cli
from mgjax.setup import planning

# Keys that stand for all in the fast tests.
FAST_KEYS = (
  costs.Key('slowfast', 400, 8, 112, 112),
  costs.Key('i3d_nln', 400, 2, 112, 112),
  costs.Key('tam_r50', 174, 8, 224, 224),
)


def test_run_costs_are_those_of_the_plan():
  config = cli.read_config('configs/moving_digits.py:grid=both,size=tiny')
  schedule = settings.schedule(config)
  want = planning.make_plan(config, schedule)
  clips = costs.clips_by_grid(schedule)
  assert sum(clips.values()) == want['total_clips'] == schedule.total_clips
  gmacs = dict(zip(schedule.grids, want['gmacs_per_clip'], strict=True))
  assert sum(n * gmacs[grid] for grid, n in clips.items()) == pytest.approx(
    want['total_gmacs'], rel=1e-12
  )


@pytest.mark.parametrize('key', FAST_KEYS)
def test_stored_counts_are_what_is_counted(key):
  assert costs.known()[key] == costs.count(key)


@pytest.mark.slow
def test_all_stored_counts_are_what_is_counted():
  wrong = [
    key for key in costs.known() if costs.known()[key] != costs.count(key)
  ]
  assert not wrong
