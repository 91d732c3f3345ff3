"""The benchmark against PyTorch: its networks, its table, its flags."""

import functools
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import jax_side, step_time
from mgjax import cli
from mgjax.cpu import allocator

TORCH_PYTHON = os.environ.get('MGJAX_TORCH_PYTHON')
PYTHON = sys.executable
NUM_CLASSES, FRAMES = 400, 8

# Loads the weights, and saves the logits of the clips, all in float64.
TORCH_LOGITS = """
import sys
import numpy as np
import torch
from experiments.bench import torch_models
name, num_classes, frames, folder = sys.argv[1:]
variables = dict(np.load(f'{folder}/variables.npz'))
model = torch_models.build(
  name, num_classes=int(num_classes), frames=int(frames),
  crop_px=variables['video'].shape[2])
video = torch.from_numpy(variables.pop('video')).double()
torch_models.load(model, variables)
with torch.no_grad():
  logits = model.double().eval()(video.movedim(-1, 1))
np.save(f'{folder}/logits.npy', logits.numpy())
print(sum(p.numel() for p in model.parameters()))
"""


def random_statistics(variables):
  """Running statistics that are no identity."""
  rng = np.random.default_rng(1)
  draw = lambda x: x + rng.uniform(0.1, 0.5, x.shape).astype(np.float32)
  statistics = variables.get('batch_stats', {})
  return variables | {'batch_stats': jax.tree.map(draw, statistics)}


@pytest.mark.slow
@pytest.mark.skipif(
  not TORCH_PYTHON,
  reason='MGJAX_TORCH_PYTHON names no interpreter with PyTorch.',
)
@pytest.mark.parametrize(
  'name,num_parameters',
  [  # As in golden/forward: the references' own, with 400 classes.
    ('slowfast', 34_566_488),
    ('slow', 32_454_096),
    ('i3d', 28_043_472),
    ('tsn', 24_327_632),
    ('tam', 23_903_918 + 226 * 2049),  # There 174 classes.
    ('blvnet_tam', 25_483_216),
    ('videomae_s', 22_033_936),
  ],
)
def test_the_torch_network_is_the_same_function(name, num_parameters, tmp_path):
  rng = np.random.default_rng(0)
  # Hugging Face's takes squares only.
  width = 48 if name == 'videomae_s' else 40
  video = rng.normal(size=(2, FRAMES, 48, width, 3)).astype(np.float32)
  build = functools.partial(
    jax_side.network_of, name, video.shape[1:4], num_classes=NUM_CLASSES
  )
  variables = random_statistics(
    jax_side.random_variables(build(dtype='float32'), video)
  )
  np.savez(
    tmp_path / 'variables.npz', video=video, **jax_side.by_name(variables)
  )
  result = subprocess.run(
    [TORCH_PYTHON, '-c', TORCH_LOGITS]
    + [name, str(NUM_CLASSES), str(FRAMES), str(tmp_path)],
    cwd=pathlib.Path(__file__).parents[3],
    capture_output=True,
    text=True,
  )
  assert not result.returncode, result.stderr
  assert int(result.stdout) == num_parameters
  with jax.enable_x64(True):
    model = build(dtype='float64')
    to_double = lambda x: jnp.asarray(x, jnp.float64)
    ours = jax.jit(model.apply)(
      jax.tree.map(to_double, variables), to_double(video)
    )
  theirs = np.load(tmp_path / 'logits.npy')
  # Both in float64: only rounding differs.
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * np.std(theirs))


def entry(model='tsn', device='cpu', peak_tflops=None, **wall_s):
  """A record whose sides took these seconds per step, and twice of the CPU."""
  return {
    'model': model,
    'device': device,
    'dtype': 'float32',
    'batch': 2,
    'crop_px': 112,
    'frames': 8,
    'turns': 3,
    'turn_steps': 2,
    'peak_tflops': peak_tflops,
    'forward_macs': 10**10,
    'load_average': [1.0, 2.0],
    'environment': {
      'num_cpus': 2,
      'cpu': 'a processor',
      'device': 'an accelerator',
      'jax': '1',
      'torch': '2',
      'torch_threads': 2,
    },
    'sides': {
      side: {
        'wall_s': seconds,
        'cpu_s': [2 * s for s in seconds[:1]],
        'peak_bytes': 2**30,
      }
      for side, seconds in wall_s.items()
    },
  }


