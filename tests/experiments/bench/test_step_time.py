"""The benchmark against PyTorch: its networks, its table, its flags."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import jax_side, step_time
from mgjax import cli
from mgjax.config import fields

TORCH_PYTHON = os.environ.get('MGJAX_TORCH_PYTHON')
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


def test_ratios_are_of_medians():
  table = step_time.table([entry(JAX=[0.1, 0.3, 9.0], torch=[0.6, 0.5, 0.7])])
  assert table.splitlines()[-1] == ('| TSN-R50 | 8 | 300 | 600 | 0.50 | 0.17 |')
  assert 'load average 1.0 to 2.0' in table


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


# Answers like experiments/bench/torch_worker.py, without PyTorch.
FAKE_WORKER = """#!{python}
import json, sys
for line in sys.stdin:
  request = json.loads(line)
  if 'load' in request:
    answer = {{'versions': {{'torch': '0'}}, 'threads': 1,
              'parameters': {parameters}}}
  else:
    answer = {{'wall_s': 2.0 * request['steps'], 'cpu_s': 1.0,
              'losses': [{loss}] * request['steps'], 'peak_bytes': None}}
  print(json.dumps(answer), flush=True)
"""


class FakeSide:
  """What `measure` needs of `JaxSide`; nothing is compiled."""

  def __init__(self, name, args, *, frames, num_classes, learning_rate):
    self.variables = {'params': {'a': np.zeros(5)}, 'batch_stats': {}}
    self.clips = {'video': np.zeros(1), 'label': np.zeros(1)}
    self.macs, self.compile_s, self.frames = 7, 1.0, frames
    self.optim = fields.base().optim

  def run(self, steps):
    return {
      'wall_s': 1.0 * steps,
      'cpu_s': 1.0,
      'losses': [6.0] * steps,
      'peak_bytes': 1,
    }


def fake_measure(tmp_path, monkeypatch, *, parameters=5, loss=6.0):
  worker = tmp_path / 'python'
  worker.write_text(
    FAKE_WORKER.format(python=sys.executable, parameters=parameters, loss=loss)
  )
  worker.chmod(0o755)
  monkeypatch.setattr(jax_side, 'JaxSide', FakeSide)
  args = types.SimpleNamespace(
    torch_python=str(worker),
    torch=['default', 'channels_last'],
    device='cpu',
    dtype='float32',
    batch=2,
    frames=8,
    crop_px=32,
    turns=3,
    turn_steps=4,
    peak_tflops=None,
  )
  return step_time.measure('tsn', args)


def test_a_record_has_the_seconds_of_a_step_of_every_turn(
  tmp_path, monkeypatch
):
  result = json.loads(json.dumps(fake_measure(tmp_path, monkeypatch)))
  assert result['sides']['JAX']['wall_s'] == [1.0] * 3
  assert result['sides']['torch']['wall_s'] == [2.0] * 3
  assert result['sides']['torch channels-last']['cpu_s'] == [0.25] * 3
  row = step_time.table([result]).splitlines()[-1]
  assert row.startswith('| TSN-R50 | 8 | 1000 | 2000 | 2000 | 0.50 | 0.50 |')


def test_two_different_networks_are_an_error(tmp_path, monkeypatch):
  with pytest.raises(RuntimeError, match='5 parameters, in PyTorch 6'):
    fake_measure(tmp_path, monkeypatch, parameters=6)
  with pytest.raises(RuntimeError, match='first losses differ'):
    fake_measure(tmp_path, monkeypatch, loss=6.2)
