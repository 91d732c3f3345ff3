"""The same run on any number of devices and processes.

Layouts are processes of their own: the number of devices is fixed when JAX
starts. Numbers of steps are counted by the processes themselves, so that the
tests do not depend on how fast the machine is.
"""

import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from mgjax import files
from mgjax.evaluation import results
from mgjax.hosts import parallel
from mgjax.run import run_folder
from tests import compiling
from tests.run_state import final_state

TIMEOUT_S = 900  # For machines that do much else.


def launch(
  data_dir,
  workdir,
  *flags,
  devices=1,
  processes=1,
  program='tests.layout_worker',
):
  """Starts the processes of one run; flags may be a tuple for each of them."""
  with socket.socket() as free:
    free.bind(('', 0))
    port = free.getsockname()[1]
  env = os.environ | {
    'XLA_FLAGS': f'{compiling.QUICK} '
    f'--xla_force_host_platform_device_count={devices // processes}'
  }
  started = []
  for i in range(processes):
    own = [f[i] if isinstance(f, tuple) else f for f in flags]
    if processes > 1:
      own += [
        f'--coordinator_address=localhost:{port}',
        f'--num_processes={processes}',
        f'--process_id={i}',
      ]
    command = [sys.executable, '-m', program]
    command += [
      '--config=tests/speck.py',
      f'--config.data.dir={data_dir}',
      f'--workdir={workdir}',
      *filter(None, own),
    ]
    started.append(
      subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return started


def wait(processes) -> list[tuple[int, str]]:
  """Exit codes and what was said on stderr."""
  said = [p.communicate(timeout=TIMEOUT_S)[1] for p in processes]
  return [(p.returncode, text) for p, text in zip(processes, said, strict=True)]


def finish(*args, **kwargs) -> None:
  for code, said in wait(launch(*args, **kwargs)):
    assert code == 0, said


def stop(*args, at: int, **kwargs) -> None:
  flags = [f'--signal={int(signal.SIGTERM)}', f'--signal_at={at}']
  for code, said in wait(launch(*args, *flags, **kwargs)):
    assert code == 75, said


def lines(workdir, *names) -> list[tuple]:
  return [
    tuple(m[name] for name in names)
    for m in run_folder.read_metrics(workdir)
    if 'loss' in m
  ]


def assert_close(a, b, tolerance: float) -> None:
  """Compares trees; differences count relative to an array's largest entry."""
  leaves = jax.tree_util.tree_leaves_with_path
  assert len(leaves(a)) == len(leaves(b)) > 10
  for (path, x), (_, y) in zip(leaves(a), leaves(b), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    scale = np.abs(x).max()
    assert np.abs(x - y).max() <= tolerance * scale, (path, scale)


def distance(a, b) -> float:
  """Euclidean distance of two trees, relative to the first one's length."""
  flat = lambda tree: np.concatenate(
    [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)]
  )
  return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(a))


LAYOUTS = [(2, 1), (4, 1), (8, 1), (4, 2), (8, 2)]  # Devices, processes.


@pytest.fixture(scope='module')
def in_float64(data_dir, tmp_path_factory):
  """The run on one device."""
  workdir = tmp_path_factory.mktemp('in_float64')
  finish(data_dir, workdir, '--float64')
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize('devices,processes', LAYOUTS)
def test_a_whole_run_in_float64_is_the_same_on_any_layout(
  in_float64, data_dir, tmp_path, devices, processes
):
  finish(data_dir, tmp_path, '--float64', devices=devices, processes=processes)
  names = ('step', 'T', 'H', 'W', 'batch', 'ids_crc32', 'bn_groups', 'lr')
  want = lines(in_float64, *names)
  assert len(want) == 36
  assert lines(tmp_path, *names) == want
  first, second = final_state(in_float64), final_state(tmp_path)
  assert first['params']['head']['classifier']['kernel'].dtype == np.float64
  assert_close(first, second, 1e-9)


@pytest.mark.slow
def test_a_checkpoint_of_one_layout_resumes_on_any_other(
  in_float64, data_dir, tmp_path
):
  run = (data_dir, tmp_path, '--float64')
  stop(*run, devices=1, at=4)
  stop(*run, devices=4, at=6)
  stop(*run, devices=2, at=6)
  stop(*run, devices=4, processes=2, at=6)
  finish(*run, devices=1)
  assert lines(tmp_path, 'step', 'ids_crc32') == lines(
    in_float64, 'step', 'ids_crc32'
  )
  assert_close(final_state(in_float64), final_state(tmp_path), 1e-9)