def test_records_of_one_launch_say_so_and_have_no_interval():
  table = step_time.table([entry(JAX=[0.1, 0.3, 9.0], torch=[0.6, 0.5, 0.7])])
  assert table.splitlines()[-1] == ('| TSN-R50 | 8 | 300 | 600 | 0.50 | 0.17 |')
  assert '1 launch, medians' in table
  assert "which has glibc's defaults" in table
  assert '2 cores of a processor' in table
  assert 'load average 1.0 to 2.0' in table


def test_ratios_of_several_launches_have_an_interval():
  one = entry(JAX=[0.2, 0.2, 9.0], torch=[0.4])
  other = entry(JAX=[0.1], torch=[0.1])
  several = {**one, 'launches': [one, other]}
  # Log ratios -log 2 and 0: their mean, and Student's 12.71 standard errors.
  low, high = (
    math.exp(math.log(0.5) / 2 + sign * 12.706 * math.log(2) / 2)
    for sign in (-1, 1)
  )
  row = step_time.table([several]).splitlines()[-1]
  assert row.startswith(
    f'| TSN-R50 | 8 | 141 | 200 | 0.71 [{low:.2f}, {high:.2f}] |'
  )
  # Other circumstances, another table.
  assert step_time.table([several, one]).count('| model |') == 2


def test_on_gpus_the_table_shows_memory_and_the_share_of_the_peak_rate():
  # 6 x 10^10 x 2 operations in 0.1 s are 1.2 TFLOP/s.
  table = step_time.table(
    [entry(device='gpu', peak_tflops=2.4, JAX=[0.1], torch=[0.2])]
  )
  assert table.splitlines()[-1] == (
    '| TSN-R50 | 8 | 100 | 200 | 0.50 | 1.00 | 1.00 | 50 | 25 |'
  )


def test_each_device_has_a_table_of_its_own_with_models_in_order():
  times = {'JAX': [0.1], 'torch': [0.1]}
  table = step_time.table(
    [
      entry('tsn', **times),
      entry('slowfast', **times),
      entry('tsn', device='gpu', **times),
    ]
  )
  rows = [s.split(' | ')[0] for s in table.splitlines() if '-R50' in s]
  assert rows == ['| SlowFast-R50', '| TSN-R50', '| TSN-R50']
  assert table.count('| model |') == 2


@pytest.mark.parametrize(
  'flag,message',
  [
    ('--models=tsn,slowfats', 'accepted are slowfast,'),
    ('--torch=eager', 'accepted are default,'),
    ('--batch=0', 'it must be 1 or more'),
    ('--torch_python=/nowhere/python', 'cannot import torch'),
  ],
)
def test_wrong_flags_end_with_what_is_accepted(flag, message, capsys):
  argv = ['step_time', flag]
  code = cli.run(
    step_time.main, step_time.define_flags, argv, takes_config=False
  )
  (line,) = capsys.readouterr().err.splitlines()
  assert code == 2
  assert flag.partition('=')[0] in line and message in line


