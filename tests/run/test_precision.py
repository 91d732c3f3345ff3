"""bfloat16 computes; float32 remembers."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.config import fields
from mgjax.data import moving_digits
from mgjax.setup import network
from mgjax.step import train_state, train_step

ROOT = pathlib.Path(__file__).parents[2]


def test_all_but_the_activations_is_float32():
  model = models.build(
    'slow', num_classes=4, dropout=0.5, dtype='bfloat16', blocks=(1,), width=4
  )
  tx = network.optimizer(fields.base())
  video = jnp.zeros((1, 2, 16, 16, 3))
  state = jax.eval_shape(
    lambda: train_state.create_state(model, tx, jax.random.key(0), video)
  )
  step = train_step.make_train_step(
    model, tx, mean=(0.45,) * 3, std=(0.225,) * 3
  )
  spec = jax.ShapeDtypeStruct
  batch = {
    'video': spec((8, 2, 16, 16, 3), np.uint8),
    'label': spec((8,), np.int32),
    'flip': spec((8,), bool),
  }
  args = batch, spec((), np.float32), spec((), np.int32)
  after, metrics = jax.eval_shape(step, state, *args, jax.random.key(0))
  for leaf in jax.tree.leaves((after.replace(step=None), metrics)):
    assert leaf.dtype == jnp.float32
  # And the activations are not.
  jaxpr = str(jax.make_jaxpr(step)(state, *args, jax.random.key(0)))
  assert 'bf16[8,2,8,8,4]' in jaxpr


def loss_curve(workdir, *overrides):
  """Loss of the demo at half the baseline's epochs: means over 80 steps."""
  command = [
    *(sys.executable, '-m', 'mgjax.train', f'--workdir={workdir}'),
    '--config=configs/moving_digits.py:grid=both',
    '--config.grid.epoch_factor=0.5',
    *overrides,
  ]
  subprocess.run(command, cwd=ROOT, check=True)  # Its words tell of errors.
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  losses = [row['loss'] for row in rows if 'loss' in row]  # Every tenth step.
  return np.convolve(losses, np.ones(8) / 8, 'valid')


@pytest.mark.slow
def test_the_loss_curve_of_bfloat16_is_within_the_noise_of_float32(tmp_path):
  """On the demo. Noise: the distance of two runs that differ in their seed."""
  data_dir = tmp_path / 'data'
  moving_digits.prepare(data_dir, 'motion', num_workers=2, progress=False)
  data = f'--config.data.dir={data_dir}'
  one = loss_curve(tmp_path / 'one', data)
  other = loss_curve(tmp_path / 'other', data, '--config.seed=1')
  half = loss_curve(tmp_path / 'half', data, '--config.model.dtype=bfloat16')
  assert len(one) == len(other) == len(half) >= 30
  # It learns, so that there is a curve to compare.
  assert one[-1] < 0.85 * one[0]
  assert np.abs(half - one).mean() < np.abs(other - one).mean()