@pytest.mark.slow
# In bfloat16, each device rounds its gradients once, to 8 bits.
@pytest.mark.parametrize(
  'dtype,tolerance', [('float32', 1e-5), ('bfloat16', 2e-2)]
)
def test_the_first_step_has_the_same_loss_and_gradients(
  data_dir, tmp_path, dtype, tolerance
):
  one = tmp_path / 'one'
  flags = ['--one_step', f'--config.model.dtype={dtype}']
  finish(data_dir, one, *flags)
  ((want,),) = lines(one, 'loss')
  for devices, processes in LAYOUTS:
    workdir = tmp_path / f'{devices}-{processes}'
    finish(data_dir, workdir, *flags, devices=devices, processes=processes)
    ((loss,),) = lines(workdir, 'loss')
    assert loss == pytest.approx(want, rel=tolerance)
    # Momentum after one step is the gradient, weight decay included.
    momentum = final_state(one)['opt_state'], final_state(workdir)['opt_state']
    assert_close(*momentum, tolerance)


@pytest.mark.slow
def test_float32_drifts_little_over_layouts(data_dir, tmp_path):
  params = lambda name: final_state(tmp_path / name)['params']
  finish(data_dir, tmp_path / 'one')
  for devices, processes in LAYOUTS:
    name = f'{devices}-{processes}'
    finish(data_dir, tmp_path / name, devices=devices, processes=processes)
    drift = distance(params('one'), params(name))
    print(f'{name}: {drift:.1e}')
    # A rounding error is 1e-7; 36 steps made 9e-6 of it.
    assert drift < 1e-4


@pytest.mark.slow
def test_an_evaluation_is_the_same_on_any_layout(data_dir, tmp_path):
  finish(data_dir, tmp_path)
  want = files.read_json(tmp_path / 'eval.json')
  assert 0 < results.correct_videos(want).sum() < 64
  for devices, processes in ((1, 1), (4, 1), (4, 2)):
    (tmp_path / 'eval.json').unlink()
    layout = {'devices': devices, 'processes': processes}
    finish(data_dir, tmp_path, **layout, program='mgjax.evaluate')
    found = files.read_json(tmp_path / 'eval.json')
    for name in ('correct', 'top1', 'confusion'):
      assert found[name] == want[name]


@pytest.mark.slow
# During a step, and while statistics are taken after the last one.
@pytest.mark.parametrize('at,step', [(5, 6), (36, 36)])
def test_sigterm_to_one_process_stops_all_at_the_same_step(
  data_dir, tmp_path, at, step
):
  flags = (('', '--signal=15'), ('', f'--signal_at={at}'))
  ended = wait(launch(data_dir, tmp_path, *flags, devices=2, processes=2))
  assert [code for code, _ in ended] == [75, 75], ended
  assert (tmp_path / 'checkpoints' / str(step)).is_dir()
  assert not (tmp_path / 'eval.json').exists()
  finish(data_dir, tmp_path, devices=2, processes=2)
  assert (tmp_path / 'eval.json').exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_leaves_a_complete_bundle(data_dir, tmp_path):
  flags = ['--config.optim.base_lr=1e18', '--config.optim.warmup_epochs=0.0']
  flags.append('--slow_bundle')
  ended = wait(launch(data_dir, tmp_path, *flags, devices=2, processes=2))
  assert [code for code, _ in ended] == [1, 1], ended
  assert all('is not finite' in said for _, said in ended)
  (folder,) = tmp_path.glob('failure-*')
  assert (folder / 'failure.json').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_the_death_of_a_process_ends_the_others_who_say_which_it_was(
  data_dir, tmp_path, victim
):
  flags = [['', ''], ['', '']]
  flags[0][victim], flags[1][victim] = '--signal=9', '--signal_at=5'
  started = launch(
    data_dir, tmp_path, *map(tuple, flags), devices=2, processes=2
  )
  ended = wait(started)
  assert ended[victim][0] == -9
  code, said = ended[1 - victim]
  assert f'process {victim} of 2 (' in said and 'has died' in said
  # JAX aborts a process that loses the coordinator; we are mostly faster.
  assert code == 75 or (victim == 0 and code == -signal.SIGABRT)


@pytest.mark.slow
def test_the_failure_of_a_process_is_told_by_all(data_dir, tmp_path):
  flag = ('', '--config.data.dir=/nowhere')
  ended = wait(launch(data_dir, tmp_path, flag, devices=2, processes=2))
  assert [code for code, _ in ended] == [2, 2], ended
  assert all('no data set at /nowhere' in said for _, said in ended)


# Without processes: two devices of this one.


def test_a_batch_is_laid_out_process_after_process():
  mesh = parallel.make_mesh()
  assert list(mesh.devices) == sorted(
    jax.devices(), key=lambda d: (d.process_index, d.id)
  )
  batch = parallel.put_batch(mesh, {'index': np.arange(6)})
  for shard in batch['index'].addressable_shards:
    first = 3 * list(mesh.devices).index(shard.device)
    np.testing.assert_array_equal(shard.data, np.arange(first, first + 3))


def test_a_mesh_may_be_of_the_first_devices_only():
  assert list(parallel.make_mesh(1).devices) == list(
    parallel.make_mesh().devices[:1]
  )
