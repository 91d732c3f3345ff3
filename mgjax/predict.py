r"""Names what video files show.

python -m mgjax.predict --workdir=runs/digits VIDEO [VIDEO ...]

The videos are cut into the views of config.eval, as in an evaluation; the
scores of a video's views are averaged, or the greatest taken, as
eval.ensemble says. The configuration is the one
that the run was trained (or the weights were imported) with; fields such as
--config.eval.num_views=3 can be overridden, --config=FILE.py replaces it.

Exit codes: 0 all files were used; 1 some could not be, the others are
printed; 2 none could be, or a setting cannot work.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from configs import default
from mgjax import (
  checkpoint,
  cli,
  evaluate,
  models,
  optim,
  parallel,
  train_step,
)
from mgjax.cli import ConfigError, RunError
from mgjax.data import sources, stream
from mgjax.data.decode import DecodeError, Video


class _Files:
  """Video files in the place of a data set's records."""

  def __init__(self, paths: Sequence[pathlib.Path]):
    self._paths = paths

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict:
    path = self._paths[index]
    return {'video': path.read_bytes(), 'label': 0, 'id': str(path)}


def predict(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  paths: Sequence[pathlib.Path],
) -> list[dict]:
  """Scores video files by a checkpoint.

  Args:
    config: The run's configuration; its evaluation views are used.
    folder: Folder of a run (its newest checkpoint) or of one checkpoint.
    paths: Video files.

  Returns:
    For each file, in order, {'file', 'scores': float [K], probabilities} or
    {'file', 'error': why it cannot be used}.

  Raises:
    ConfigError: There is no checkpoint, it is of another network, or none of
      the files can be used.
  """
  path = checkpoint.find(folder, 'checkpoint')
  errors = {p: reason for p in paths if (reason := _why_not(p))}
  usable = [p for p in dict.fromkeys(paths) if p not in errors]
  if not usable:
    raise ConfigError(_none_usable(errors))
  source = sources.Source(
    config.data.name,
    config.eval.split,
    _Files(usable),
    # Only their number counts here.
    [str(k) for k in range(config.model.num_classes)],
  )
  mesh = parallel.make_mesh()
  num_items = len(usable) * config.eval.num_views * config.eval.num_crops
  batch = min(config.eval.batch_size, num_items)
  config = config.copy_and_resolve_references()
  config.eval.batch_size = -(-batch // mesh.size) * mesh.size
  model = models.from_config(config.model, config.norm)
  abstract = checkpoint.abstract_state(
    lambda: train_step.create_state(
      model,
      optim.make_optimizer(config.optim),
      jax.random.key(0),
      evaluate.example_video(config),
    ),
    parallel.replicated(mesh),
  )
  variables = checkpoint.load_variables(
    path, {name: getattr(abstract, name) for name in checkpoint.VARIABLES}
  )
  result = evaluate.score(
    evaluate.lower_eval_step(config, model, mesh, abstract).compile(),
    abstract.replace(**variables),
    stream.EvalStream(config, source, config.eval.batch_size),
    mesh,
  )
  scores = {}
  for p, total, views in zip(usable, result.scores, result.views, strict=True):
    if views:
      scores[p] = total
    else:
      text = next(f for f in result.failures if f.startswith(f'{p}: '))
      errors[p] = text.removeprefix(f'{p}: ')
  if not scores:
    raise ConfigError(_none_usable(errors))
  return [
    {'file': str(p), 'scores': scores[p]}
    if p in scores
    else {'file': str(p), 'error': errors[p]}
    for p in paths
  ]


def _none_usable(errors: dict[pathlib.Path, str]) -> str:
  path, reason = next(iter(errors.items()))
  return f'none of the files can be used, such as {path}: {reason}'


def _why_not(path: pathlib.Path) -> str:
  """Why a file cannot be used, as far as its packets show; '' if it can."""
  try:
    with Video(path.read_bytes()):
      return ''
  except OSError as error:
    return str(error.strerror)
  except DecodeError as error:
    return str(error)


def label_names(config: ml_collections.ConfigDict) -> list[str]:
  """Names of the classes; their numbers where the data set is not here."""
  numbers = [f'class {k}' for k in range(config.model.num_classes)]
  try:
    folder = sources.builder_dir(config)
  except ConfigError:
    return numbers
  features = tfds.builder_from_directory(str(folder)).info.features
  features = features['actions'] if 'actions' in features else features
  names = list(features['label'].names)
  return names if len(names) == len(numbers) else numbers


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of a run, or of imported weights; the newest checkpoint is used.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'checkpoint',
    None,
    'Folder of one checkpoint of a run, such as runs/digits/checkpoints/300.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'top', 5, 'Labels per file.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_enum(
    'format', 'text', ['text', 'json'], 'What is printed.', flag_values=values
  )


def _folder(values: flags.FlagValues) -> pathlib.Path:
  """The folder with the weights."""
  if bool(values.workdir) == bool(values.checkpoint):
    raise ConfigError(
      'give --workdir, the folder of a run, or --checkpoint, the folder of '
      'one checkpoint'
    )
  folder = pathlib.Path(values.workdir or values.checkpoint)
  if not folder.is_dir():
    raise ConfigError(f'{folder} is not a folder')
  return folder


def find_config(values: flags.FlagValues, arguments: list[str]):
  """The run's own config; a checkpoint lies in WORKDIR/checkpoints/STEP."""
  folder = _folder(values)
  return default.read_saved(
    folder if values.workdir else folder.absolute().parents[1]
  )


def main(values: flags.FlagValues, *videos: str) -> None:
  folder = _folder(values)
  if not videos:
    raise ConfigError('no video is given; name one file or more.')
  results = predict(values.config, folder, [pathlib.Path(v) for v in videos])
  names = label_names(values.config)
  for result in results:
    if 'scores' in result:
      scores = result.pop('scores')
      best = np.argsort(-scores, kind='stable')[: values.top]
      result['predictions'] = [
        {'label': names[k], 'class': int(k), 'probability': float(scores[k])}
        for k in best
      ]
  if values.format == 'json':
    print(json.dumps(results, indent=1))
  else:
    print('\n'.join(line for result in results for line in _lines(result)))
  bad = [r for r in results if 'error' in r]
  if bad:
    raise RunError(
      f'{len(bad)} of {len(results)} files could not be used: '
      + '; '.join(f'{r["file"]}: {r["error"]}' for r in bad)
    )


def _lines(result: dict) -> list[str]:
  """A file's predictions as text."""
  if 'error' in result:
    return []
  return [result['file']] + [
    f'  {100 * p["probability"]:6.2f} %  {p["label"]}'
    for p in result['predictions']
  ]


if __name__ == '__main__':
  sys.exit(
    cli.run(main, define_flags, arguments='VIDEO', find_config=find_config)
  )
