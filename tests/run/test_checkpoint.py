"""Every byte of a checkpoint that is used is checked, whoever reads it."""

import collections
import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.cli import ConfigError
from mgjax.evaluation import command as evaluation
from mgjax.exporting import framework_files
from mgjax.predicting import command as predicting
from mgjax.run import checkpoint
from mgjax.run.checkpoint import DamagedError
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.setup import data as data_setup
from mgjax.setup import initial_weights
from mgjax.step import train_state
from mgjax.step.train_state import TrainState
from tests.weights import test_import_weights as weights

# Where a read or write fails, Orbax leaves coroutines behind.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def make_state(step: int = 0, classes: int = 3) -> TrainState:
  numbers = np.random.default_rng(step)
  array = lambda *shape: jnp.asarray(numbers.normal(size=shape), jnp.float32)
  return TrainState(
    step=jnp.int32(step),
    # One above and some below the size that OCDBT stores in its index.
    params={
      'stem': {'kernel': array(20, 30), 'scale': array(5)},
      'head': {'kernel': array(30, classes).astype(jnp.bfloat16)},
    },
    batch_stats={'stem': {'mean': array(5)}},
    opt_state=({'trace': array(20, 30)}, array(2)),
  )


def write(workdir, *steps: int) -> pathlib.Path:
  """Writes checkpoints; returns the folder of the last one."""
  keep = Keep(newest=len(steps), best=1)
  with Checkpoints(workdir, keep) as checkpoints:
    for step in steps:
      checkpoints.scores[step] = 50.0
      progress = {'times': {'step_s': 1.25}, 'bad_videos': {'a': 'cut off'}}
      checkpoints.save(make_state(step), step, progress)
  return workdir / 'checkpoints' / str(steps[-1])


def abstract_of(state: TrainState) -> TrainState:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return train_state.abstract_state(lambda: state, device)


def variables_of(state: TrainState) -> dict:
  return {name: getattr(state, name) for name in checkpoint.VARIABLES}


def restore(path, state=None):
  return checkpoint.restore(path, abstract_of(state or make_state()))


def load(path, **options) -> dict:
  abstract = variables_of(abstract_of(make_state()))
  return checkpoint.load_variables(path, abstract, **options)


def same(a, b) -> bool:
  """Whether two trees are equal, bit for bit."""
  if jax.tree.structure(a) != jax.tree.structure(b):
    return False
  as_bytes = lambda x: (x.dtype, x.shape, x.tobytes())
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(
    as_bytes(np.asarray(x)) == as_bytes(np.asarray(y)) for x, y in pairs
  )


def flip(path: pathlib.Path, position: int, bit: int) -> None:
  content = bytearray(path.read_bytes())
  content[position] ^= 1 << bit
  path.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_noticed_or_changes_nothing(tmp_path):
  path = write(tmp_path, 3)
  want, variables = make_state(3), variables_of(make_state(3))
  _, progress = restore(path)
  numbers = random.Random(0)
  outcomes = collections.Counter()
  for file in sorted(p for p in path.rglob('*') if p.is_file()):
    kind = file.parent.name
    for _ in range(6):
      place = numbers.randrange(file.stat().st_size), numbers.randrange(8)
      flip(file, *place)
      try:
        found, record = restore(path)
        assert same(found, want) and record == progress, (file, place)
        outcomes[kind, 'same'] += 1
      except DamagedError as error:
        assert str(path) in str(error)
        outcomes[kind, 'damaged'] += 1
      try:
        assert same(load(path), variables), (file, place)
      except DamagedError:
        pass
      flip(file, *place)
  # The tree's root and the record are read whole. How many other places are
  # read depends on how Orbax's threads divided the arrays among files.
  assert outcomes['d', 'damaged'] >= 6
  assert outcomes['progress', 'damaged'] == 6
  assert same(load(path), variables)


def test_no_byte_of_the_record_can_change_unnoticed(tmp_path):
  path = write(tmp_path, 3)
  want = checkpoint.read_record(path)
  file = path / 'progress' / 'metadata'
  content = file.read_bytes()
  noticed = 0
  for position in range(len(content)):
    flip(file, position, position % 8)
    try:
      assert checkpoint.read_record(path) == want
    except DamagedError:
      noticed += 1
    file.write_bytes(content)
  # Others write the same number in another way: 1e-05 and 1E-05.
  assert noticed > 0.99 * len(content)


def test_arrays_that_were_changed_in_memory_or_by_hand_are_damage(tmp_path):
  """What the checksums of the format itself do not see."""
  path = write(tmp_path, 3)
  other = write(tmp_path / 'other', 4)
  shutil.rmtree(path / 'state')
  shutil.copytree(other / 'state', path / 'state')
  with pytest.raises(DamagedError, match='such as .*checksum'):
    load(path)
  with pytest.raises(DamagedError, match='arrays, such as'):
    restore(path)


@pytest.mark.parametrize(
  'file', ['progress/metadata', 'state/manifest.ocdbt', 'state/_METADATA']
)
def test_a_missing_file_is_damage_or_was_not_needed(tmp_path, file):
  path = write(tmp_path, 3)
  (path / file).unlink()
  with pytest.raises(DamagedError, match=f'{path} '):
    restore(path)
  try:
    assert same(load(path), variables_of(make_state(3)))
  except DamagedError:
    pass
  else:
    assert file == 'state/_METADATA'


def test_the_error_names_the_newest_one_before_that_can_be_used(tmp_path):
  path = write(tmp_path, 1, 2, 3)
  for step in (2, 3):
    (path.parent / str(step) / 'progress' / 'metadata').write_text('{}')
  before = path.parent / '1'
  with pytest.raises(DamagedError) as caught:
    load(path, instead='--step={step} or --checkpoint={path}')
  assert str(caught.value).startswith(f'{path} cannot be read (')
  assert str(caught.value).endswith(
    f'The one before, {before}, can be used: --step=1 or --checkpoint={before}'
  )
  shutil.rmtree(before)
  with pytest.raises(DamagedError, match='none before it that can be used'):
    load(path)


