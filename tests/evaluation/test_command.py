"""The command, killed and started again."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mgjax import models
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.setup import network
from mgjax.step import train_state


def start(workdir, data_dir):
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'mgjax.evaluate', f'--workdir={workdir}'),
      '--config=configs/moving_digits.py:size=tiny',
      f'--config.data.dir={data_dir}',
      '--config.eval.num_views=20',
      '--config.eval.batch_size=2',
      '--config.data.prefetch_batches=1',
      '--config.eval.save_every_s=0.001',
      '--allow_config_change',  # The folder does not say whose it is.
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ,
  )


@pytest.mark.slow
def test_a_killed_evaluation_is_resumed_bit_for_bit(
  tiny_config, data_dir, tmp_path
):
  """640 batches; killed twice on the way."""
  model = network.model(tiny_config)
  state = train_state.create_state(
    model,
    network.optimizer(tiny_config),
    jax.random.key(0),
    models.example_video(model, tiny_config.data.num_frames),
  )
  results = []
  for name, kills in (('whole', []), ('killed', [40, 300])):
    workdir = tmp_path / name
    workdir.mkdir()
    checkpoints = Checkpoints(workdir, Keep(newest=3, best=1))
    checkpoints.save(state, 7, {})
    checkpoints.close()
    for after in kills:
      process = start(workdir, data_dir)
      wait_for_batch(process, workdir / 'eval.partial.npz', after)
      process.send_signal(signal.SIGKILL)
      process.communicate()
      assert not (workdir / 'eval.json').exists()
    process = start(workdir, data_dir)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    result = json.loads((workdir / 'eval.json').read_text())
    assert result['num_scored'] == result['num_videos'] == 64
    assert result['num_views'] == 20 and result.pop('seconds') > 0
    results.append(result)
    left = {path.name for path in workdir.iterdir()}
    assert left == {'checkpoints', 'eval.json', 'eval.png'}
  assert results[0] == results[1]


def wait_for_batch(process, path: pathlib.Path, number: int) -> None:
  while process.poll() is None:
    if path.exists():
      with np.load(path) as file:
        if file['num_batches'] >= number:
          return
    time.sleep(0.005)
  raise AssertionError(process.communicate()[1])