# Answers like experiments/bench/jax_worker.py and torch_worker.py. The k-th
# launch takes k times the seconds.
FAKE_WORKER = """#!{python}
import json, os, sys
if sys.argv[1] == '-c':
  sys.exit()
worker = sys.argv[2].rpartition('.')[-1]
with open({log!r}, 'a+') as file:
  file.write(worker + chr(10))
  file.seek(0)
  launch = file.read().split().count(worker)
for line in sys.stdin:
  request = json.loads(line)
  if 'load' not in request:
    answer = {{'wall_s': 1.0 * launch * request['steps'], 'cpu_s': 1.0,
              'losses': [6.0] * request['steps'], 'peak_bytes': 1}}
    if worker == 'torch_worker':
      answer |= {{'wall_s': 2.0 * request['steps'], 'peak_bytes': None,
                 'losses': [{loss}] * request['steps']}}
  elif worker == 'torch_worker':
    answer = {{'versions': {{'torch': os.environ['MALLOC_MMAP_MAX_']}},
              'threads': 1, 'parameters': {parameters}}}
  else:
    assert 'MALLOC_MMAP_MAX_' not in os.environ
    answer = {{'environment': {{'num_cpus': 2, 'cpu': 'x', 'jax': {jax!r}}},
              'parameters': 5, 'forward_macs': 7, 'compile_s': 1.0,
              'optim': {{}}}}
  print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def measure(tmp_path, monkeypatch, capsys):
  """Runs the benchmark with processes that are fakes.

  Returns its exit code, the record, what it said, and which workers started.
  """

  def run(*arguments, parameters=5, loss=6.0, jax='1'):
    fake, log = tmp_path / 'python', tmp_path / 'log'
    fake.write_text(
      FAKE_WORKER.format(
        python=PYTHON,
        log=str(log),
        parameters=parameters,
        loss=loss,
        jax=jax,
      )
    )
    fake.chmod(0o755)
    log.write_text('')
    monkeypatch.setattr(step_time.sys, 'executable', str(fake))
    argv = ['step_time', '--models=tsn', '--turns=3', '--turn_steps=4']
    argv += [f'--torch_python={fake}', f'--records={tmp_path}', *arguments]
    code = cli.run(
      step_time.main, step_time.define_flags, argv, takes_config=False
    )
    path = tmp_path / 'cpu-float32-tsn.json'
    entry = json.loads(path.read_text()) if path.exists() else None
    return code, entry, capsys.readouterr(), log.read_text().split()

  return run


def test_a_record_has_the_seconds_of_a_step_of_every_turn(measure):
  code, entry, said, started = measure('--launches=2')
  assert not code
  assert sorted(started) == ['jax_worker'] * 2 + ['torch_worker'] * 2
  first, second = entry['launches']
  assert first['sides']['JAX']['wall_s'] == [1.0] * 3
  assert second['sides']['JAX']['wall_s'] == [2.0] * 3
  assert first['sides']['torch']['wall_s'] == [2.0] * 3
  assert first['sides']['torch channels-last']['cpu_s'] == [0.25] * 3
  assert list(first['sides']) == ['JAX', *step_time._TORCH.values()]
  # The mean of 1 and 2 seconds, over 2.
  row = said.out.splitlines()[-1]
  assert row.startswith('| TSN-R50 | 8 | 1414 | 2000 | 2000 | 2000 | 0.71 [')


def test_pytorch_has_the_allocator_settings_of_mgjax(measure, monkeypatch):
  code, entry, said, _ = measure('--launches=1')
  assert not code
  assert entry['environment']['torch'] == '0'  # As its process has it.
  assert allocator.environment().items() <= entry['environment'].items()
  assert 'which keeps freed memory as JAX does' in said.out


def test_a_stopped_run_goes_on_and_a_finished_one_is_shown(measure):
  measure('--launches=1')
  code, entry, _, started = measure('--launches=3')
  assert not code
  assert sorted(started) == ['jax_worker'] * 2 + ['torch_worker'] * 2
  assert len(entry['launches']) == 3
  code, again, said, started = measure('--launches=3')
  assert not code and not started
  assert again == entry
  assert '3 launches' in said.out


@pytest.mark.parametrize(
  'arguments,changes,message',
  [
    (('--turns=2',), {}, 'is a record of other turns;'),
    (('--torch=default',), {}, 'is a record of other torch;'),
    ((), {'jax': '2'}, 'is a record of other environment;'),
  ],
)
def test_launches_of_one_record_are_of_the_same(
  measure, arguments, changes, message
):
  _, entry, _, _ = measure('--launches=1')
  code, unchanged, said, _ = measure('--launches=2', *arguments, **changes)
  assert code == 2
  assert message in said.err and said.err.count('\n') == 1
  assert unchanged == entry


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'parameters': 6}, '5 parameters, in PyTorch 6'),
    ({'loss': 6.2}, 'the first losses differ'),
    ({'parameters': '1 / 0'}, 'torch_worker ended'),
  ],
)
def test_sides_that_do_not_do_the_same_are_an_error(measure, changes, message):
  code, entry, said, _ = measure(**changes)
  assert code == 1
  assert message in said.err
  assert not entry


@pytest.mark.slow
@pytest.mark.skipif(
  not TORCH_PYTHON,
  reason='MGJAX_TORCH_PYTHON names no interpreter with PyTorch.',
)
def test_both_sides_take_the_same_steps(tmp_path):
  # Batch norm of fewer values would make much of rounding.
  arguments = ['--models=tsn', '--batch=2', '--frames=4', '--crop_px=64']
  arguments += ['--turns=1', '--turn_steps=1', '--torch=default,channels_last']
  arguments += [f'--torch_python={TORCH_PYTHON}', f'--records={tmp_path}']
  module = 'experiments.bench.step_time'
  subprocess.run(
    [sys.executable, '-m', module, *arguments, '--launches=2'],
    check=True,
    cwd=pathlib.Path(__file__).parents[3],
  )
  entry = json.loads((tmp_path / 'cpu-float32-tsn.json').read_text())
  for one in entry['launches']:
    # Of equal weights; the steps that follow make more of rounding.
    losses = [side['first_losses'][0] for side in one['sides'].values()]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
