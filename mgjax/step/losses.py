"""What a training step minimizes, and whether its likeliest class is right."""

import jax
import jax.numpy as jnp
import optax


def clip_losses(
  logits: jax.Array, label: jax.Array, loss: str, smoothing: float = 0.0
) -> jax.Array:
  """The loss of each clip, [B].

  Args:
    logits: [B, K].
    label: int [B], or weights of the classes, [B, K].
    loss: 'softmax': cross-entropy. 'sigmoid': binary cross-entropy of every
      class by itself, averaged over the classes; takes weights only.
    smoothing: 'softmax': share of the target that is spread over all K classes,
      that of the label included, as in
      torch.nn.CrossEntropyLoss(label_smoothing=).

  Source: PySlowFast 287ec00, models/losses.py (cross_entropy, bce_logit).
  """
  if loss == 'sigmoid':
    return optax.sigmoid_binary_cross_entropy(logits, label).mean(-1)
  if label.ndim == 1:
    if not smoothing:
      return optax.softmax_cross_entropy_with_integer_labels(logits, label)
    label = jax.nn.one_hot(label, logits.shape[-1], dtype=logits.dtype)
  return optax.softmax_cross_entropy(
    logits, optax.smooth_labels(label, smoothing)
  )


def clip_weights(label: jax.Array, class_weights: jax.Array) -> jax.Array:
  """What each clip of a whole batch counts in its loss, float32 [B]; mean 1.

  A mean over clips that are weighed by these is that of
  torch.nn.CrossEntropyLoss(weight=), which divides by the sum of the weights:
  a batch with a rare clip moves the parameters no further than another one.

  Args:
    label: int [B], or weights of the classes, [B, K].
    class_weights: What a clip of each class counts, float32 [K].
  """
  weights = class_weights[label] if label.ndim == 1 else label @ class_weights
  return weights / weights.mean()


def hits(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Whether the likeliest class of each clip is right, bool [B].

  Args:
    logits: [B, K].
    label: int [B], or weights of the classes, [B, K]: then a class of the
      greatest weight is right, and none is where all are 0.
  """
  best = logits.argmax(-1)
  if label.ndim == 1:
    return best == label
  weight = jnp.take_along_axis(label, best[:, None], 1)[:, 0]
  return (weight == label.max(-1)) & (weight > 0)
