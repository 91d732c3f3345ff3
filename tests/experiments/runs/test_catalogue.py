"""The runs behind the tables."""

import pytest

from experiments.runs import catalogue, generated, papers, planned
from experiments.tables import literature
from mgjax import cli
from mgjax.recipes import segments


def test_every_run_of_every_table_has_a_schedule_and_a_cost(no_counting):
  for table in catalogue.RUNS:
    runs = planned.runs_to_make(table, 2)
    assert all(item.gmacs > 0 for item in runs)


def test_a_record_of_another_run_than_its_name_says_is_reported(
  records, monkeypatch
):
  name, config = (
    'moving_digits/none-seed1',
    'configs/moving_digits.py:grid=none',
  )
  records(name, f'{config},seed=1')
  assert catalogue.mismatches() == []
  records('moving_digits/none-seed2', f'{config},seed=1')
  records('moving_digits/gone-seed0', f'{config},seed=0')
  assert catalogue.mismatches() == [
    'moving_digits/gone-seed0: moving_digits has no run of this name',
    'moving_digits/none-seed2: its config is not that of its run',
  ]


def test_a_run_carries_the_network_the_frames_and_the_grid_of_its_config():
  checked = 0
  for run in (run for runs in catalogue.RUNS.values() for run in runs):
    config = cli.read_config(run.config, run.overrides)
    assert config.grid.mode == run.grid, run
    if run.frames:
      assert config.data.num_frames == run.frames, run
    if run.file == generated.FILE:
      assert config.model.name == run.model, run
    elif run.model in segments.MODELS:
      family, depth, _ = segments.MODELS[run.model]
      assert (config.model.name, config.model.depth) == (family, depth), run
      # What a clip costs them stands beside their accuracy.
      assert run.frames, run
      checked += 1
  assert checked == 42


@pytest.mark.parametrize(
  'name,number', [('mini_ssv2', 87), ('mini_kinetics', 200)]
)
def test_a_list_of_classes_has_as_many_names_as_its_runs_have_classes(
  name, number
):
  names = (papers.CLASSES / f'{name}.txt').read_text().splitlines()
  assert len(set(names)) == len(names) == number
  assert all(n and n == n.strip() for n in names)
  for run in catalogue.RUNS[name]:
    config = cli.read_config(run.config, run.overrides)
    assert config.model.num_classes == number
    # As `mgjax.data.prepare --classes` names the set.
    assert config.data.name.endswith(f'_{name}')
    # Every run has a published number to stand beside.
    assert (run.row.split(',')[0], f'{run.row.split(", ")[1]} top-1') in (
      literature.cells('mini_sets')
    )


def test_runs_of_one_network_at_other_lengths_have_other_names_and_rows():
  runs = catalogue.RUNS['something_something_blvnet']
  (run,) = (
    r
    for r in runs
    if (r.model, r.frames) == ('blvnet_tam_101', 64) and r.file == 'ssv2'
  )
  assert run.name == 'something_something_blvnet/ssv2-blvnet-tam-101-32x2'
  assert run.row == 'bLVNet-TAM-101 32x2, SSv2'
  (run,) = (
    r
    for r in runs
    if (r.model, r.frames) == ('tsn_r50', 16) and r.file == 'ssv1'
  )
  assert run.row == 'TSN-R50 16, SSv1'
  for table, runs in catalogue.RUNS.items():
    assert len({run.name for run in runs}) == len(runs), table