def test_a_checkpoint_of_other_settings_is_not_damaged(tmp_path):
  path = write(tmp_path, 3)
  other = make_state(classes=4)
  with pytest.raises(ConfigError, match=r'params/head/kernel: .*30, 3.*30, 4'):
    restore(path, other)
  with Checkpoints(tmp_path, Keep(newest=3, best=1)) as checkpoints:
    with pytest.raises(ConfigError):
      checkpoints.restore_newest(abstract_of(other))
  assert path.is_dir() and not (tmp_path / 'damaged').exists()


def test_weights_are_checked_as_they_are_stored_and_then_cast(tmp_path):
  path = write(tmp_path, 3)
  wanted = variables_of(abstract_of(make_state()))
  wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, 'f4'), wanted)
  kernel = checkpoint.load_variables(path, wanted)['params']['head']['kernel']
  assert isinstance(kernel, np.ndarray) and kernel.dtype == np.float32
  stored = make_state(3).params['head']['kernel']
  assert stored.dtype == jnp.bfloat16
  np.testing.assert_array_equal(kernel, np.float32(stored))


def make_old(path: pathlib.Path, state: TrainState) -> None:
  """Gives a checkpoint the record that older versions wrote."""
  record = {
    'times': {},
    'scores': {},
    'crc32': checkpoint.checksum(state),
  }
  (path / 'progress' / 'metadata').write_text(json.dumps(record))


def test_an_old_checkpoint_is_checked_where_it_is_read_whole(tmp_path, capsys):
  path = write(tmp_path, 3)
  make_old(path, make_state(3))
  state, _ = restore(path)
  assert same(state, make_state(3))
  assert capsys.readouterr().err == ''
  assert same(load(path), variables_of(make_state(3)))
  (line,) = capsys.readouterr().err.splitlines()
  assert f'{path} was written before every array had a checksum' in line
  make_old(path, make_state(4))
  with pytest.raises(DamagedError, match='do not have the checksum'):
    restore(path)


@pytest.fixture
def config(tiny_config):
  tiny_config.model.choose('slow')
  tiny_config.model.blocks = (1, 1)
  tiny_config.model.width = 4
  tiny_config.data.num_frames = 2
  tiny_config.data.crop_px = 16
  return tiny_config


def test_every_reader_of_weights_names_its_way_to_the_one_before(
  config, tmp_path
):
  weights.import_state(config, weights.state_of(config), tmp_path)
  folder = tmp_path / 'out'
  good, bad = (folder / 'checkpoints' / name for name in '01')
  shutil.copytree(good, bad)
  (bad / 'state' / 'manifest.ocdbt').write_bytes(b'')
  video = tmp_path / 'x.mp4'
  video.write_bytes(data_setup.source(config, 'validation')[0].video)
  starting = config.copy_and_resolve_references()
  starting.init_from = str(folder)
  shapes = weights.shapes_of(config)
  state = TrainState(step=None, opt_state=None, **variables_of_dict(shapes))
  for way, read in (
    (
      '--step=0',
      lambda: evaluation.evaluate_checkpoint(config, folder, None),
    ),
    (
      f'--checkpoint={good}',
      lambda: predicting.open_predictor(config, folder, [video]),
    ),
    (
      f'--config.init_from={good}',
      lambda: initial_weights.initial_variables(starting, state),
    ),
    (
      f'can be used: {good}',
      lambda: framework_files.export(
        config, folder, 'pyslowfast', tmp_path / 'out.pyth'
      ),
    ),
  ):
    with pytest.raises(DamagedError) as caught:
      read()
    assert str(bad) in str(caught.value)
    assert str(caught.value).endswith(way)


def variables_of_dict(tree: dict) -> dict:
  return {name: tree[name] for name in checkpoint.VARIABLES}


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(
  tmp_path, monkeypatch, when
):
  """The only checkpoint: it is there again, or its successor is."""
  keep = Keep(newest=1, best=0)
  progress = {'times': {}, 'bad_videos': {}}
  with Checkpoints(tmp_path, keep) as checkpoints:
    checkpoints.save(make_state(1), 4, progress)

  class Killed(BaseException):
    """As a signal would, nothing catches it."""

  checkpoints = Checkpoints(tmp_path, keep)
  save = checkpoints._manager.save

  def killed(*args, **kwargs):
    if when == 'after':
      save(*args, **kwargs)
      checkpoints._manager.wait_until_finished()
    raise Killed

  monkeypatch.setattr(checkpoints._manager, 'save', killed)
  with pytest.raises(Killed):
    checkpoints.save(make_state(2), 4, progress, replace=True)
  checkpoints.close()
  with Checkpoints(tmp_path, keep) as again:
    state, _, step = again.restore_newest(abstract_of(make_state()))
  assert step == 4 and not (tmp_path / 'replaced').exists()
  assert same(state, make_state(1 if when == 'before' else 2))


def test_a_replaced_checkpoint_leaves_nothing_behind(tmp_path):
  keep = Keep(newest=1, best=0)
  progress = {'times': {}, 'bad_videos': {}}
  with Checkpoints(tmp_path, keep) as checkpoints:
    checkpoints.save(make_state(1), 4, progress)
    checkpoints.save(make_state(2), 4, progress, replace=True)
  assert same(restore(tmp_path / 'checkpoints' / '4')[0], make_state(2))
  assert [p.name for p in tmp_path.iterdir()] == ['checkpoints']
