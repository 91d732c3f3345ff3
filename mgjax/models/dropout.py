"""Dropout whose masks belong to clips, not to batches."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Dropout(nn.Module):
  """Zeroes features at random, and scales the others up.

  The mask of a clip follows from the 'dropout' key and the number of the clip
  alone. So it is the same whether a batch is computed at once or in parts.

  Attributes:
    rate: Share of the features that becomes zero, in [0, 1); a number, or an
      array of one.
    whole: Whether those of a clip become zero together ("drop path").

  Differs: flax.linen.Dropout draws one mask for the whole array.
  """

  rate: Any
  whole: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, ' B *features'],
    clip_index: Int[Array, ' B'] | None,
    *,
    deterministic: bool,
  ) -> Float[Array, ' B *features']:
    """Returns the features that are left.

    Args:
      x: Features.
      clip_index: Numbers of the clips in the batch; None: 0, 1, 2, ...
      deterministic: Return x as it is.
    """
    is_off = isinstance(self.rate, float) and not self.rate
    if deterministic or is_off:
      return x
    if clip_index is None:
      clip_index = jnp.arange(x.shape[0])
    key = self.make_rng('dropout')
    shape = (1,) * (x.ndim - 1) if self.whole else x.shape[1:]
    keep = jax.vmap(
      lambda clip: jax.random.bernoulli(
        jax.random.fold_in(key, clip), 1 - self.rate, shape
      )
    )(clip_index)
    return jnp.where(keep, x / (1 - self.rate), 0)
