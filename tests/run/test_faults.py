"""What a run does when disks, files and settings fail it."""

import concurrent.futures
import gzip
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types

import fsspec
import fsspec.implementations.memory
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import cli, evaluate, files, stop_signal, train
from mgjax.cli import ConfigError, RunError
from mgjax.cpu import allocator
from mgjax.data.eval_stream import EvalStream
from mgjax.data.stream import TrainStream
from mgjax.evaluation import command as evaluation
from mgjax.evaluation import scoring
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.run import failure as bundle
from mgjax.run import (
  launch,
  run_folder,
  step_log,
  writers,
)
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.run.trace import Trace
from mgjax.setup import data as data_setup
from mgjax.setup import grids, run_settings
from mgjax.setup import programs as setup_programs
from mgjax.step import step_cache, train_state
from mgjax.step.train_state import TrainState
from tests import speck
from tests.run_state import of_classes

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


def open_checkpoints(workdir, newest=2, best=1) -> Checkpoints:
  return Checkpoints(workdir, Keep(newest, best))


def write(workdir, steps) -> None:
  with open_checkpoints(workdir, newest=len(steps)) as checkpoints:
    for step in steps:
      checkpoints.save(make_state(step), step, {})


def newest(workdir) -> tuple:
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = train_state.abstract_state(lambda: make_state(0), device)
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


def test_metrics_on_a_full_disk_raise_and_do_not_block(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  writer = writers.Writer(tmp_path, 0)
  writer.picture('noise', np.zeros((8, 8, 3), np.uint8), 0)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

  def write():
    try:
      with pytest.raises(OSError, match='File too large') as caught:
        for step in range(1, 2000):
          writer.write({'step': step, 'train_s': 1.0})
      assert files.disk_error(caught.value, tmp_path)
      with pytest.raises(OSError, match='File too large'):
        writer.close()
      ended.append(True)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)

  ended = []
  thread = threading.Thread(target=write, daemon=True)
  thread.start()
  thread.join(60)
  assert ended
  lines = run_folder.read_metrics(tmp_path)
  assert [m['step'] for m in lines] == list(range(1, len(lines) + 1))


def test_a_folder_that_cannot_be_written_is_refused():
  script = """if True:
    import os, sys
    from etils import epath
    from mgjax import cli, train
    from mgjax.setup import run_settings

    def main(values):
      if os.geteuid() == 0:  # The superuser may write everywhere.
        os.seteuid(65534)
      run_settings.prepare(values.config, epath.Path(values.workdir), [])

    sys.exit(cli.run(main, train.define_flags))
  """
  command = [sys.executable, '-c', script, '--config=tests/speck.py']
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o555)
    ended = subprocess.run(
      [*command, f'--workdir={folder}'], capture_output=True, text=True
    )
  assert ended.returncode == 2
  assert ended.stderr == (
    f'error: --workdir={folder} cannot be written: Permission denied\n'
  )


# What another process does at the same time.


def test_a_bundle_is_complete_before_any_process_goes_on(tmp_path, monkeypatch):
  folder = files.epath.Path(tmp_path / 'failure-3')
  settings = run_settings.as_text(speck.get_config())
  kept = open_checkpoints(tmp_path)
  kept.save(make_state(2), 2, {})
  copy_tree = bundle._copy_tree

  def copy_slowly(*args):
    time.sleep(0.5)
    copy_tree(*args)

  monkeypatch.setattr(bundle, '_copy_tree', copy_slowly)
  here, there = queue.SimpleQueue(), queue.SimpleQueue()

  class Member(Peers):
    def exchange(self, value):
      (there if self.index else here).put(value)
      return [value, (here if self.index else there).get(timeout=60)]

  def write(index):
    failure = {'step': 3, 'ids': []}
    bundle.write(folder, settings, kept, failure, Member(index))
    return (folder / 'failure.json').exists()

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    assert list(pool.map(write, range(2))) == [True, True]
  kept.close()
  assert bundle.read_failure(folder)['step'] == 3
  assert (folder / 'checkpoints' / '2' / 'state').is_dir()


# Signals: whatever a run is doing, it stops, and nothing is lost.


def send_and_wait(number) -> None:
  """Sends this process a signal that a run in it is to note."""
  os.kill(os.getpid(), number)
  deadline = time.monotonic() + 60
  while stop_signal._listener.received is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)


