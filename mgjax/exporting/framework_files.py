"""Weights as the file, or the folder, that another framework loads.

The names are those by which mgjax/weights reads such files; a file that is
written here is one that it can read.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from mgjax import files, models
from mgjax.errors import ConfigError
from mgjax.run import checkpoint, run_folder
from mgjax.setup import grids, network, planning
from mgjax.weights import (
  checks,
  hugging_face,
  hugging_face_files,
  matching,
  naming,
  pyslowfast_cfg,
  safetensors_files,
  torch_files,
)


class Counterpart(NamedTuple):
  """What a framework has for a network.

  Attributes:
    form: Key of naming.FORMATS.
    names: Of its tensors, with what each has of our variables.
    config: transformers' config.json; {} of other frameworks.
  """

  form: str
  names: dict[str, tuple[naming.Part, ...]]
  config: dict[str, Any]


def find(
  config: ml_collections.ConfigDict, to: str, labels: Sequence[str] = ()
) -> Counterpart:
  """Finds what a framework has for a run's network.

  Args:
    config: The run's.
    to: One of exporting.FRAMEWORKS.
    labels: Names of the classes; (): they have none.

  Raises:
    ConfigError: It has no such network; names the option.
  """
  theirs, form = {}, to
  if to == 'huggingface':
    theirs = hugging_face_files.config_of(
      config.model.to_dict(),
      crop_px=config.eval.crop_px,
      num_frames=config.data.num_frames,
      labels=labels,
    )
    form = f'{to}_{theirs["model_type"]}'
  names = naming.names(form, shapes(config), config.model.name)
  if not names:
    raise ConfigError(f'--to={to} has no network like {config.model.name!r}')
  return Counterpart(form, names, theirs)


def shapes(config: ml_collections.ConfigDict) -> dict:
  """Shapes of a network's 'params' and 'batch_stats'."""
  model = network.model(config)
  video = models.example_video(model, config.data.num_frames)
  return jax.eval_shape(model.init, jax.random.key(config.seed), video)


def write(
  config: ml_collections.ConfigDict,
  counterpart: Counterpart,
  variables: dict,
  out: pathlib.Path,
) -> tuple[str, ...]:
  """Writes variables as a framework's file, or folder.

  Either has the logits of a clip, by which an import checks itself.

  Args:
    config: The run's.
    counterpart: What `find` has found.
    variables: The network's.
    out: Of transformers, a folder, which gets config.json and
      model.safetensors. Else a file, {'model_state': {name: tensor}}; that of
      PySlowFast has its configuration, too ('cfg').

  Returns:
    What the user should know, in lines.

  Raises:
    OSError: The disk refuses it.
  """
  flat = {
    path: np.asarray(array, np.float32)
    for path, array in traverse_util.flatten_dict(variables).items()
  }
  form = naming.FORMATS[counterpart.form]
  state = {
    name: matching.joined(parts, flat, form.leading.get(name))
    for name, parts in counterpart.names.items()
  }
  for name in form.of_frames:
    state[name] = state[name].squeeze(2)
  check = checks.make(network.model(config), variables, config.data.num_frames)
  if theirs := counterpart.config:
    _write_folder(out, theirs, state, check)
    return _eps_notes(config, variables, theirs, check)
  for name in [n for n in state if n.endswith('.running_var')]:
    counter = name.removesuffix('running_var') + 'num_batches_tracked'
    state[counter] = np.zeros((), np.int64)
  out.parent.mkdir(parents=True, exist_ok=True)
  content = {'model_state': state, checks.KEY: check}
  if counterpart.form == 'pyslowfast':
    content |= _cfg_entry(config)
  torch_files.save(out, content)
  if counterpart.form == 'pyslowfast' and 'cfg' not in content:
    blocks = tuple(config.model.blocks)
    return (
      f'PySlowFast has no entry for model.blocks={blocks}: its table of blocks '
      'by depth needs one',
    )
  return ()


def _cfg_entry(config: ml_collections.ConfigDict) -> dict[str, str]:
  """The configuration of PySlowFast; {} where it has no such network."""
  data = config.data
  cfg = pyslowfast_cfg.of_network(
    config.model.to_dict(),
    {
      'NUM_FRAMES': data.num_frames,
      'SAMPLING_RATE': data.stride_frames,
      'TRAIN_CROP_SIZE': data.crop_px,
      'TEST_CROP_SIZE': config.eval.crop_px,
      'MEAN': list(data.mean),
      'STD': list(data.std),
    },
  )
  return {'cfg': cfg} if cfg else {}


def _write_folder(
  out: pathlib.Path, theirs: dict, state: dict, check: dict
) -> None:
  """Writes a folder as transformers' save_pretrained does."""
  out.mkdir(parents=True, exist_ok=True)
  safetensors_files.save(
    out / 'model.safetensors',
    state,
    {'format': 'pt', checks.KEY: checks.as_text(check)},
  )
  text = json.dumps(theirs, indent=2) + '\n'
  files.write_text(out / hugging_face.CONFIG, text)


def _eps_notes(
  config: ml_collections.ConfigDict, variables: dict, theirs: dict, check: dict
) -> tuple[str, ...]:
  """Says how logits differ where transformers has no option for an eps."""
  constants = hugging_face_files.constants(
    theirs['model_type'], config.model.layer_norm_eps
  )
  changed = {
    option: value
    for option, value in constants.items()
    if config.model[option] != value
  }
  if not changed or config.model.pool == 'first':
    return ()
  other = network.model(config).changed(**changed)
  logits = checks.make(other, variables, config.data.num_frames)['logits']
  difference = checks.difference(logits, check['logits'])
  return tuple(
    f'transformers has model.{option}={value}, the run '
    f'{config.model[option]}: logits differ by {difference:.1e} of the largest'
    for option, value in changed.items()
  )


def export(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  to: str,
  out: pathlib.Path,
) -> tuple[int, tuple[str, ...]]:
  """Writes a checkpoint for another framework, and nothing beside it.

  Args:
    config: The run's configuration.
    folder: Folder of the run, or of one of its checkpoints.
    to: One of exporting.FRAMEWORKS.
    out: What is written; see `write`.

  Returns:
    The number of tensors, and what the user should know, in lines.

  Raises:
    ConfigError: The format has no such network, nothing is in the folder, or
      the file exists.
  """
  if out.exists():
    raise ConfigError(f'--out={out} exists already; use another')
  planning.check_network(config, [grids.full_grid(config)])
  labels: list[str] = []
  for place in (folder, *folder.parents[:2]):
    if (place / run_folder.LABELS).exists():
      labels = run_folder.read_labels(place / run_folder.LABELS)
      break
  if len(labels) != config.model.num_classes:
    labels = []
  counterpart = find(config, to, labels)
  variables = checkpoint.load_variables(
    checkpoint.find(folder, 'argument'), {'batch_stats': {}, **shapes(config)}
  )
  try:
    notes = write(config, counterpart, variables, out)
  except OSError as error:
    raise ConfigError(f'--out={out}: {error.strerror}') from error
  return len(counterpart.names), notes
