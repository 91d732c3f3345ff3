"""The command `export`: a checkpoint becomes a folder for other programs."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from flax import traverse_util

import mgjax
from mgjax import exporting, files
from mgjax.config import own
from mgjax.cpu import allocator
from mgjax.errors import ConfigError
from mgjax.exporting import (
  framework_files,
  model_card,
  onnx_file,
  origin,
  stablehlo,
)
from mgjax.hosts import parallel
from mgjax.predicting import command as predicting
from mgjax.run import checkpoint, run_folder
from mgjax.setup import data as data_setup
from mgjax.setup import evaluation, grids, network, planning, run_settings
from mgjax.step import compilation, eval_step
from mgjax.weights import (
  checks,
  contents,
  facts,
  hugging_face,
  hugging_face_files,
  safetensors_files,
  torch_files,
)
from mgjax.weights import command as weights_command

# How far logits may be from the network's: a share of the largest.
_TOLERANCES = {'stablehlo': 1e-6}
_TOLERANCE = 1e-5
_FILES = {
  'stablehlo': 'model.stablehlo',
  'onnx': 'model.onnx',
  'safetensors': 'model.safetensors',
  'pyslowfast': 'model.pyth',
  'pytorchvideo': 'model.pyth',
}


@dataclasses.dataclass(frozen=True)
class Export:
  """What is written.

  Attributes:
    config: The run's.
    to: One of exporting.FORMATS.
    model: The network, in float32: weights are, whatever a run computes in.
    variables: Its 'params' and 'batch_stats'.
    labels: Names of the classes; []: they are not known.
    batch: Clips that a program takes; None: any number.
  """

  config: ml_collections.ConfigDict
  to: str
  model: nn.Module
  variables: dict
  labels: list[str]
  batch: int | None

  @property
  def clip(self) -> tuple[int, int, int]:
    """Frames, height and width of an evaluation's clips."""
    grid = grids.eval_grid(self.config)
    return grid.T, grid.H, grid.W

  def score(self, variables: dict, video: jax.Array) -> dict[str, jax.Array]:
    """What an evaluation makes of uint8 clips: 'logits' and 'scores'."""
    return _score(self.config, self.model, variables, video)


def _score(config, model, variables, video) -> dict[str, jax.Array]:
  options = evaluation.scorer_options(config, model)
  scorer = eval_step.make_scorer(model, **options)
  logits, scores = scorer(variables['params'], variables['batch_stats'], video)
  return {'logits': logits.astype(np.float32), 'scores': scores}


class Written(NamedTuple):
  """A file that was written and read again.

  Attributes:
    logits: What it makes of uint8 clips.
    notes: What the user should know, in lines.
  """

  logits: Callable[[np.ndarray], np.ndarray]
  notes: tuple[str, ...] = ()


def _write_stablehlo(export: Export, folder: pathlib.Path) -> Written:
  path = folder / _FILES[export.to]
  files.write_bytes(path, _program(export, stablehlo.dump))
  program = stablehlo.load(path.read_bytes())
  return Written(lambda video: program(video)['logits'])


def _write_onnx(export: Export, folder: pathlib.Path) -> Written:
  path = folder / _FILES[export.to]
  files.write_bytes(path, _program(export, onnx_file.dump))
  return Written(onnx_file.load(path))


def _program(export: Export, dump: Callable) -> bytes:
  """The network as a program.

  Raises:
    ConfigError: It cannot be one, or not for any number of clips.
  """
  stablehlo.check_size(export.variables)
  video = stablehlo.video_spec(export.clip, export.batch)
  variables = jax.tree.map(jnp.asarray, export.variables)
  try:
    return dump(lambda video: export.score(variables, video), video)
  except ConfigError:
    raise
  # Of what a network does: JAX has many errors for a size that is not known.
  except Exception as error:
    what = 'clips' if export.batch else 'any number of clips'
    advice = '' if export.batch else '; --batch=1 may'
    raise ConfigError(
      f'--to={export.to}: {export.config.model.name!r} does not become a '
      f'program for {what} ({own.describe(error)}){advice}'
    ) from error


def _write_safetensors(export: Export, folder: pathlib.Path) -> Written:
  path = folder / _FILES[export.to]
  arrays = {
    '/'.join(key): np.asarray(array, np.float32)
    for key, array in traverse_util.flatten_dict(export.variables).items()
  }
  safetensors_files.save(path, arrays, {'format': 'flax'})
  found = torch_files.load(path)
  found.pop(safetensors_files.METADATA)
  variables = traverse_util.unflatten_dict(
    {tuple(name.split('/')): tensor.numpy() for name, tensor in found.items()}
  )
  return Written(_logits(export.config, export.model, variables))


