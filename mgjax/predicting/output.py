"""Writes predictions: as text or JSON, as pictures, as features."""

import functools
import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mgjax import files, pictures
from mgjax.predicting import contact_sheet
from mgjax.predicting.predictor import Predictor

# Bytes of a file's name that its picture's has, too: file systems take 255.
_MAX_STEM = 180


def add_predictions(
  results: Sequence[dict], names: Sequence[str], top: int
) -> None:
  """Adds the likeliest classes to results, in place.

  Args:
    results: Of `Predictor.scores`; those with 'scores' get 'predictions', the
      likeliest first: 'label', 'class' and 'probability' in [0, 1].
    names: Of the K classes.
    top: Classes per result, at most.
  """
  for result in results:
    if 'scores' in result:
      scores = result['scores']
      best = np.argsort(-scores, kind='stable')[:top]
      result['predictions'] = [
        {'label': names[k], 'class': int(k), 'probability': float(scores[k])}
        for k in best
      ]


def printed(results: Sequence[dict], form: str) -> str:
  """The predictions as text or JSON.

  Args:
    results: With 'predictions' (`add_predictions`), or 'error'.
    form: 'text' or 'json'.
  """
  if form == 'json':
    shown = [{k: v for k, v in r.items() if k != 'scores'} for r in results]
    return json.dumps(shown, indent=1)
  return '\n'.join(line for result in results for line in _lines(result))


def _lines(result: dict) -> list[str]:
  """A file's predictions as text."""
  if 'error' in result:
    return []
  return [pictures.printable(result['file'])] + [
    f'  {100 * p["probability"]:6.2f} %  {p["label"]}'
    for p in result['predictions']
  ]


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
  names = dict(zip(usable, file_names(list(usable)), strict=True))
  rows, problems = [], []

  def write(path: pathlib.Path, content: Callable[[], None]) -> None:
    try:
      content()
    except OSError as error:
      problems.append(f'{path} cannot be written: {error.strerror or error}')

  by_file = itertools.groupby(predictor.explain(labels), lambda c: c.file)
  for file, clips in by_file:
    clips = list(clips)
    rows.append(np.mean([c.features for c in clips], 0, dtype=np.float32))
    likely = [
      (p['label'], p['probability']) for p in usable[file]['predictions']
    ]
    pictures_of = []
    if sheets:
      pictures_of.append((sheets, [c.clip for c in clips], file))
    if heatmaps:
      overlaid = [contact_sheet.overlay(c.clip, c.heat) for c in clips]
      title = f'{file}: what makes it {likely[0][0]!r}'
      pictures_of.append((heatmaps, overlaid, title))
    for folder, frames, title in pictures_of:
      path = folder / f'{names[file]}.png'
      write(
        path, functools.partial(contact_sheet.draw, path, frames, title, likely)
      )
  if npz:
    write(npz, lambda: files.write_bytes(npz, _npz(usable, rows)))
  return problems


def file_names(videos: Sequence[str]) -> Iterator[str]:
  """A name for each video's picture or labels, without the ending.

  Files of one name from several folders are numbered.
  """
  names = set()
  for video in videos:
    stem = pathlib.Path(video).stem
    while len(os.fsencode(stem)) > _MAX_STEM:
      stem = stem[:-1]
    numbered = (f'{stem}-{i}' for i in itertools.count(2))
    name = next(n for n in itertools.chain([stem], numbered) if n not in names)
    names.add(name)
    yield name


def _npz(usable: dict[str, dict], features: Sequence[np.ndarray]) -> bytes:
  """The file of features: 'files' [N], 'features' [N, D], 'scores' [N, K]."""
  content = io.BytesIO()
  np.savez(
    content,
    files=np.array(list(usable)),
    features=np.stack(features),
    scores=np.stack([r['scores'] for r in usable.values()]),
  )
  return content.getvalue()
