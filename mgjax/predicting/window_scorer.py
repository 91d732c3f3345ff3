"""Scores windows as an evaluation scores videos: by the same code."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Float

from mgjax.data import sources
from mgjax.data.eval_stream import EvalStream, Views
from mgjax.data.read_ahead import Workers
from mgjax.evaluation import scoring
from mgjax.predicting.windows import Window
from mgjax.step.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class WindowScorer:
  """A network that scores windows.

  Attributes:
    program: See `scoring.score`.
    state: Its weights.
    mesh: Devices.
    views: What is shown of each window.
    batch_size: Clips of the program.
    num_classes: K.
    ensemble: How views become one: see `scoring.score`.
  """

  program: Callable
  state: TrainState
  mesh: jax.sharding.Mesh
  views: Views
  batch_size: int
  num_classes: int
  ensemble: str

  def score(self, window: Window) -> Float[np.ndarray, ' K']:
    """Probabilities of the classes.

    Raises:
      RunError: They are not finite.
    """
    source = _OneVideo(window, self.num_classes)
    stream = _InMemory(source, self.views, self.batch_size, Workers(1, 0, 1))
    result = scoring.score(
      self.program, self.state, stream, self.mesh, ensemble=self.ensemble
    )
    return result.scores[0]


class _OneVideo(sources.Source):
  """A window as the one video of a split."""

  def __init__(self, window: Window, num_classes: int):
    names = tuple(map(str, range(num_classes)))
    super().__init__('stream', 'given', [window], names)

  def __getitem__(self, index: int) -> sources.Example:
    return sources.Example(
      b'', label=0, id=str(index), opened=self.records[index].video
    )


class _InMemory(EvalStream):
  """Batches of what is in memory already: no thread need read ahead."""

  def batches(self, first: int = 0) -> Iterator[dict]:
    return map(self.batch, range(first, self.num_batches))
