"""What a run has left in its folder: what is normal, and what is refused."""

import json

import numpy as np
import pytest
from etils import epath

from mgjax.cli import ConfigError
from mgjax.run import run_folder
from mgjax.setup import run_settings
from tests import speck
from tests.run_state import of_classes

LINE = '{"step": 1, "train_s": 0.5}\n'


@pytest.mark.parametrize(
  'left', ['', '{"st', '{"step": 2}', '\0\0\0', '{"name": "caf\xe9'[:-1]]
)
def test_half_a_last_line_is_what_a_kill_leaves(tmp_path, left):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(LINE.encode() + left.encode('latin-1'))
  assert run_folder.read_metrics(tmp_path) == [json.loads(LINE)]


def test_of_nothing_but_half_a_line_nothing_is_left(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step"')
  assert run_folder.read_metrics(tmp_path) == []


def test_a_line_in_the_middle_is_never_left_out(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(LINE + '{"st\n' + LINE)
  with pytest.raises(ConfigError, match='metrics.jsonl, line 2 is not JSON'):
    run_folder.read_metrics(tmp_path)


def test_lists_of_labels_have_every_name_once(tmp_path):
  path = tmp_path / 'labels.txt'
  path.write_text('\ufeffa\n\n b \n', 'utf-8')
  assert run_folder.read_labels(path) == ['a', 'b']
  path.write_text('a\nb\na\n')
  with pytest.raises(ConfigError, match="'a' twice"):
    run_folder.read_labels(path)


def test_the_class_with_another_name_is_told(tmp_path):
  config, workdir = speck.get_config(), epath.Path(tmp_path)
  run_settings.prepare(config, workdir, ['a', 'b'])
  assert run_folder.other_labels(workdir, ('a', 'b')) == ''
  assert run_folder.other_labels(workdir, ('a', 'c')) == "1: 'b' -> 'c'"
  assert run_folder.other_labels(workdir, ('a',)) == "1: 'b' -> None"
  with pytest.raises(ConfigError, match="names of the classes, such as 1: 'b'"):
    run_settings.check(config, workdir, False, of_classes(('a', 'c')))


def test_a_run_goes_on_with_the_videos_that_it_began_with(tmp_path):
  config, workdir = speck.get_config(), epath.Path(tmp_path)
  names = ('a', 'b')
  run_settings.prepare(config, workdir, names)
  old = of_classes(names, 10, manifest_sha256='x')
  check = lambda videos, allow=False: run_settings.check(
    config, workdir, allow, videos
  )
  assert check(old) == []  # A folder without a plan.
  (workdir / 'plan.json').write_text('{}')
  assert check(old) == []  # A plan of an earlier version.
  plan = json.dumps({'videos': run_settings.data_of(config, old)})
  (workdir / 'plan.json').write_text(plan)
  assert check(old) == []
  new = of_classes(names, 11, manifest_sha256='y')
  with pytest.raises(ConfigError, match='the data set: videos: 10 -> 11'):
    check(new)
  assert check(new, allow=True) == [
    'the data set: manifest_sha256: x -> y',
    'the data set: videos: 10 -> 11',
  ]


def test_a_run_with_evened_out_classes_goes_on_with_the_labels_it_began_with(
  tmp_path,
):
  config, workdir = speck.get_config(), epath.Path(tmp_path)
  config.data.class_balance = 1.0
  source = of_classes(('a', 'b'), 4)
  labels = np.array([0, 1, 1, 0])
  source.labels = lambda: labels
  run_settings.prepare(config, workdir, ('a', 'b'))
  plan = json.dumps({'videos': run_settings.data_of(config, source)})
  (workdir / 'plan.json').write_text(plan)
  check = lambda: run_settings.check(config, workdir, False, source)
  assert check() == []
  labels[2] = -1  # Its record is damaged.
  with pytest.raises(ConfigError, match='the data set: labels_crc32: .* -> '):
    check()


def test_a_run_that_has_the_earlier_interval_of_evaluations_goes_on(tmp_path):
  """Every ten epochs was the default."""
  config, workdir = speck.get_config(), epath.Path(tmp_path)
  config.eval.every = 10.0
  run_settings.prepare(config, workdir, ['a'])
  config.eval.every = None
  assert run_settings.check(config, workdir, False, of_classes(('a',))) == []
  config.eval.every = 3.0
  with pytest.raises(ConfigError, match='eval.every: 10.0 -> 3.0'):
    run_settings.check(config, workdir, False, of_classes(('a',)))


def test_without_its_settings_nothing_is_taken_for_a_run(tmp_path):
  config = speck.get_config()
  with pytest.raises(ConfigError, match='--allow_config_change'):
    run_settings.check_evaluation(config, tmp_path, allow_change=False)
  assert (
    run_settings.check_evaluation(config, tmp_path, allow_change=True) == {}
  )
