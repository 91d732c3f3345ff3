"""Trains one of four short runs; prints the parameters' hash and norms as JSON.

Arguments: name of the run, folder of the data set, folder of the run.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np

from configs import moving_digits
from mgjax.run import launch
from tests import speck
from tests.run_state import final_state


def make_config(name: str):
  """Returns the settings of a run, without the folder of its data."""
  if name == 'multigrid':
    return moving_digits.get_config('grid=both,size=tiny')
  if name == 'tam':
    config = moving_digits.get_config('grid=short,size=tiny,model=tam')
    config.optim.lr_steps = (1,)
    config.optim.total_epochs = 2
    return config
  config = speck.get_config()
  if name == 'everything':
    config.optim.ema_decay = 0.9
    config.augment.mixup_alpha = 0.8
    config.train.micro_batches = 2
    config.norm.precise_batches = 2
    config.optim.schedule = 'cosine'
  return config


def main(name: str, data_dir: str, workdir: str) -> None:
  config = make_config(name)
  config.data.dir = data_dir
  launch.train(config, workdir)
  state = final_state(pathlib.Path(workdir))
  hashed = hashlib.sha256()
  norms = {}
  for path, value in sorted(
    (jax.tree_util.keystr(path), np.asarray(value))
    for path, value in jax.tree_util.tree_leaves_with_path(state['params'])
  ):
    hashed.update(path.encode() + value.tobytes())
    norms[path] = float(np.linalg.norm(value.astype(float)))
  print(
    json.dumps({'parameters': hashed.hexdigest(), 'norms': norms}), flush=True
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
