"""Scores videos view by view, and keeps the scores for a later start."""

import io
import itertools
import json
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from mgjax import files, stop_signal
from mgjax.data import sources
from mgjax.data.eval_stream import EvalStream
from mgjax.errors import RunError
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.step.train_state import TrainState


class Scores(NamedTuple):
  """The scores of the videos of a source.

  Attributes:
    scores: The scores of each video's views as one: see `score`, `ensemble`.
    views: Decoded views of each video.
    lost: Its views that could not be read or decoded.
    labels: True classes; or 1 for every true class; 0 for videos all of whose
      views are lost.
    failures: Why a view could not be decoded, by the id of its video.
  """

  scores: Float[np.ndarray, 'N K']
  views: Int[np.ndarray, ' N']
  lost: Int[np.ndarray, ' N']
  labels: Int[np.ndarray, ' N'] | Float[np.ndarray, 'N K']
  failures: dict[str, str]


class Partial:
  """The scores of an unfinished evaluation, in a file that a kill leaves.

  The file is replaced whole, so that it always holds complete batches. Every
  process of a run reads it; the first one writes it.
  """

  def __init__(self, workdir: epath.PathLike, key: str, save_every_s: float):
    """Names the file.

    Args:
      workdir: The run's folder.
      key: What was scored by what; others' scores are ignored.
      save_every_s: Seconds between saves, at least.
    """
    self._path = epath.Path(workdir) / 'eval.partial.npz'
    self._key = key
    self._save_every_s = save_every_s
    self._saved = time.monotonic()

  def load(self) -> tuple[int, Scores] | None:
    """Returns the number of scored batches and their scores; None: no file.

    A file that cannot be used is named on stderr and removed.
    """
    try:
      content = io.BytesIO(self._path.read_bytes())
    except FileNotFoundError:
      return None
    try:
      with np.load(content, allow_pickle=False) as file:
        if str(file['key']) != self._key:
          return None
        arrays = {name: file[name] for name in Scores._fields[:-1]}
        failures = dict(json.loads(str(file['failures'])))
        return int(file['num_batches']), Scores(**arrays, failures=failures)
    # Damaged by a power cut, say, for which NumPy, zipfile, zlib and JSON have
    # an error each; or written by another version of this program.
    except Exception as error:
      if jax.process_index() == 0:
        print(
          f'\n{self._path} cannot be used ({type(error).__name__}: {error}); '
          'the evaluation begins anew',
          file=sys.stderr,
        )
        self.remove()
      return None

  def save_sometimes(self, num_batches: int, scores: Scores) -> None:
    """Writes the file, if the last time is long enough ago."""
    if time.monotonic() - self._saved >= self._save_every_s:
      self.save(num_batches, scores)

  def save(self, num_batches: int, scores: Scores) -> None:
    """Writes the file."""
    if jax.process_index() == 0:
      buffer = io.BytesIO()
      np.savez(
        buffer,
        key=self._key,
        num_batches=num_batches,
        **scores._asdict() | {'failures': json.dumps(scores.failures)},
      )
      files.write_bytes(self._path, buffer.getvalue())
    self._saved = time.monotonic()

  def remove(self) -> None:
    """Removes the file: the result is written."""
    self._path.unlink(missing_ok=True)


def score(
  program,
  state: TrainState,
  eval_stream: EvalStream,
  mesh: jax.sharding.Mesh,
  *,
  ensemble: str,
  report=lambda done, total: None,
  partial: Partial | None = None,
  peers: Peers | None = None,
) -> Scores:
  """Scores every view of every video of a source.

  Args:
    program: The compiled step (params, batch_stats, video) -> scores.
    state: Its statistics and parameters, or their average, are used.
    eval_stream: The views.
    mesh: Devices of the program.
    ensemble: How a video's views become one: 'sum', their mean (the order of
      classes is that of the sum), or 'max', the greatest of each class.
    report: Called with batches done and all batches; it may raise `Stopped`.
    partial: Where unfinished work is kept and found again; None: nowhere.
    peers: The processes that share the work; None: this one alone.

  Raises:
    RunError: Some scores are not finite.
    Stopped: From `report`; what has been scored is kept in `partial`.
  """
  peers = peers or Peers()
  found = partial.load() if partial else None
  first, scores = found or (0, _no_scores(eval_stream.source))
  for number, batch in enumerate(eval_stream.batches(first), first):
    failed = batch.pop('failed')
    batch = parallel.put_batch(mesh, batch)
    probabilities = parallel.to_host(
      program(state.eval_params, state.batch_stats, batch['video'])
    )
    if not np.isfinite(probabilities).all():
      raise RunError(
        f'the scores of evaluation batch {number + 1} of '
        f'{eval_stream.num_batches} are not finite: the weights, or the '
        'features that they make of these videos, are too large'
      )
    lost = _add(scores, batch, probabilities, ensemble)
    if lost.any():  # In any process.
      for name, reason in itertools.chain(*peers.exchange(failed)):
        scores.failures.setdefault(name, reason)
    if partial:
      partial.save_sometimes(number + 1, scores)
    try:
      report(number + 1, eval_stream.num_batches)
    except stop_signal.Stopped:
      if partial:
        partial.save(number + 1, scores)
      raise
  if ensemble == 'max':
    return scores
  return scores._replace(
    scores=scores.scores / np.maximum(scores.views, 1)[:, None]
  )


def _add(
  scores: Scores, batch: dict, probabilities: np.ndarray, ensemble: str
) -> Bool[np.ndarray, ' B']:
  """Adds a batch's probabilities [B, K] to the scores, in place.

  Returns:
    Which views of the batch are lost.
  """
  index, label, weight, lost = (
    parallel.to_host(batch[name])
    for name in ('index', 'label', 'weight', 'lost')
  )
  combine = {'sum': np.add, 'max': np.maximum}[ensemble]
  # Padding and lost views count as 0, the least that a score can be.
  combine.at(scores.scores, index, probabilities * weight[:, None])
  np.add.at(scores.views, index, (weight > 0).astype(np.int64))
  np.add.at(scores.lost, index, lost.astype(np.int64))
  # A lost view may not know its video's label.
  scores.labels[index[~lost]] = label[~lost]
  return lost


def _no_scores(source: sources.Source) -> Scores:
  """The scores before the first batch."""
  num_videos, num_classes = len(source), len(source.label_names)
  return Scores(
    scores=np.zeros((num_videos, num_classes)),
    views=np.zeros(num_videos, np.int64),
    lost=np.zeros(num_videos, np.int64),
    labels=(
      np.zeros((num_videos, num_classes), np.float32)
      if source.has_actions
      else np.zeros(num_videos, np.int32)
    ),
    failures={},
  )
