"""Names what video files show, with a checkpoint."""

import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from mgjax import environment, files, picture_text
from mgjax.cli import ConfigError, RunError
from mgjax.cpu import allocator, compilation
from mgjax.data import copies, description, sources, stream, transcode
from mgjax.data.decode import DecodeError, Form
from mgjax.evaluation import scoring
from mgjax.hosts import parallel
from mgjax.planning import plan
from mgjax.predicting import class_maps as features
from mgjax.predicting import contact_sheet
from mgjax.run import checkpoint, run_folder
from mgjax.setup import network

# Bytes of a file's name that its picture's has, too: file systems take 255.
_MAX_STEM = 180


class _Files(sources.Source):
  """Video files in the place of a data set."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    paths: Sequence[pathlib.Path],
    in_order: dict[pathlib.Path, Form | None],
  ):
    # Of the labels, only their number counts here.
    labels = [str(k) for k in range(config.model.num_classes)]
    super().__init__(config.data.name, config.eval.split, paths, labels)
    self._in_order = in_order

  def __getitem__(self, index: int) -> sources.Example:
    path = self._data_source[index]
    try:
      encoded = path.read_bytes()
    except OSError as error:
      raise RunError(f'{path}: {error.strerror}') from error
    return sources.Example(
      encoded, label=0, id=str(path), in_order=self._in_order[path]
    )


class Explained(NamedTuple):
  """A clip that was scored, and why.

  Attributes:
    file: Video that it is from.
    clip: uint8 [T, H, W, 3], RGB.
    features: float32 [D], what the classifier gets.
    heat: float32 [t, h, w], see `features.Features`.
  """

  file: str
  clip: np.ndarray
  features: np.ndarray
  heat: np.ndarray


class Predictor:
  """A checkpoint with the files that it is to score."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    paths: Sequence[pathlib.Path],
  ):
    """Reads the weights.

    Args:
      config: The run's configuration; its evaluation views are used.
      folder: Folder of a run (its newest checkpoint) or of one checkpoint.
      paths: Video files.

    Raises:
      ConfigError: There is no checkpoint, it is of another network, or none of
        the files can be used.
    """
    plan.check_network(config, [scoring.eval_grid(config)])
    path = checkpoint.find(folder, 'checkpoint')
    self._paths = paths
    self._in_order, self._errors = _look_at(paths)
    self._usable = list(self._in_order)
    if not self._usable:
      raise ConfigError(_none_usable(self._errors))
    self._mesh = parallel.make_mesh()
    num_clips = (
      len(self._usable) * config.eval.num_views * config.eval.num_crops
    )
    batch = min(config.eval.batch_size, num_clips)
    self._config = config = config.copy_and_resolve_references()
    config.eval.batch_size = -(-batch // self._mesh.size) * self._mesh.size
    self._model = network.model(config)
    self._state = scoring.load_state(
      config, self._model, self._mesh, path, instead='--checkpoint={path}'
    )

  def _stream(self, paths: Sequence[pathlib.Path]) -> stream.EvalStream:
    source = _Files(self._config, paths, self._in_order)
    return stream.EvalStream(self._config, source, self._config.eval.batch_size)

  def scores(self) -> list[dict]:
    """Scores the files.

    Returns:
      For each file, in order, {'file', 'scores': float [K], probabilities} or
      {'file', 'error': why it cannot be used}.

    Raises:
      ConfigError: None of the files can be used.
    """
    result = scoring.score(
      compilation.compile_program(
        scoring.lower_eval_step(
          self._config, self._model, self._mesh, self._state
        )
      ),
      self._state,
      self._stream(self._usable),
      self._mesh,
    )
    errors = dict(self._errors)
    scores = {}
    for path, score, views in zip(
      self._usable, result.scores, result.views, strict=True
    ):
      if views:
        scores[path] = score
      else:
        errors[path] = result.failures[str(path)]
    if not scores:
      raise ConfigError(_none_usable(errors))
    return [
      {'file': str(p), 'scores': scores[p]}
      if p in scores
      else {'file': str(p), 'error': errors[p]}
      for p in self._paths
    ]

  def explain(self, labels: dict[str, int]) -> Iterator[Explained]:
    """Yields every clip of some files, in order, file by file.

    Args:
      labels: The class to explain, by file.
    """
    step = jax.jit(
      features.make_feature_step(
        self._model, mean=self._config.data.mean, std=self._config.data.std
      ),
      out_shardings=parallel.sharded(self._mesh),
    )
    files = list(labels)
    numbers = np.array(list(labels.values()), np.int32)
    for batch in self._stream([pathlib.Path(f) for f in files]).batches():
      on_device = parallel.put_batch(
        self._mesh,
        {'video': batch['video'], 'label': numbers[batch['index']]},
      )
      found = step(
        self._state.params,
        self._state.batch_stats,
        on_device['video'],
        on_device['label'],
      )
      pooled, heat = map(parallel.to_host, found)
      for i in np.flatnonzero(batch['weight']):
        yield Explained(
          files[batch['index'][i]], batch['video'][i], pooled[i], heat[i]
        )


def write_explained(
  predictor: Predictor,
  results: Sequence[dict],
  *,
  sheets: pathlib.Path | None,
  heatmaps: pathlib.Path | None,
  npz: pathlib.Path | None,
) -> list[str]:
  """Writes pictures and features of the files that were scored.

  Args:
    predictor: Scored them.
    results: Of `Predictor.scores`, with 'predictions', the likeliest first.
    sheets: Folder of contact sheets, or None.
    heatmaps: Folder of heat maps, or None.
    npz: File of features, or None.

  Returns:
    What could not be written, and why; all else is.
  """
  usable = {r['file']: r for r in results if 'scores' in r}
  labels = {f: r['predictions'][0]['class'] for f, r in usable.items()}
  rows = []
  problems = []
  names = set()
  by_file = itertools.groupby(predictor.explain(labels), lambda c: c.file)
  for file, clips in by_file:
    clips = list(clips)
    rows.append(np.mean([c.features for c in clips], 0, dtype=np.float32))
    predictions = [
      (p['label'], p['probability']) for p in usable[file]['predictions']
    ]
    stem = pathlib.Path(file).stem
    while len(os.fsencode(stem)) > _MAX_STEM:
      stem = stem[:-1]
    # Files of one name from several folders are numbered.
    numbered = (f'{stem}-{i}' for i in itertools.count(2))
    name = next(n for n in itertools.chain([stem], numbered) if n not in names)
    names.add(name)
    pictures = []
    if sheets:
      pictures.append((sheets, [c.clip for c in clips], file))
    if heatmaps:
      overlaid = [contact_sheet.overlay(c.clip, c.heat) for c in clips]
      what = f'{file}: what makes it {predictions[0][0]!r}'
      pictures.append((heatmaps, overlaid, what))
    for folder, frames, title in pictures:
      path = folder / f'{name}.png'
      try:
        contact_sheet.draw(path, frames, title, predictions)
      except OSError as error:
        problems.append(f'{path} cannot be written: {error.strerror or error}')
  if npz:
    content = io.BytesIO()
    np.savez(
      content,
      files=np.array(list(usable)),
      features=np.stack(rows),
      scores=np.stack([r['scores'] for r in usable.values()]),
    )
    try:
      files.write_bytes(npz, content.getvalue())
    except OSError as error:
      problems.append(f'{npz} cannot be written: {error.strerror or error}')
  return problems


def _none_usable(errors: dict[pathlib.Path, str]) -> str:
  path, reason = next(iter(errors.items()))
  return f'none of the files can be used, such as {path}: {reason}'


def _look_at(
  paths: Sequence[pathlib.Path],
) -> tuple[dict[pathlib.Path, Form | None], dict[pathlib.Path, str]]:
  """Decodes files, as `mgjax.data.prepare` does with what it stores.

  Returns:
    How `Video` reads each file that can be used (its `in_order`), and why the
    others cannot be.
  """

  def look(path: pathlib.Path) -> Form | str | None:
    try:
      found = transcode.scan(path.read_bytes())
    except OSError as error:
      return str(error.strerror)
    except DecodeError as error:
      return str(error)
    return None if found.is_addressable else found.form

  usable, errors = {}, {}
  different = list(dict.fromkeys(paths))
  with futures.ThreadPoolExecutor(environment.num_cpus()) as pool:
    for path, found in zip(different, pool.map(look, different), strict=True):
      (errors if isinstance(found, str) else usable)[path] = found
  return usable, errors


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
  if description.describe(config) is None:  # Or is damaged, which it says.
    return numbers
  builder = tfds.builder_from_directory(str(sources.builder_dir(config)))
  names = list(copies.labels_of(builder))
  return names if len(names) == len(numbers) else numbers


def _made_folder(flag: str, name: str | None) -> pathlib.Path | None:
  """Makes the folder that a flag names, if it names one."""
  if not name:
    return None
  files.make_folder(name, f'--{flag}={name}')
  return pathlib.Path(name)


def main(values: flags.FlagValues, *videos: str) -> None:
  folder = run_folder.weights(values)
  if not videos:
    raise ConfigError('no video is given; name one file or more.')
  run = run_folder.of_weights(values)
  run_folder.check_evaluation(values.config, run, values.allow_config_change)
  sheets, heatmaps = (
    _made_folder(name, values[name].value) for name in ('sheet', 'heatmap')
  )
  npz = pathlib.Path(values.features) if values.features else None
  if npz:
    if npz.suffix != '.npz':
      raise ConfigError(f'--features={npz}: give the name of an .npz file')
    files.check_output(npz, f'--features={npz}')
  names = label_names(
    values.config, run, pathlib.Path(values.labels) if values.labels else None
  )
  allocator.keep()
  predictor = Predictor(
    values.config, folder, [pathlib.Path(v) for v in videos]
  )
  results = predictor.scores()
  for result in results:
    if 'scores' in result:
      scores = result['scores']
      best = np.argsort(-scores, kind='stable')[: values.top]
      result['predictions'] = [
        {'label': names[k], 'class': int(k), 'probability': float(scores[k])}
        for k in best
      ]
  # At once: what comes later may fail.
  print(_printed(results, values.format), flush=True)
  problems = []
  if sheets or heatmaps or npz:
    problems = write_explained(
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


def _printed(results: Sequence[dict], form: str) -> str:
  """The predictions as text or JSON."""
  if form == 'json':
    shown = [{k: v for k, v in r.items() if k != 'scores'} for r in results]
    return json.dumps(shown, indent=1)
  return '\n'.join(line for result in results for line in _lines(result))


def _lines(result: dict) -> list[str]:
  """A file's predictions as text."""
  if 'error' in result:
    return []
  return [picture_text.printable(result['file'])] + [
    f'  {100 * p["probability"]:6.2f} %  {p["label"]}'
    for p in result['predictions']
  ]