def run_train(data_dir, workdir, *flags):
  argv = [
    'train',
    '--config=tests/speck.py:grid=none',
    f'--config.data.dir={data_dir}',
    '--config.data.batch_size=24',
    '--config.optim.total_epochs=1',
    '--config.optim.lr_steps=()',
    '--config.norm.precise_batches=3',
    '--config.eval.batch_size=16',
    f'--workdir={workdir}',
    *flags,
  ]
  return cli.run(launch.main, train.define_flags, argv)


@pytest.fixture(scope='module')
def undisturbed(data_dir, tmp_path_factory):
  """A run with a checkpoint after every step, a trace, and a peak to reach."""
  workdir = tmp_path_factory.mktemp('undisturbed')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(allocator, 'keep', lambda: None)
    flags = ['--config.train.checkpoint_every_s=1e-6', '--profile=3']
    flags += ['--config.train.peak_tflops=0.5']
    assert run_train(data_dir, workdir, *flags) == 0
  return workdir


def final(workdir) -> tuple:
  summary = json.loads((workdir / 'summary.json').read_text())
  restored = workdir / 'checkpoints' / '10' / 'progress' / 'metadata'
  return summary['top1'], json.loads(restored.read_text())['arrays']


def test_a_checkpoint_is_written_when_its_time_has_come(undisturbed):
  # Those before the last step have no other reason.
  kept = [p.name for p in (undisturbed / 'checkpoints').glob('[0-9]*')]
  assert sorted(kept, key=int) == ['8', '9', '10']


def test_lines_have_the_share_of_the_peak(undisturbed):
  lines = [m for m in run_folder.read_metrics(undisturbed) if 'loss' in m]
  assert len(lines) == 10
  for line in lines:
    peak_gflops = 500 * jax.device_count()
    assert line['mfu'] == pytest.approx(line['gflops'] / peak_gflops)


def test_a_run_is_traced(undisturbed):
  assert list(undisturbed.glob('plugins/profile/*/perfetto_trace.json.gz'))


@pytest.mark.parametrize('doing', ['evaluation', 'statistics', 'compilation'])
def test_sigterm_stops_a_run_whatever_it_is_doing(
  undisturbed, data_dir, tmp_path, doing, monkeypatch, capsys
):
  monkeypatch.setattr(allocator, 'keep', lambda: None)
  ended = []
  monkeypatch.setattr(parallel, 'end', ended.append)
  release = threading.Event()
  asked_at = []
  after = []  # What the run does after the signal.

  def ask():
    asked_at.append(time.monotonic())
    send_and_wait(signal.SIGTERM)

  def score_batch(partial, number, scores):
    if asked_at:
      after.append(number)
    elif number == 2:
      ask()

  def base_batches(train_stream, step, count):
    for i in range(count):
      if asked_at:
        after.append(i)
      elif i == 1:
        ask()
      yield train_stream.base_batch(step, i)

  def lower_programs(*args, **kwargs):
    found = original(*args, **kwargs)
    (program,) = (p for p in found if p.kind == 'stats')
    lower = found[program]
    return found | {program: lambda: release.wait(300) and lower()}

  def wait(cache, program, timeout_s):
    if program.kind == 'stats' and not asked_at:
      ask()
    return original_wait(cache, program, timeout_s)

  original = setup_programs.lower_programs
  original_wait = step_cache.StepCache.wait
  with monkeypatch.context() as patch:
    if doing == 'evaluation':
      patch.setattr(scoring.Partial, 'save_sometimes', score_batch)
    if doing == 'statistics':
      patch.setattr(TrainStream, 'base_batches', base_batches)
    if doing == 'compilation':
      patch.setattr(setup_programs, 'lower_programs', lower_programs)
      patch.setattr(step_cache.StepCache, 'wait', wait)
    try:
      with pytest.raises(SystemExit) as stopped:
        run_train(data_dir, tmp_path)
      took_s = time.monotonic() - asked_at[0]
    finally:
      release.set()
  assert stopped.value.code == 75
  assert not after
  assert took_s < 60  # A check every second; the machine may be busy.
  if doing == 'compilation':
    # Not by way of Python's end, which a compilation may not survive.
    assert ended == [75]
  assert (tmp_path / 'checkpoints' / '10').is_dir()
  assert (tmp_path / 'eval.partial.npz').exists() == (doing == 'evaluation')
  assert 'Stopped at step 10; the same command' in capsys.readouterr().err
  assert run_train(data_dir, tmp_path) == 0
  assert final(tmp_path) == final(undisturbed)
  assert '1 distinct grids, 0 of them compiled' in capsys.readouterr().out


