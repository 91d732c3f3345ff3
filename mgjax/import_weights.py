r"""Turns weights of other frameworks into a checkpoint, and back.

python -m mgjax.import_weights SLOWFAST_8x8_R50.pkl --model=slowfast \
  --out=weights/slowfast
python -m mgjax.import_weights resnet50.pth --new_head \
  --config=kinetics400:model=i3d --out=weights/i3d
python -m mgjax.import_weights runs/k400 --to=pyslowfast --out=k400.pyth
python -m mgjax.import_weights hf://ORGANISATION/NAME --out=weights/videomae
python -m mgjax.import_weights runs/vit --to=huggingface --out=vit

Reads files of PySlowFast (.pyth, and caffe2's .pkl), pytorchvideo, mmaction2
and torchvision or timm (image networks, inflated to video); VideoMAE and
V-JEPA 2 of their authors; torchvision's MViTv2, VideoPrism's .npz; and of
Hugging Face VideoMAE, V-JEPA 2, ViViT and TimeSformer (a folder with a
config.json; or hf://, which is downloaded), saved by torch or as .safetensors.
PyTorch is not needed and nothing in a file is executed. Every tensor must find
its place: anything left over on either side ends the import with exit code 2.
The network then runs once: its logits must be those of the file, where mgjax
wrote it, or of --logits, and finite in any case. --model=NAME is short for
--config=kinetics400:model=NAME; PySlowFast's .pyth and folders of Hugging Face
name their network themselves, in the configuration that they carry. Options
that a file does not show are listed as unverified, the licence where names tell
whose the weights are.

The folder that it writes is one for mgjax.evaluate and mgjax.predict
(--workdir) and for training from it (--config.init_from).
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import pathlib
import sys
from typing import Any

import ml_collections
from absl import flags

from mgjax import cli, exporting
from mgjax.config import config_file, saved
from mgjax.errors import ConfigError
from mgjax.weights import facts, hub, hugging_face, pyslowfast_cfg, torch_files
from mgjax.weights.facts import Fact

# Classes of Something-Something V2, which no other data set has.
_SSV2_CLASSES = 174


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('model', str, None, 'Short for --config=kinetics400:model=NAME.')
  text = (
    'A second file, with the attentive probe and classifier that V-JEPA 2 '
    'keeps apart from its encoder.'
  )
  flag('probe', str, None, text)
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
    'a run. mgjax.export writes what its users must know beside it.'
  )
  flag('to', exporting.FRAMEWORKS, None, text)


def find_config(values: flags.FlagValues, arguments: list[str]):
  """The config where --config is not given."""
  if values.model:
    return f'kinetics400:model={values.model}'
  if values.to and arguments:
    return saved.read_saved(pathlib.Path(arguments[0]))
  if len(arguments) == 1:
    known = _read_facts(hub.local(arguments[0]))
    if known:
      return _config_of(known)
  raise ConfigError(
    'the model is not said; give --model=NAME (such as slowfast, slow, i3d, '
    'c2d, videomae_b) or --config=FILE.py.'
  )


def _config_of(known: list[Fact]) -> ml_collections.ConfigDict:
  """The config of the network that a file says to be."""
  name = known[0].value
  if name in pyslowfast_cfg.NETWORKS:
    config = config_file.load(f'kinetics400:model={name}')
  else:
    # Clips, views and pixels are those of the family's recipe; sizes of the
    # network are then those of the file.
    config = config_file.load(_recipe_of({f.field: f.value for f in known}))
  side = config.data.crop_px
  facts.apply(config, known)
  if 'patch_px' in config.model:
    config.grid.frames_multiple = config.model.get('tubelet_frames', 1)
    config.grid.side_multiple = config.model.patch_px
  crop = config.data.crop_px
  if crop != side:  # Frames are to crops what they are in the recipe.
    config.data.jitter_px = tuple(
      px * crop // side for px in config.data.jitter_px
    )
    config.eval.short_side_px = config.eval.short_side_px * crop // side
  return config


def _recipe_of(said: dict[str, Any]) -> str:
  """The recipe of the video transformer that a configuration describes.

  Args:
    said: Values of fields, by name.
  """
  network = {
    'sincos': 'videomae_b',
    'rope': 'vjepa2_l',
    'learned': 'vivit_b',
    None: 'timesformer_b',
  }[said.get('model.positions')]
  is_ssv2 = said.get('model.num_classes') == _SSV2_CLASSES
  return f'{"ssv2" if is_ssv2 else "kinetics400"}:model={network}'


def _read_facts(path: pathlib.Path) -> list[Fact]:
  """What the configuration in a file, or beside it, says; [] without one."""
  folder = hugging_face.folder_of(path)
  if folder and (known := hugging_face.read_facts(folder)):
    return known
  try:
    content = torch_files.load(hugging_face.files_of(path)[0])
    cfg = pyslowfast_cfg.read(content.get('cfg'))
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
