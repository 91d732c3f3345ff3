"""What a run does when disks, files and settings fail it."""

import gzip
import json
import os
import resource
import sys
import types

import fsspec
import fsspec.implementations.memory
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from mgjax import checkpoint, cycles, files, metrics, train
from mgjax.cli import ConfigError, RunError
from mgjax.data import sources, stream
from mgjax.train_step import TrainState
from tests import speck

# Where a read or write fails, Orbax 0.12.8 leaves coroutines behind.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def make_state(seed: int) -> TrainState:
  weights = np.random.default_rng(seed).normal(size=(100, 300))
  return TrainState(
    step=jnp.int32(seed),
    params={'w': jnp.asarray(weights, jnp.float32)},
    batch_stats={'mean': jnp.zeros(3)},
    opt_state=(jnp.ones(2),),
  )


def open_checkpoints(workdir, newest=2, best=1) -> checkpoint.Checkpoints:
  config = default.base().train
  with config.unlocked():
    config.keep_checkpoints, config.keep_best = newest, best
  return checkpoint.Checkpoints(workdir, config)


def write(workdir, steps) -> None:
  with open_checkpoints(workdir, newest=len(steps)) as checkpoints:
    for step in steps:
      checkpoints.save(make_state(step), step, {})


def newest(workdir) -> tuple:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = checkpoint.abstract_state(lambda: make_state(0), device)
  with open_checkpoints(workdir) as checkpoints:
    return checkpoints.restore_newest(abstract)


def largest_file(folder):
  paths = [p for p in folder.rglob('*') if p.is_file()]
  return max(paths, key=lambda p: p.stat().st_size)


def flip_a_bit(path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def cut_in_half(path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    for step, top1 in enumerate((10.0, 30.0, 30.0, 20.0, 5.0, 6.0), 1):
      checkpoints.save(make_state(step), step, {})
      checkpoints.scores[step] = top1
  # The two newest, and of the two best the later one.
  assert checkpoints.steps() == [3, 5, 6]
  # Scores outlive the process; that of step 6 came after its checkpoint.
  _, progress, step = newest(tmp_path)
  assert step == 6
  assert progress['scores'] == {
    '1': 10.0,
    '2': 30.0,
    '3': 30.0,
    '4': 20.0,
    '5': 5.0,
  }


@pytest.mark.parametrize('damage', [flip_a_bit, cut_in_half, os.remove])
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(
  tmp_path, damage, capsys
):
  write(tmp_path, [1, 2])
  damage(largest_file(tmp_path / 'checkpoints' / '2' / 'state'))
  state, _, step = newest(tmp_path)
  assert step == 1
  np.testing.assert_array_equal(state.params['w'], make_state(1).params['w'])
  assert (tmp_path / 'damaged' / '0-step-2').is_dir()
  said = capsys.readouterr().err
  assert 'checkpoints/2' in said and 'going on from the checkpoint be' in said
  # The step can be written again.
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(2), 2, {})
  assert newest(tmp_path)[2] == 2


def test_where_every_checkpoint_is_damaged_nothing_is_moved(tmp_path):
  write(tmp_path, [1])
  cut_in_half(largest_file(tmp_path / 'checkpoints' / '1' / 'state'))
  with pytest.raises(RunError, match='No other checkpoint is left'):
    newest(tmp_path)
  assert (tmp_path / 'checkpoints' / '1').is_dir()
  assert not (tmp_path / 'damaged').exists()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
  write(tmp_path, [1])
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  checkpoints = open_checkpoints(tmp_path)
  # No file may grow further, as on a full disk.
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
  try:
    with pytest.raises(RunError, match='goes on from step 1') as caught:
      checkpoints.save(make_state(2), 2, {})
      checkpoints.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert 'could not be written' in str(caught.value)
  assert newest(tmp_path)[2] == 1


def test_errors_of_the_disk_are_told_in_one_line():
  full = OSError(28, 'No space left on device', 'w/metrics.jsonl')
  told = str(files.disk_error(full, 'w'))
  assert 'No space left on device (w/metrics.jsonl)' in told
  assert files.disk_error(OSError(2, 'No such file', 'x'), 'w') is None


def test_a_folder_that_cannot_be_written_is_refused():
  with pytest.raises(ConfigError, match='/proc/nowhere cannot be written'):
    train.prepare_workdir(default.base(), files.epath.Path('/proc/nowhere'))


def test_a_changed_config_is_named_and_needs_consent(tmp_path):
  workdir = files.epath.Path(tmp_path)
  config = speck.get_config()
  train.prepare_workdir(config, workdir)
  config.optim.base_lr = 0.3
  with pytest.raises(ConfigError, match='base_lr: 0.05 -> 0.3.*--allow_config'):
    train.check_workdir(config, workdir, False)
  changed = train.check_workdir(config, workdir, True)
  assert changed == ['optim.base_lr: 0.05 -> 0.3']


def test_an_error_in_a_data_worker_ends_the_run_with_its_cause(data_dir):
  config = speck.get_config()
  config.data.dir = str(data_dir)
  source = sources.open_source(config, 'train')
  healthy = source._data_source

  class Failing:
    def __len__(self):
      return len(healthy)

    def __getitem__(self, index):
      raise OSError(5, 'Input/output error')

  schedule = cycles.make_schedule(config, len(source))
  batches = stream.TrainStream(config, schedule, source).batches(34)
  next(batches)
  source._data_source = Failing()
  batches = stream.TrainStream(config, schedule, source).batches(34)
  with pytest.raises(RunError, match='cannot be read .OSError: .*Input/output'):
    next(batches)


# What is written to be watched.


def test_small_files_and_metrics_go_to_an_object_store(monkeypatch):
  fsspec.register_implementation('gcs', Bucket, clobber=True)
  monkeypatch.setattr(
    metrics.tensorboardX, 'SummaryWriter', lambda *a, **k: NoEvents()
  )
  workdir = 'gs://bucket/run'
  files.write_text(workdir + '/config.json', '{}')
  assert files.epath.Path(workdir + '/config.json').read_text() == '{}'
  writer = metrics.Writer(workdir, 0)
  writer.write({'step': 1, 'loss': 2.0})
  assert metrics.read_metrics(workdir) == []
  writer.flush()
  assert metrics.read_metrics(workdir) == [{'step': 1, 'loss': 2.0}]
  writer.close()


class Bucket(fsspec.implementations.memory.MemoryFileSystem):
  """An object store in memory."""

  protocol = ('gcs', 'gs')

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix('gs:/'))


