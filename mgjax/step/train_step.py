"""One training step, and the moments of a batch.

These are pure functions. The model and the optimizer are closed over;
everything that changes from step to step is an argument, so one compiled
program serves every step of a grid.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mgjax.models import norm, statistics
from mgjax.step import losses, on_devices, optim, parameters
from mgjax.step.on_devices import Layout
from mgjax.step.train_state import TrainState


def normalize(
  video: jax.Array,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Centres and scales pixels.

  Args:
    video: uint8 RGB [B, T, H, W, 3].
    mean: Subtracted from RGB in [0, 1].
    std: By which that is divided.
    dtype: The network's compute type.

  Returns:
    Pixels of that type, but of float32 where it is a shorter one.
  """
  # Float32 pixels in a float64 program are not the same everywhere: whether
  # XLA:CPU rounds once or twice here depends on what it fuses this with (since
  # JAX 0.12 otherwise in the stem's forward pass than in its gradient).
  dtype = jnp.promote_types(dtype, jnp.float32)
  mean, std = jnp.asarray(mean, dtype), jnp.asarray(std, dtype)
  # One multiply-add per pixel.
  return video.astype(dtype) * (1 / (255 * std)) - mean / std


def flip_clips(video: jax.Array, flip: jax.Array) -> jax.Array:
  """Mirrors the clips of [B, T, H, W, 3] whose entry of bool [B] is set."""
  # A choice between both: the same program, whichever clips are mirrored.
  return jnp.where(flip[:, None, None, None, None], video[:, :, :, ::-1], video)


class Parts(NamedTuple):
  """A training step in two; arguments are those of `make_train_step`.

  Attributes:
    gradients: From (state, batch, groups, rng, strengths) to (gradients of the
      trained parameters, new running statistics, 'loss' and 'top1').
    update: From (state, gradients, lr) to (the new state, 'grad_norm'). The
      state has the new statistics. Nothing here depends on the batch's shape.
  """

  gradients: Callable
  update: Callable


def make_parts(
  model: nn.Module,
  tx: optax.GradientTransformation,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  loss: str = 'softmax',
  label_smoothing: float = 0.0,
  class_weights: Sequence[float] | None = None,
  ema_decay: float = 0.0,
  micro_batches: int = 1,
  augment: Callable | None = None,
  trained: Callable[[dict], parameters.Marks] = lambda params: None,
  frozen_dropout: bool = False,
  unroll: bool = True,
  layout: Layout | None = None,
  reduce_dtype: str = 'float32',
) -> Parts:
  """Returns the two parts of a training step.

  With micro-batches, each part of M is of whole batch-norm groups, that is, of
  consecutive clips, and every device has an equal share of it. (M must divide
  `groups`, which is not checked here: `groups` is a value of the program.) Then
  the sum over the parts is exact: gradients, running statistics and dropout
  masks are those of the whole batch, up to the order of summation.

  Args:
    model: The network.
    tx: The optimizer.
    mean: Subtracted from RGB in [0, 1].
    std: By which that is divided.
    loss: See `losses.clip_losses`.
    label_smoothing: See `losses.clip_losses`.
    class_weights: K numbers, what a clip of each class counts in the loss, see
      `losses.clip_weights`; None: all clips count alike.
    ema_decay: See `optim.update_average`; 0: no average.
    micro_batches: M, parts of the batch that are computed one by one.
    augment: From a batch, a key and strengths to a batch (step/augment.py);
      None: off.
    trained: From all parameters to marks of those that are trained, the same
      as the optimizer's. There are no gradients of the others, so that no
      backward pass goes through what comes before the first of them.
    frozen_dropout: Whether modules without a trained parameter have dropout and
      drop path, too; else they compute as in an evaluation (but batch norms:
      see config.norm.frozen).
    unroll: Whether micro-batches stand one after the other in the program, as
      CPUs need it, and not in a loop.
    layout: Devices that share the batch; None: one.
    reduce_dtype: Type in which they sum gradients, see `on_devices.on_devices`.
  """
  # In one part on one device the program is as if there were no others.
  in_shares = micro_batches > 1 or (layout and model.computes_by_clip)
  differentiate = _make_gradients(
    _make_apply(model, trained, frozen_dropout),
    model.draws_by_clip,
    _make_inputs(model, mean, std),
    loss,
    label_smoothing,
    trained,
    'batch_moments' if in_shares else 'batch_stats',
  )
  if in_shares:
    differentiate = _put_together(
      *(differentiate, model, trained, micro_batches, unroll),
      *(layout, reduce_dtype),
    )

  def gradients(state, batch, groups, rng, strengths=None):
    # The step is in the key: a resumed run draws what it would have drawn.
    dropout = jax.random.fold_in(rng, state.step)
    if augment is not None:
      # Of the whole batch; dropout's key stays that of a run without.
      batch = augment(batch, jax.random.fold_in(dropout, 1), strengths)
    if class_weights is not None:
      batch = _weighted(batch, class_weights)
    size = batch['label'].shape[0] // groups
    grads, metrics, batch_stats = differentiate(state, batch, size, dropout)
    return grads, batch_stats, metrics

  return Parts(gradients, _make_update(model, tx, trained, ema_decay))