def test_an_evaluation_that_a_signal_stops_goes_on_where_it_was(
  undisturbed, data_dir, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(allocator, 'keep', lambda: None)
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  argv = [
    'evaluate',
    f'--config.data.dir={data_dir}',
    '--config.eval.batch_size=16',
    f'--workdir={workdir}',
  ]
  run = lambda: cli.run(
    evaluation.main,
    evaluate.define_flags,
    argv,
    find_config=evaluate.find_config,
  )
  assert run() == 0
  want = json.loads((workdir / 'eval.json').read_text())

  def ask(partial, number, scores):
    if number == 2:
      send_and_wait(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(scoring.Partial, 'save_sometimes', ask)
    with pytest.raises(SystemExit) as stopped:
      run()
  assert stopped.value.code == 75
  said = capsys.readouterr().err
  assert 'Stopped; the same command goes on with the next batch.' in said
  assert (workdir / 'eval.partial.npz').exists()
  made = []
  batches = EvalStream.batches
  monkeypatch.setattr(
    EvalStream,
    'batches',
    lambda self, first=0: made.append(first) or batches(self, first),
  )
  assert run() == 0
  assert made == [2]
  got = json.loads((workdir / 'eval.json').read_text())
  assert {**got, 'seconds': 0} == {**want, 'seconds': 0}


def test_a_changed_config_is_named_and_needs_consent(tmp_path):
  workdir = files.epath.Path(tmp_path)
  config = speck.get_config()
  run_settings.prepare(config, workdir, ['a', 'b'])
  config.optim.base_lr = 0.3
  with pytest.raises(ConfigError, match='base_lr: 0.05 -> 0.3.*--allow_config'):
    run_settings.check(config, workdir, False, of_classes(['a', 'b']))
  changed = run_settings.check(config, workdir, True, of_classes(['a', 'b']))
  assert changed == ['optim.base_lr: 0.05 -> 0.3']


def test_a_run_goes_on_with_fields_that_are_younger_than_it(tmp_path):
  workdir = files.epath.Path(tmp_path)
  config = speck.get_config()
  run_settings.prepare(config, workdir, [])
  path = tmp_path / 'config.json'
  saved = json.loads(path.read_text())
  del saved['model']['nonlocal_mode']
  path.write_text(json.dumps(saved))
  assert run_settings.check(config, workdir, False, of_classes([])) == []
  config.model.nonlocal_mode = 'dot_product'
  with pytest.raises(ConfigError, match='softmax -> dot_product'):
    run_settings.check(config, workdir, False, of_classes([]))


def test_a_run_has_the_names_of_its_classes_before_its_first_step(
  data_dir, tmp_path, monkeypatch
):
  class Stop(Exception):
    pass

  def stop(*args, **kwargs):
    raise Stop

  monkeypatch.setattr(launch, 'Training', stop)
  config = speck.get_config()
  config.data.dir = str(data_dir)
  for _ in range(2):  # The second one goes on with the folder.
    with pytest.raises(Stop):
      launch.train(config, tmp_path)
    names = json.loads((tmp_path / 'labels.json').read_text())
    assert names == list(data_setup.source(config, 'train').label_names)


def test_a_data_set_that_numbers_its_classes_anew_needs_consent(tmp_path):
  workdir = files.epath.Path(tmp_path)
  config = speck.get_config()
  run_settings.prepare(config, workdir, ['a', 'b'])
  same = of_classes(('a', 'b'))
  assert run_settings.check(config, workdir, False, same) == []
  with pytest.raises(ConfigError, match='the names of the classes.*--allow'):
    run_settings.check(config, workdir, False, of_classes(['b', 'a']))


def test_an_error_in_a_data_worker_ends_the_run_with_its_cause(data_dir):
  config = speck.get_config()
  config.data.dir = str(data_dir)
  source = data_setup.source(config, 'train')
  healthy = source.records

  class Failing:
    def __len__(self):
      return len(healthy)

    def __getitem__(self, index):
      raise OSError(5, 'Input/output error')

  schedule = grids.schedule(config, len(source))
  batches = data_setup.train_stream(config, schedule, source).batches(34)
  next(batches)
  source.records = Failing()
  batches = data_setup.train_stream(config, schedule, source).batches(34)
  with pytest.raises(RunError, match='cannot be read .OSError: .*Input/output'):
    next(batches)


# What is written to be watched.


def test_small_files_and_metrics_go_to_an_object_store(monkeypatch):
  fsspec.register_implementation('gcs', Bucket, clobber=True)
  monkeypatch.setattr(writers, '_Events', NoEvents)
  workdir = 'gs://bucket/run'
  files.write_text(workdir + '/config.json', '{}')
  assert files.epath.Path(workdir + '/config.json').read_text() == '{}'
  writer = writers.Writer(workdir, 0)
  writer.write({'step': 1, 'train_s': 2.0})
  assert run_folder.read_metrics(workdir) == []
  writer.flush()
  assert run_folder.read_metrics(workdir) == [{'step': 1, 'train_s': 2.0}]
  writer.close()


def test_the_size_of_a_data_set_is_read_from_an_object_store():
  fsspec.register_implementation('gcs', Bucket, clobber=True)
  config = speck.get_config()
  config.data.dir = 'gs://bucket/data'
  for version, sizes in (('9.0.0', ['1']), ('10.0.0', ['4', '3'])):
    folder = files.epath.Path(config.data.dir) / config.data.name / version
    folder.mkdir(parents=True)
    splits = {'splits': [{'name': 'train', 'shardLengths': sizes}]}
    (folder / 'dataset_info.json').write_text(json.dumps(splits))
  num_train, known_from = grids.dataset_size(config)
  assert num_train == 7
  assert known_from.startswith('gs://') and '/10.0.0/' in known_from


class Bucket(fsspec.implementations.memory.MemoryFileSystem):
  """An object store in memory."""

  protocol = ('gcs', 'gs')

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix('gs:/'))


class NoEvents:
  def __init__(self, *args): ...

  def add(self, *args): ...

  def flush(self): ...

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
  settings = run_settings.flat(speck.get_config())
  assert writers.open_wandb('', tmp_path, settings) is None
  wandb = writers.open_wandb('video', tmp_path, settings)
  writer = writers.Writer(tmp_path, 0, wandb=wandb)
  writer.write({'step': 3, 'loss': 1.5})
  writer.close()
  assert logged == [(3, {'step': 3, 'loss': 1.5})]
  assert started['project'] == 'video'
  assert started['config']['optim.base_lr'] == 0.05


def test_weights_and_biases_that_is_not_installed_is_refused(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ConfigError, match='pip install wandb'):
    writers.open_wandb('video', tmp_path, {})


def test_a_trace_covers_its_steps_and_perfetto_can_read_it(tmp_path):
  trace = Trace(tmp_path, 2)
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


def test_a_trace_that_fails_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
  def fail():
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(jax.profiler, 'start_trace', lambda *a, **k: None)
  monkeypatch.setattr(jax.profiler, 'stop_trace', fail)
  trace = Trace(tmp_path, 0)
  said = [trace.before(i, lambda: None) for i in range(5)]
  assert said[:3] == [None] * 3 and said[4] is None
  assert 'could not be written: ' in said[3] and 'No space left' in said[3]


def test_one_process_traces_and_all_wait_for_their_device(
  tmp_path, monkeypatch
):
  drained = []
  monkeypatch.delattr(jax.profiler, 'start_trace')
  trace = Trace(tmp_path, 1, record=False)
  for i in range(6):
    assert trace.before(i, lambda i=i: drained.append(i)) is None
  assert drained == [1, 4]


def test_a_remote_folder_gets_no_trace_for_perfetto(monkeypatch):
  asked = []
  monkeypatch.setattr(
    jax.profiler,
    'start_trace',
    lambda folder, create_perfetto_trace: asked.append(create_perfetto_trace),
  )
  Trace('gs://bucket/run', 0).before(0, lambda: None)
  assert asked == [False]


def test_a_step_costs_six_operations_per_multiply_add_of_its_clips():
  config = speck.get_config()
  schedule = grids.schedule(config, 240)
  plan = {'gmacs_per_clip': [1.0, 2.0, 3.0, 4.0]}
  used = schedule.grids
  assert step_log.step_gflop(plan, schedule, 'all') == {
    grid: 6 * gmacs * grid.batch
    for grid, gmacs in zip(used, (1, 2, 3, 4), strict=True)
  }
  # What the backward pass of a part costs is not known: no number is better
  # than one that is too high.
  assert step_log.step_gflop(plan, schedule, 'head') == {}