def _write_framework(export: Export, folder: pathlib.Path) -> Written:
  path = folder / _FILES.get(export.to, '')
  counterpart = framework_files.find(export.config, export.to, export.labels)
  notes = framework_files.write(
    export.config, counterpart, export.variables, path
  )
  if export.to == 'huggingface':
    _write_preprocessor(export, folder)
  file = contents.read(path)
  # The network that the file says to be, where it says so.
  config = export.config.copy_and_resolve_references()
  facts.apply(config, [f for f in file.facts if f.field.startswith('model.')])
  model = network.model(config).changed(dtype=np.float32)
  matched = weights_command.match(config, model, path, file, 'repeat', ())
  variables = weights_command.all_variables(config, model, matched, ())
  return Written(_logits(config, model, variables), notes)


_WRITERS: dict[str, Callable[[Export, pathlib.Path], Written]] = {
  'stablehlo': _write_stablehlo,
  'onnx': _write_onnx,
  'safetensors': _write_safetensors,
  **dict.fromkeys(exporting.FRAMEWORKS, _write_framework),
}


def _logits(
  config, model: nn.Module, variables: dict
) -> Callable[[np.ndarray], np.ndarray]:
  """What a network makes of uint8 clips."""
  variables = {'batch_stats': {}, **variables}
  score = compilation.once_on_cpu(
    lambda v, video: _score(config, model, v, video)['logits']
  )
  return lambda video: score(variables, video)


def write(export: Export, folder: pathlib.Path) -> str:
  """Writes the weights, and compares what they give.

  Args:
    export: What to write.
    folder: Gets them.

  Returns:
    What the comparison has shown.

  Raises:
    ConfigError: The format does not hold the network.
  """
  wanted = _logits(export.config, export.model, export.variables)
  written = _WRITERS[export.to](export, folder)
  shape = (export.batch or 2, *export.clip, 3)
  video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  difference = checks.difference(written.logits(video), wanted(video))
  tolerance = _TOLERANCES.get(export.to, _TOLERANCE)
  if not difference <= tolerance:
    raise ConfigError(
      f'--to={export.to}: what was written gives other logits than the network;'
      f' they differ by {difference:.1e} of the largest (accepted: '
      f'{tolerance:g})' + ''.join(f'; {note}' for note in written.notes)
    )
  check = (
    f'logits of {shape[0]} random clips agree with those of the network, in '
    f'float32, to {difference:.1e} of the largest (accepted: {tolerance:g})'
  )
  return '\n'.join([check, *written.notes])


# The folder.


def _check_output(values: flags.FlagValues) -> pathlib.Path:
  """Returns --out, which can be written.

  Raises:
    ConfigError: It cannot, or has files in it.
  """
  if not values.out:
    raise ConfigError('--out is missing; say where to write.')
  out = pathlib.Path(values.out)
  if files.is_remote(values.out):
    raise ConfigError(f'--out={values.out}: give a folder on a disk')
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ConfigError(
      f'--out={out} exists already and is not an empty folder; use another'
    )
  files.make_folder(out.absolute().parent, f'--out={out}')
  return out