def _make_update(
  model: nn.Module,
  tx: optax.GradientTransformation,
  trained: Callable[[dict], parameters.Marks],
  ema_decay: float,
) -> Callable:
  """Returns the second part of a step: see `Parts`."""

  def update(state, grads, lr):
    direction, opt_state = tx.update(grads, state.opt_state, state.params)
    marks = trained(state.params)
    params = _moved(state.params, direction, lr, marks)
    # Written out, not `replace`: a field that is forgotten here is an error.
    new = TrainState(
      step=state.step + 1,
      params=params,
      batch_stats=state.batch_stats,
      opt_state=opt_state,
      ema=_averaged(state, params, marks, model.norm_frozen, ema_decay),
    )
    # Before it is clipped: afterwards it would say nothing about the network.
    return new, optax.tree.norm(grads)

  return update


def make_train_step(
  model: nn.Module, tx: optax.GradientTransformation, **options: Any
) -> Callable:
  """Returns a function of the state, a batch and what its step says.

  train_step(state, batch, lr, groups, rng, strengths) -> (state, metrics).

  Its arguments:
    state: TrainState.
    batch: 'video' uint8 [B, T, H, W, 3], 'label' int32 [B] or weights of the
      classes, float32 [B, K], 'flip' bool [B].
    lr: float32 [], the learning rate.
    groups: int32 [], batch-norm groups; divides B.
    rng: Key of the run; the step's keys of dropout and augmentation are folded
      from it.
    strengths: Of augmentation, float32 [] by name: those that change over the
      run. Not given: none does.

  The metrics are float32 []: 'loss' (mean over the clips), 'top1' (share of
  clips whose likeliest class is right, see `losses.hits`), 'grad_norm' (before
  it is clipped).

  Args:
    model: The network.
    tx: The optimizer.
    **options: Those of `make_parts`.
  """
  return whole(make_parts(model, tx, **options))


def whole(parts: Parts) -> Callable:
  """Returns the step of two parts, see `make_train_step`."""

  def train_step(state, batch, lr, groups, rng, strengths=None):
    grads, batch_stats, metrics = parts.gradients(
      state, batch, groups, rng, strengths
    )
    state, norm = parts.update(
      state.replace(batch_stats=batch_stats), grads, lr
    )
    return state, {**metrics, 'grad_norm': norm}

  return train_step


def _weighted(batch: dict, class_weights: Sequence[float]) -> dict:
  """A batch with what its clips count in the loss."""
  # Of the whole batch, before it is cut: parts then add up to it.
  weight = losses.clip_weights(batch['label'], jnp.array(class_weights))
  return {**batch, 'weight': weight}


def _moved(
  params: dict, direction: dict, lr: jax.Array, marks: parameters.Marks
) -> dict:
  """All parameters after a step of those that are marked."""
  # The learning rate is an argument of the program: a schedule inside the
  # optimizer would count steps, which have other lengths on other grids.
  # Cast: a float32 rate would make float32 of parameters of a shorter type.
  moved = jax.tree.map(
    lambda p, d: p - lr.astype(p.dtype) * d,
    parameters.part(params, marks),
    direction,
  )
  return parameters.joined(moved, parameters.part(params, marks, marked=False))


