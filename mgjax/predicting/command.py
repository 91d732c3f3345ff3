"""The command `predict`: names what video files show, with a checkpoint."""

import pathlib
from collections.abc import Sequence

import ml_collections
import tensorflow_datasets as tfds
from absl import flags

from mgjax import files
from mgjax.config import network_options, own
from mgjax.cpu import allocator
from mgjax.data import copies
from mgjax.data.eval_stream import EvalStream
from mgjax.errors import ConfigError, RunError
from mgjax.hosts import parallel
from mgjax.predicting import inputs, loading, output, streaming, video_files
from mgjax.predicting.predictor import Predictor
from mgjax.run import run_folder
from mgjax.setup import data as data_setup
from mgjax.setup import run_settings


def open_predictor(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  paths: Sequence[pathlib.Path],
) -> Predictor:
  """Looks at the files, reads the weights and compiles the program.

  Args:
    config: The run's configuration; its evaluation views are used.
    folder: Folder of a run (its newest checkpoint) or of one checkpoint.
    paths: Video files.

  Raises:
    ConfigError: There is no checkpoint, it is of another network, or none of
      the files can be used.
    checkpoint.DamagedError: The checkpoint is damaged.
  """
  path = loading.find(config, folder)
  looked = video_files.look_at(paths)
  if not looked.in_order:
    raise ConfigError(video_files.none_usable(looked.errors))
  num_clips = (
    len(looked.in_order) * config.eval.num_views * config.eval.num_crops
  )
  network = loading.Network(config, path, num_clips)

  def make_stream(paths: Sequence[pathlib.Path]) -> EvalStream:
    source = video_files.VideoFiles(
      paths, looked.in_order, config.model.num_classes
    )
    return data_setup.eval_stream(network.config, source)

  return Predictor(
    paths=paths,
    looked=looked,
    model=network.model,
    state=network.state,
    mesh=network.mesh,
    program=network.program,
    make_stream=make_stream,
    ensemble=config.eval.ensemble,
    mean=config.data.mean,
    std=config.data.std,
  )


def label_names(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  file: pathlib.Path | None,
) -> list[str]:
  """Names of the classes; their numbers where nothing tells them.

  Args:
    config: The run's.
    folder: Of the run.
    file: With names that come before all others, or None.

  Raises:
    ConfigError: A file has other than config.model.num_classes names.
  """
  numbers = [f'class {k}' for k in range(config.model.num_classes)]
  if file is None and (folder / run_folder.LABELS).exists():
    file = folder / run_folder.LABELS
  if file is not None:
    names = run_folder.read_labels(file)
    if len(names) != len(numbers):
      raise ConfigError(
        f'{file} has {len(names)} names, but the network '
        f'{len(numbers)} classes; give one name for each'
      )
    return names
  if own.is_own(config.data.name):
    try:
      source = data_setup.source(config, config.eval.split)
    except (ConfigError, RunError):  # Its videos need not be here.
      return numbers
    names = list(source.label_names)
  elif data_setup.describe(config) is None:  # Or is damaged, which it says.
    return numbers
  else:
    builder = tfds.builder_from_directory(str(data_setup.builder_dir(config)))
    names = list(copies.labels_of(builder))
  return names if len(names) == len(numbers) else numbers


def _checked_outputs(
  values: flags.FlagValues,
) -> tuple[pathlib.Path | None, ...]:
  """Returns --sheet, --heatmap and --features, which can be written.

  Raises:
    ConfigError: One of them cannot.
  """
  outputs = [
    pathlib.Path(values[name].value) if values[name].value else None
    for name in ('sheet', 'heatmap', 'features')
  ]
  *folders, npz = outputs
  sheets, heatmaps = (folder and folder.resolve() for folder in folders)
  if sheets and sheets == heatmaps:
    raise ConfigError(
      f'--sheet and --heatmap are one folder, {folders[0]}, and their pictures '
      'have the same names; give two folders'
    )
  for name, folder in zip(('sheet', 'heatmap'), folders, strict=True):
    if folder:
      files.make_folder(folder, f'--{name}={folder}')
  if npz:
    if npz.suffix != '.npz':
      raise ConfigError(f'--features={npz}: give the name of an .npz file')
    files.check_output(npz, f'--features={npz}')
  return tuple(outputs)


def main(values: flags.FlagValues, *videos: str) -> None:
  """Runs the command: see mgjax/predict.py for its flags.

  Raises:
    RunError: Some files could not be used, or something could not be written;
      all else is printed and written.
  """
  folder = run_folder.weights_of_flags(values)
  if not videos:
    raise ConfigError('no video is given; name one file or more.')
  is_streaming = streaming.check_flags(values, videos)
  config = data_setup.with_classes(values.config)
  run = run_folder.run_of_weights(values)
  run_settings.check_evaluation(config, run, values.allow_config_change)
  sheets, heatmaps, npz = _checked_outputs(values)
  if own.is_own(config.model.name) and (sheets or heatmaps or npz):
    raise ConfigError(
      f'model.name={config.model.name!r}: --sheet, --heatmap and --features '
      'explain the networks of mgjax only; leave them out'
    )
  has_maps = network_options.options_of(config.model.name).has_class_maps
  if not has_maps and (sheets or heatmaps or npz):
    raise ConfigError(
      f'model.name={config.model.name!r}: --sheet, --heatmap and --features '
      'explain convolutional networks only; leave them out'
    )
  names = label_names(
    config, run, pathlib.Path(values.labels) if values.labels else None
  )
  allocator.keep()
  parallel.find_devices()
  if is_streaming:
    streaming.main(values, config, loading.find(config, folder), names, videos)
    return
  paths = inputs.files_of(videos)
  predictor = open_predictor(config, folder, paths)
  results = predictor.scores()
  output.add_predictions(results, names, values.top)
  # At once: what comes later may fail.
  print(output.printed(results, values.format), flush=True)
  problems = []
  if sheets or heatmaps or npz:
    problems = output.write_explained(
      predictor, results, sheets=sheets, heatmaps=heatmaps, npz=npz
    )
  bad = [r for r in results if 'error' in r]
  if bad:
    problems.insert(
      0,
      f'{len(bad)} of {len(results)} files could not be used: '
      + '; '.join(f'{r["file"]}: {r["error"]}' for r in bad),
    )
  if problems:
    raise RunError('; '.join(problems))
