r"""Turns weights of other frameworks into a checkpoint, and back.

python -m mgjax.import_weights SLOWFAST_8x8_R50.pkl --model=slowfast \
  --out=weights/slowfast
python -m mgjax.import_weights resnet50.pth --new_head \
  --config=kinetics400:model=i3d --out=weights/i3d
python -m mgjax.import_weights runs/k400 --to=pyslowfast --out=k400.pyth

Reads files of PySlowFast (.pyth, and caffe2's .pkl), pytorchvideo, mmaction2
and torchvision or timm (image networks, inflated to video), saved by torch or
as .safetensors; PyTorch is not needed and nothing in a file is executed. Every
tensor must find its place: anything left over on either side ends the import
with exit code 2. The network then runs once: its logits must be those of the
file, where mgjax wrote it, or of --logits, and finite in any case. --model=NAME
is short for --config=kinetics400:model=NAME; PySlowFast's .pyth name
their network themselves, in the configuration that they carry. Options that a
file does not show are listed as unverified.

The folder that it writes is one for mgjax.evaluate and mgjax.predict
(--workdir) and for training from it (--config.init_from).
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import pathlib
import sys

from absl import flags

from mgjax import cli
from mgjax.config import config_file, saved
from mgjax.errors import ConfigError
from mgjax.weights import pyslowfast_cfg, torch_files

# Frameworks that weights can be written for.
EXPORTS = ('pyslowfast', 'pytorchvideo')


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('model', str, None, 'Short for --config=kinetics400:model=NAME.')
  flag(
    'out', str, None, 'Folder that gets the checkpoint; with --to, the file.'
  )
  text = "Start with a new classifier instead of the file's."
  flag('new_head', bool, False, text)
  text = (
    'Start with new temporal aggregations and temporal layers: image networks '
    'have none.'
  )
  flag('new_temporal', bool, False, text)
  text = 'Start with new non-local blocks: image networks have none.'
  flag('new_nonlocal', bool, False, text)
  text = (
    'An .npz of what the reference makes of some clips, to be compared: '
    "'video' [B, T, H, W, 3], normalised, and 'logits' [B, K]."
  )
  flag('logits', str, None, text)
  text = (
    'What becomes of 2-D kernels in a 3-D network: the same in every frame, '
    'or only in the middle one.'
  )
  flag('inflate', ('repeat', 'center'), 'repeat', text)
  text = (
    'Write a checkpoint for another framework: the argument is the folder of '
    'a run.'
  )
  flag('to', EXPORTS, None, text)


def find_config(values: flags.FlagValues, arguments: list[str]):
  """The config where --config is not given."""
  if values.model:
    return f'kinetics400:model={values.model}'
  if values.to and arguments:
    return saved.read_saved(pathlib.Path(arguments[0]))
  if len(arguments) == 1:
    facts = _read_facts(pathlib.Path(arguments[0]))
    if facts:
      config = config_file.load(f'kinetics400:model={facts[0].value}')
      pyslowfast_cfg.apply(config, facts)
      return config
  raise ConfigError(
    'the model is not said; give --model=NAME (such as slowfast, slow, i3d, '
    'c2d) or --config=FILE.py.'
  )


def _read_facts(path: pathlib.Path) -> list[pyslowfast_cfg.Fact]:
  """What the configuration in a file says; [] where there is none."""
  try:
    cfg = pyslowfast_cfg.read(torch_files.load(path).get('cfg'))
  except ConfigError:
    return []  # The import itself will say what is wrong with it.
  try:
    return pyslowfast_cfg.facts(cfg)
  except ConfigError as error:
    raise ConfigError(f'{path}: {error}') from error


if __name__ == '__main__':
  sys.exit(
    cli.run(
      'mgjax.weights.command',
      define_flags,
      arguments='FILE',
      find_config=find_config,
    )
  )