def _averaged(
  state: TrainState,
  params: dict,
  marks: parameters.Marks,
  norm_frozen: str,
  decay: float,
) -> dict:
  """The average of the parameters after a step to new ones."""
  # {} where it is off, not a copy: with SGD a third less in checkpoints.
  if not decay:
    return {}
  ema = optim.update_average(state.ema, params, state.step, decay)
  # Averages of equal numbers, but exactly.
  frozen = norm.frozen_parameters(params, norm_frozen)
  if marks is not None:
    frozen = jax.tree.map(lambda f, m: f or not m, frozen, marks)
  return jax.tree.map(lambda f, a, p: p if f else a, frozen, ema, params)


def _make_inputs(model: nn.Module, mean, std) -> Callable[[dict], jax.Array]:
  """Returns inputs(batch): the clips as a network gets them in training."""

  def inputs(batch):
    # Mirrored while it is uint8: a fourth of the bytes to move.
    video = flip_clips(batch['video'], batch['flip'])
    return normalize(video, mean, std, model.dtype)

  return inputs


def _make_apply(
  model: nn.Module, trained: Callable[[dict], parameters.Marks], dropout: bool
) -> Callable:
  """Returns model.apply, with dropout only where something is trained."""

  def apply(variables, *args, **kwargs):
    marks = trained(variables['params'])
    if marks is None or dropout:
      return model.apply(variables, *args, **kwargs)
    with parameters.silent_dropout(variables['params'], marks):
      return model.apply(variables, *args, **kwargs)

  return apply


def _make_gradients(
  apply: Callable,
  draws_by_clip: bool,
  inputs: Callable,
  loss: str,
  label_smoothing: float,
  trained: Callable[[dict], parameters.Marks],
  collection: str,
) -> Callable:
  """Returns gradients(state, batch, group_clips, dropout, clip_index, sharing).

  That gives the gradients, metrics and new statistics of (a part of) a batch:
  `clip_index` are the places of its clips in the whole one (None: it is the
  whole one), `sharing` is the number of devices that share groups
  (`on_devices.Layout`), `collection` says which statistics, 'batch_stats' (the
  running ones) or 'batch_moments' (those of its clips).
  """

  def gradients(state, batch, group_clips, dropout, clip_index=None, sharing=1):
    video = inputs(batch)
    if clip_index is not None and not draws_by_clip:
      # Else all parts of a batch would have the same masks.
      dropout = jax.random.fold_in(dropout, clip_index[0])
    # A matrix and not a loop over the groups: their number is a value of the
    # program, and one program serves every phase that has this grid.
    same_group = norm.consecutive(sharing * video.shape[0], group_clips)
    marks = trained(state.params)
    frozen = parameters.part(state.params, marks, marked=False)

    def loss_fn(params):
      # `clip_index`: dropout draws a mask for a clip's place in the whole
      # batch, so that parts draw what the whole would.
      logits, updates = apply(
        {
          'params': parameters.joined(params, frozen),
          'batch_stats': state.batch_stats,
        },
        video,
        same_group=same_group,
        clip_index=clip_index,
        rngs={'dropout': dropout},
        mutable=[collection],
      )
      each = losses.clip_losses(logits, batch['label'], loss, label_smoothing)
      if 'weight' in batch:
        each = each * batch['weight']
      # Where all batch norms are frozen there are no moments.
      # The mean over all clips: groups are for statistics only.
      return each.mean(), (logits, updates.get(collection, {}))

    # Statistics leave as auxiliary output: they have no gradient.
    (mean_loss, (logits, found)), grads = jax.value_and_grad(
      loss_fn, has_aux=True
    )(parameters.part(state.params, marks))
    # Of the logits that training has anyway, dropout included.
    right = losses.hits(logits, batch['label'])
    metrics = {'loss': mean_loss, 'top1': right.mean(dtype=jnp.float32)}
    return grads, metrics, found

  return gradients


