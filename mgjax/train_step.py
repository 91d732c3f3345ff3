"""The state of a training run and the pure functions that act on it.

The model and the optimizer are closed over; everything that changes from step
to step is an argument, so one compiled program serves every step of a grid.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from mgjax.models import norm


@flax.struct.dataclass
class TrainState:
  """Everything that a checkpoint holds. Its tree is the same at every grid.

  Attributes:
    step: int32 [], steps taken; the only clock of a run.
    params: Trained parameters.
    batch_stats: Running means and variances, of use in evaluation only.
    opt_state: The optimizer's state.
  """

  step: Any
  params: dict
  batch_stats: dict
  opt_state: optax.OptState


def create_state(
  model: nn.Module, tx: optax.GradientTransformation, rng: jax.Array, video
) -> TrainState:
  """Makes the state before the first step.

  Args:
    model: The network.
    tx: The optimizer.
    rng: Key of the initial parameters.
    video: float [B, T, H, W, 3]; its shape does not matter.
  """
  variables = model.init(rng, video, pool=None)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=tx.init(variables['params']),
  )


def normalize(
  video: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """Turns uint8 RGB [B, T, H, W, 3] into float32, centred and scaled."""
  mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
  # One multiply-add per pixel.
  return video.astype(jnp.float32) * (1 / (255 * std)) - mean / std


def flip_clips(video: jax.Array, flip: jax.Array) -> jax.Array:
  """Mirrors the clips of [B, T, H, W, 3] whose entry of bool [B] is set."""
  return jnp.where(flip[:, None, None, None, None], video[:, :, :, ::-1], video)


def make_train_step(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
) -> Callable:
  """Returns train_step(state, batch, lr, groups, rng) -> (state, metrics).

  Its arguments:
    state: TrainState.
    batch: 'video' uint8 [B, T, H, W, 3], 'label' int32 [B], 'flip' bool [B].
    lr: float32 [], the learning rate.
    groups: int32 [], batch-norm groups; divides B.
    rng: Key of the run; the step's dropout key is folded from it.

  The metrics are float32 []: 'loss' (mean cross-entropy), 'top1' (share of
  clips), 'grad_norm'.
  """

  def train_step(state, batch, lr, groups, rng):
    video = normalize(flip_clips(batch['video'], batch['flip']), mean, std)
    pool = norm.group_matrix(video.shape[0], groups)
    dropout = jax.random.fold_in(rng, state.step)

    def loss_fn(params):
      logits, updates = model.apply(
        {'params': params, 'batch_stats': state.batch_stats},
        video,
        pool=pool,
        rngs={'dropout': dropout},
        mutable=['batch_stats'],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch['label']
      )
      return losses.mean(), (logits, updates['batch_stats'])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(
      loss_fn, has_aux=True
    )(state.params)
    direction, opt_state = tx.update(grads, state.opt_state, state.params)
    params = jax.tree.map(
      lambda p, d: p - lr.astype(p.dtype) * d, state.params, direction
    )
    metrics = {
      'loss': loss,
      'top1': (logits.argmax(-1) == batch['label']).mean(dtype=jnp.float32),
      'grad_norm': optax.tree.norm(grads),
    }
    state = TrainState(
      step=state.step + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    return state, metrics

  return train_step


def make_stats_step(
  model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable:
  """Returns stats_step(state, batch, groups, rng) -> batch moments.

  These are means and variances of this batch alone, a tree like
  state.batch_stats; `norm.combine_statistics` pools those of several batches.
  Dropout is on, as in training.
  """

  def stats_step(state, batch, groups, rng):
    video = normalize(flip_clips(batch['video'], batch['flip']), mean, std)
    _, moments = model.apply(
      {'params': state.params, 'batch_stats': state.batch_stats},
      video,
      pool=norm.group_matrix(video.shape[0], groups),
      rngs={'dropout': jax.random.fold_in(rng, state.step)},
      mutable=['batch_moments'],
    )
    return moments['batch_moments']

  return stats_step


def make_eval_step(
  model: nn.Module,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  window: tuple[int, int, int] | None = None,
) -> Callable:
  """Returns eval_step(params, batch_stats, video) -> scores.

  The scores are float32 [B, K], softmax probabilities of each view.

  Args:
    model: The network.
    mean: Subtracted from RGB in [0, 1].
    std: By which that is divided.
    window: Frames, height and width of the training clip, for the fully
      convolutional head: the scores are the average of the probabilities at
      all positions of a window of that size. None: the global average.

  Source: PySlowFast 287ec00, models/head_helper.py, ResNetBasicHead.
  """
  head = {} if window is None else {'window': window}

  def eval_step(params, batch_stats, video):
    logits = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      normalize(video, mean, std),
      pool=None,
      **head,
    )
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    return probabilities.mean(tuple(range(1, probabilities.ndim - 1)))

  return eval_step
