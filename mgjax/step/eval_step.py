"""Scores of clips by a trained network.

These are pure functions, as those of train_step.py.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mgjax.step import train_step


def make_scorer(
  model: nn.Module,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  window: tuple[int, int, int] | None = None,
  loss: str = 'softmax',
) -> Callable:
  """Returns scorer(params, batch_stats, video) -> (logits, scores).

  The logits are [B, K], or [B, t, h, w, K] with a window. The scores are
  float32 [B, K], probabilities of the classes in each view.

  Args:
    model: The network.
    mean: Subtracted from RGB in [0, 1].
    std: By which that is divided.
    window: Frames, height and width of the training clip, for the fully
      convolutional head: the scores are the average of the probabilities at
      all positions of a window of that size. None: the global average.
    loss: That of the training: 'softmax', or 'sigmoid' for probabilities of
      every class by itself.

  Source: PySlowFast 287ec00, models/head_helper.py, ResNetBasicHead.
  """
  # Only networks with a convolutional head know the argument.
  head = {} if window is None else {'window': window}
  activation = {'softmax': jax.nn.softmax, 'sigmoid': jax.nn.sigmoid}[loss]

  def scorer(params, batch_stats, video):
    logits = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      train_step.normalize(video, mean, std, model.dtype),
      same_group=None,
      **head,
    )
    # In float32: bfloat16 has three digits, too few to add up thirty views.
    probabilities = activation(logits.astype(jnp.float32))
    # Over the places of the head, [B, T, H, W, K]; the global average has none.
    # Probabilities and not logits, as PySlowFast does.
    places = tuple(range(1, probabilities.ndim - 1))
    return logits, probabilities.mean(places)

  return scorer


def make_eval_step(model: nn.Module, **options) -> Callable:
  """Returns eval_step(params, batch_stats, video) -> scores.

  Args:
    model: The network.
    **options: Those of `make_scorer`.
  """
  scorer = make_scorer(model, **options)

  def eval_step(params, batch_stats, video):
    return scorer(params, batch_stats, video)[1]

  return eval_step