@contextlib.contextmanager
def _replacing(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a new folder, which gets a name once all is in it.

  Raises:
    ConfigError: The disk refuses it.
  """
  made = None
  try:
    made = pathlib.Path(
      tempfile.mkdtemp(
        prefix=f'{out.name}.', suffix='.tmp', dir=out.absolute().parent
      )
    )
    yield made
    made.chmod(0o755)  # mkdtemp's are for the user alone.
    made.replace(out)
  except OSError as error:
    raise ConfigError(f'--out={out}: {error.strerror or error}') from error
  finally:
    if made is not None:
      shutil.rmtree(made, ignore_errors=True)


def _check_format(
  config: ml_collections.ConfigDict, to: str, labels: list[str]
) -> None:
  """Refuses a format that has no such network.

  Raises:
    ConfigError: Names the formats that have it.
  """
  if to == 'onnx':
    onnx_file.check_installed()
  if to not in exporting.FRAMEWORKS:
    return
  try:
    _check_framework(config, to, labels)
  except ConfigError as error:
    has = [*exporting.PROGRAMS, *exporting.PLAIN]
    for other in exporting.FRAMEWORKS:
      with contextlib.suppress(ConfigError):
        _check_framework(config, other, labels)
        has.append(other)
    raise ConfigError(
      f'{error}; formats for {config.model.name!r} are {", ".join(has)}'
    ) from error


def _check_framework(
  config: ml_collections.ConfigDict, to: str, labels: list[str]
) -> None:
  if own.is_own(config.model.name):
    raise ConfigError(
      f'--to={to}: its names are known for the networks of mgjax only'
    )
  theirs = framework_files.find(config, to, labels).config
  grid = grids.eval_grid(config)
  taken = config.model.get('position_grid')
  # Of V-JEPA 2 there is no table.
  if 'num_frames' in theirs and tuple(taken) != (grid.T, grid.H, grid.W):
    raise ConfigError(
      f'--to={to}: transformers takes clips of model.position_grid={taken} '
      f'only, those of the evaluation are {(grid.T, grid.H, grid.W)}'
    )
  if 'crop_size' in theirs and grid.H != grid.W:
    raise ConfigError(
      f'--to={to}: transformers counts rows and columns by one crop_size, but '
      f'clips of the evaluation are {grid.H} high and {grid.W} wide'
    )


def _write_preprocessor(export: Export, folder: pathlib.Path) -> None:
  """Writes how transformers prepares clips."""
  config = export.config
  kind = files.read_json(folder / hugging_face.CONFIG)['model_type']
  name, content = hugging_face_files.preprocessor_of(
    kind,
    short_side_px=data_setup.short_side_px(config),
    crop=export.clip[1:],
    mean=config.data.mean,
    std=config.data.std,
  )
  files.write_text(folder / name, json.dumps(content, indent=2) + '\n')


def _write_about(
  export: Export,
  folder: pathlib.Path,
  *,
  name: str,
  run: pathlib.Path,
  path: epath.Path,
  check: str,
) -> None:
  """Writes what a user must know: settings, labels, card.

  Args:
    export: What was written.
    folder: Gets them.
    name: Of the model.
    run: The run's folder.
    path: Of the checkpoint.
    check: What was compared.
  """
  config, step = export.config, int(path.name)
  text = run_settings.as_text(config)
  files.write_text(folder / 'mgjax_config.json', text)
  if export.labels:
    text = json.dumps(export.labels, ensure_ascii=False, indent=0)
    files.write_text(folder / run_folder.LABELS, text + '\n')
  model_class = ''
  if export.to == 'huggingface':
    theirs = files.read_json(folder / hugging_face.CONFIG)
    (model_class,) = theirs['architectures']
  found = model_card.Facts(
    name=name,
    to=export.to,
    network=config.model.name,
    num_parameters=sum(
      array.size for array in jax.tree.leaves(export.variables['params'])
    ),
    data=config.data.name,
    labels=tuple(export.labels),
    num_classes=config.model.num_classes,
    step=step,
    accuracy=origin.accuracy(run, step),
    source=origin.source(path, config.init_from),
    clip=export.clip,
    batch=export.batch,
    sampling=_sampling(config),
    resizing=_resizing(config),
    mean=tuple(config.data.mean),
    std=tuple(config.data.std),
    loss=config.optim.loss,
    places=config.eval.head != 'global',
    version=mgjax.__version__,
    check=check,
    model_class=model_class,
  )
  files.write_text(folder / 'README.md', model_card.text(found))


def _sampling(config: ml_collections.ConfigDict) -> str:
  """How an evaluation takes frames, in words."""
  data = config.data
  if data.sampling == 'segments':
    return f'{data.num_frames}, one of each of as many equal parts of the video'
  rate = f'at {data.target_fps:g} frames a second'
  if not data.target_fps:
    rate = 'of the frames of the video, whatever their rate'
  return f'{data.num_frames}, {data.stride_frames} apart {rate}'


def _resizing(config: ml_collections.ConfigDict) -> str:
  height, width = data_setup.crop_hw(config.eval)
  return (
    f'the short side is resized to {data_setup.short_side_px(config)} pixels, '
    f'then the middle, {height} high and {width} wide, is cut out'
  )


def main(values: flags.FlagValues) -> None:
  """Runs the command: see mgjax/export.py for its flags.

  Raises:
    ConfigError: The network cannot be written so, or not there.
  """
  folder = run_folder.weights_of_flags(values)
  run = run_folder.run_of_weights(values)
  if not values.to:
    raise ConfigError(f'--to is missing; it is {", ".join(exporting.FORMATS)}')
  if values.batch and values.to not in exporting.PROGRAMS:
    raise ConfigError(
      f'--batch={values.batch}: weights are for any batch; it is for '
      f'--to={" and ".join(exporting.PROGRAMS)}'
    )
  out = _check_output(values)
  config = data_setup.with_classes(values.config)
  run_settings.check_evaluation(config, run, values.allow_config_change)
  path = epath.Path(os.path.realpath(checkpoint.find(folder, 'checkpoint')))
  if not path.name.isdigit():
    raise ConfigError(
      f'--checkpoint={path}: a checkpoint is called by its step, which an '
      'export says; rename the folder'
    )
  labels = predicting.label_names(
    config, run, pathlib.Path(values.labels) if values.labels else None
  )
  if labels == [f'class {k}' for k in range(len(labels))]:
    labels = []  # Nothing tells them.
  parallel.find_devices()
  planning.check_network(config, [grids.eval_grid(config)])
  _check_format(config, values.to, labels)
  allocator.keep()
  mesh = parallel.make_mesh(1)
  model, state = evaluation.load(
    config, mesh, path, instead='--checkpoint={path}'
  )
  export = Export(
    config=config,
    to=values.to,
    model=model.changed(dtype=np.float32),
    variables=jax.device_get(
      {'params': state.eval_params, 'batch_stats': state.batch_stats}
    ),
    labels=labels,
    batch=values.batch,
  )
  with _replacing(out) as made:
    check = write(export, made)
    _write_about(export, made, name=out.name, run=run, path=path, check=check)
  print(f'{out}: {values.to} of step {path.name}\n{check}')
  for file in sorted(out.iterdir()):
    print(f'{files.size_text(file.stat().st_size):>12}  {file.name}')
