"""Scores video files, and says what decided about the scores."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, UInt8

from mgjax.data.eval_stream import EvalStream
from mgjax.errors import ConfigError
from mgjax.evaluation import scoring
from mgjax.hosts import parallel
from mgjax.predicting import class_maps, video_files
from mgjax.step.train_state import TrainState


class Explained(NamedTuple):
  """A clip that was scored, and why.

  Attributes:
    file: Video that it is from.
    clip: RGB.
    features: What the classifier gets.
    heat: See `class_maps.Features`.
  """

  file: str
  clip: UInt8[np.ndarray, 'T H W 3']
  features: Float[np.ndarray, ' D']
  heat: Float[np.ndarray, 't h w']


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A checkpoint with the files that it is to score.

  Attributes:
    paths: The files, in the order of the scores; some may be the same.
    looked: What `video_files.look_at` found of them.
    model: The network.
    state: Its weights.
    mesh: Devices.
    program: The compiled evaluation step of the three.
    make_stream: Makes the evaluation batches of files that can be used.
    ensemble: How views become one: see `scoring.score`.
    mean: Subtracted from RGB in [0, 1].
    std: By which that is divided.
  """

  paths: Sequence[pathlib.Path]
  looked: video_files.Looked
  model: nn.Module
  state: TrainState
  mesh: jax.sharding.Mesh
  program: Callable
  make_stream: Callable[[Sequence[pathlib.Path]], EvalStream]
  ensemble: str
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def scores(self) -> list[dict]:
    """Scores the files.

    Returns:
      For each file, in order, {'file', 'scores': float [K], probabilities} or
      {'file', 'error': why it cannot be used}.

    Raises:
      ConfigError: None of the files can be used.
    """
    usable = list(self.looked.in_order)
    result = scoring.score(
      self.program,
      self.state,
      self.make_stream(usable),
      self.mesh,
      ensemble=self.ensemble,
    )
    errors = dict(self.looked.errors)
    scores = {}
    for path, score, views in zip(
      usable, result.scores, result.views, strict=True
    ):
      if views:
        scores[path] = score
      else:
        errors[path] = result.failures[str(path)]
    if not scores:
      raise ConfigError(video_files.none_usable(errors))
    return [
      {'file': str(p)}
      | ({'scores': scores[p]} if p in scores else {'error': errors[p]})
      for p in self.paths
    ]

  def explain(self, labels: dict[str, int]) -> Iterator[Explained]:
    """Yields every clip of some files, in order, file by file.

    Args:
      labels: The class to explain, by file.
    """
    step = jax.jit(
      class_maps.make_feature_step(self.model, mean=self.mean, std=self.std),
      out_shardings=parallel.sharded(self.mesh),
    )
    names = list(labels)
    numbers = np.array(list(labels.values()), np.int32)
    for batch in self.make_stream([pathlib.Path(n) for n in names]).batches():
      on_device = parallel.put_batch(
        self.mesh,
        {'video': batch['video'], 'label': numbers[batch['index']]},
      )
      found = step(
        self.state.params,
        self.state.batch_stats,
        on_device['video'],
        on_device['label'],
      )
      pooled, heat = map(parallel.to_host, found)
      for i in np.flatnonzero(batch['weight']):
        yield Explained(
          names[batch['index'][i]], batch['video'][i], pooled[i], heat[i]
        )