def _put_together(
  gradients: Callable,
  model: nn.Module,
  trained: Callable[[dict], parameters.Marks],
  micro_batches: int,
  unroll: bool,
  layout: Layout | None,
  reduce_dtype: str,
) -> Callable:
  """Returns gradients of a batch in micro-batches, on several devices, or both.

  Its arguments are those of `make_train_step`, and `gradients`, of a part.
  """
  # For other networks XLA places the clips and adds up the gradients by itself:
  # the batch is sharded and the parameters are not.
  by_clip = model.computes_by_clip
  if micro_batches > 1:
    gradients = _accumulated(
      gradients, micro_batches, trained, unroll, None if by_clip else layout
    )
  if layout is not None and by_clip:
    gradients = on_devices.on_devices(
      gradients, layout, micro_batches, reduce_dtype
    )

  def differentiate(state, batch, group_clips, dropout):
    grads, metrics, moments = gradients(state, batch, group_clips, dropout)
    # Once for all parts and devices.
    batch_stats = statistics.update(
      state.batch_stats, moments, model.norm_momentum
    )
    return grads, metrics, batch_stats

  return differentiate


def _accumulated(
  gradients: Callable,
  micro_batches: int,
  trained: Callable[[dict], parameters.Marks],
  unroll: bool,
  layout: Layout | None,
) -> Callable:
  """Returns what gives the same for a whole batch, part by part.

  Args:
    gradients: Of a part.
    micro_batches: Parts.
    trained: Marks of the trained parameters.
    unroll: Whether the parts stand one after the other, not in a loop.
    layout: Devices on which XLA itself places the clips, if there are any.
  """

  def accumulated_gradients(
    state, batch, group_clips, dropout, clip_index=None, sharing=1
  ):
    if clip_index is None:
      clip_index = jnp.arange(batch['label'].shape[0])
    parts = on_devices.parts_of(
      {**batch, 'clip_index': clip_index},
      micro_batches,
      sharing,
      layout.blocks(on_devices.grid_of(batch), micro_batches) if layout else 1,
    )

    def add_part(total, part):
      # A part starts when the one before is added: unrolled parts would all
      # run forwards first, and keep the activations of the whole batch.
      total, part = jax.lax.optimization_barrier((total, part))
      # The clips' places in the whole batch, see `gradients`.
      clip_index = part.pop('clip_index')
      grads, metrics, moments = gradients(
        state, part, group_clips, dropout, clip_index, sharing
      )
      return jax.tree.map(jnp.add, total, (grads, metrics)), moments

    # Of the parameters' types, as the gradients of the parts are.
    params = parameters.part(state.params, trained(state.params))
    zeros = jax.tree.map(jnp.zeros_like, (params, {'loss': 0.0, 'top1': 0.0}))
    # Unrolled on CPUs: XLA:CPU takes very long to compile a network inside a
    # loop.
    total, moments = jax.lax.scan(add_part, zeros, parts, unroll=unroll)
    # Parts are equal, so the mean of their means is that of the batch.
    grads, metrics = jax.tree.map(lambda x: x / micro_batches, total)
    # Of all clips, whichever part they were in.
    return grads, metrics, jax.tree.map(jnp.concatenate, moments)

  return accumulated_gradients


def make_stats_step(
  model: nn.Module,
  *,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  layout: Layout | None = None,
) -> Callable:
  """Returns stats_step(state, batch, groups, rng) -> batch moments.

  These are means and biased variances of this batch alone, a tree like
  state.batch_stats; `statistics.combine` pools those of several batches. The
  parameters are those that evaluation uses; dropout is on, as in training.

  Args:
    model: The network.
    mean: Subtracted from RGB in [0, 1].
    std: By which that is divided.
    layout: Devices that share the batch; None: one.
  """
  inputs = _make_inputs(model, mean, std)

  def clip_moments(
    state, batch, group_clips, dropout, clip_index=None, sharing=1
  ):
    video = inputs(batch)
    _, moments = model.apply(
      # Those of evaluation (the average, where there is one): statistics of
      # other weights would not fit them.
      {'params': state.eval_params, 'batch_stats': state.batch_stats},
      video,
      same_group=norm.consecutive(sharing * video.shape[0], group_clips),
      clip_index=clip_index,
      rngs={'dropout': dropout},
      mutable=['batch_moments'],
    )
    # No gradients, and no metrics.
    return {}, {}, moments['batch_moments']

  if layout is not None and model.computes_by_clip:
    clip_moments = on_devices.on_devices(clip_moments, layout, 1, 'float32')

  def stats_step(state, batch, groups, rng):
    group_clips = batch['label'].shape[0] // groups
    dropout = jax.random.fold_in(rng, state.step)
    *_, moments = clip_moments(state, batch, group_clips, dropout)
    return statistics.whole_moments(moments)

  return stats_step
