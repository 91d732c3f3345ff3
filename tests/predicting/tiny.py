"""Small videos, and the command `predict` in this process."""

import numpy as np

from mgjax import cli, predict
from mgjax.data import digits
from mgjax.predicting import command


def encode(seed, num_frames=16):
  rng = np.random.default_rng(seed)
  frames = rng.integers(0, 255, (num_frames, 6, 8, 3), np.uint8)
  # Large pixels survive the encoder.
  return digits.encode(frames.repeat(8, 1).repeat(8, 2))


def run(capsys, folder, *argv, workdir='--workdir={}/out'):
  code = cli.run(
    command.main,
    predict.define_flags,
    ['predict', workdir.format(folder), *map(str, argv)],
    arguments='VIDEO',
    find_config=predict.find_config,
  )
  return code, capsys.readouterr()
