r"""Writes a run's network for other programs, in a folder that explains itself.

python -m mgjax.export --workdir=runs/digits --to=stablehlo --out=digits

The folder gets the weights, mgjax_config.json (the run's settings), labels.json
(names of the classes, where they are known) and README.md: data set, licence,
accuracy and its record, the input, and how to use it. --to is one of

  stablehlo    a program that JAX alone loads (jax.export), for CPUs, NVIDIA
               GPUs and TPUs
  onnx         a program for onnxruntime and its like; needs
               pip install 'mgjax[onnx]'
  safetensors  weights by their paths in Flax's tree
  huggingface  what transformers loads: VideoMAE, V-JEPA 2, ViViT, TimeSformer
  pyslowfast   the .pyth of SlowFast, Slow, C2D and I3D; pytorchvideo the same
               under its names

Programs take uint8 RGB clips [batch, T, H, W, 3] of the size of the run's
evaluation (config.eval) and normalise them. They give logits, and the scores
that an evaluation gives. The batch is any, unless --batch says it.

What was written is read again, and its logits of random clips are compared with
those of the network in float32. They must agree to 1e-6 of the largest
(stablehlo) or 1e-5; else nothing is written.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import sys

from absl import flags

from mgjax import cli, exporting
from mgjax.config import saved
from mgjax.run import run_folder


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  run_folder.define_weights_flags(values)
  flag('to', exporting.FORMATS, None, 'What is written.')
  flag('out', str, None, 'Folder that gets it: a new one, or an empty one.')
  text = 'Clips that a program takes at once; by default any number.'
  flag('batch', int, None, text, 1)
  text = "Export though other settings than those of eval are not the run's."
  flag('allow_config_change', bool, False, text)


def find_config(values: flags.FlagValues, arguments: list[str]):
  """The run's own config."""
  del arguments
  return saved.read_saved(run_folder.run_of_weights(values))


if __name__ == '__main__':
  sys.exit(
    cli.run('mgjax.exporting.command', define_flags, find_config=find_config)
  )