class NoEvents:
  def add_scalar(self, *args): ...

  def close(self): ...


def test_weights_and_biases_gets_every_line(tmp_path, monkeypatch):
  logged = []
  run = types.SimpleNamespace(
    log=lambda line, step: logged.append((step, line)), finish=lambda: None
  )
  started = {}
  fake = types.SimpleNamespace(
    init=lambda **options: started.update(options) or run
  )
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  config = speck.get_config()
  assert metrics.open_wandb(config, tmp_path) is None
  config.train.wandb_project = 'video'
  writer = metrics.Writer(
    tmp_path, 0, wandb=metrics.open_wandb(config, tmp_path)
  )
  writer.write({'step': 3, 'loss': 1.5})
  writer.close()
  assert logged == [(3, {'step': 3, 'loss': 1.5})]
  assert started['project'] == 'video'
  assert started['config']['optim.base_lr'] == 0.05


def test_weights_and_biases_that_is_not_installed_is_refused(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  config = speck.get_config()
  config.train.wandb_project = 'video'
  with pytest.raises(ConfigError, match='pip install wandb'):
    metrics.open_wandb(config, tmp_path)


def test_a_trace_covers_its_steps_and_perfetto_can_read_it(tmp_path):
  trace = metrics.Trace(tmp_path, 2)
  step = jax.jit(lambda x: x + 1)
  said = []
  for i in range(8):
    said.append(trace.before(i, lambda: None))
    step(jnp.float32(i)).block_until_ready()
  assert [i for i, text in enumerate(said) if text] == [5]
  (path,) = tmp_path.glob('plugins/profile/*/perfetto_trace.json.gz')
  with gzip.open(path) as file:
    assert json.load(file)['traceEvents']
  assert list(tmp_path.glob('plugins/profile/*/*.xplane.pb'))


def test_a_step_costs_six_operations_per_multiply_add_of_its_clips():
  config = speck.get_config()
  schedule = cycles.make_schedule(config, 240)
  plan = {'gmacs_per_clip': [1.0, 2.0, 3.0, 4.0]}
  grids = schedule.grids
  assert train.step_gflop(plan, schedule) == {
    grid: 6 * gmacs * grid.batch
    for grid, gmacs in zip(grids, (1, 2, 3, 4), strict=True)
  }
