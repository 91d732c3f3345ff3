"""Non-local blocks: every position of a clip attends to every other one.

Source: Wang et al. 2018 (arXiv:1711.07971), section 3; PySlowFast 287ec00,
models/nonlocal_helper.py.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mgjax.config import network_options
from mgjax.models import conv, norm

MODES = ('softmax', 'dot_product')


def max_pool_windows(
  x: Float[Array, 'B T H W C'], window: tuple[int, int, int]
) -> Float[Array, 'B t h w C']:
  """Maximum of windows that do not overlap; a remainder is dropped.

  An axis shorter than its window is one window (n -> max(n // window, 1)):
  the coarse grids of a multigrid schedule leave maps of 1 x 1, which the
  reference refuses.
  """
  # Maxima of slices, as in conv.py. (The gradient of a max over an axis divides
  # by the number of elements that equal the maximum: none, so NaN, where XLA
  # computes x twice and rounds it differently.)
  for axis, size in enumerate(window, start=1):
    size = min(size, x.shape[axis])
    end = x.shape[axis] // size * size
    x = functools.reduce(
      jnp.maximum,
      [lax.slice_in_dim(x, i, end, size, axis) for i in range(size)],
    )
  return x


class Projection(nn.Module):
  """1 x 1 x 1 convolution with a bias."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B T H W C']) -> Float[Array, 'B T H W D']:
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = conv.Conv(self.features, (1, 1, 1), dtype=self.dtype, name='conv')(x)
    return x + bias.astype(x.dtype)


class NonLocalBlock(nn.Module, network_options.NormOptions):
  """x + norm(out(weights(theta(x), phi(pooled x)) g(pooled x))).

  The block starts as the identity. Its parameters do not depend on the grid.

  Attributes:
    mode: How affinities a, products of theta and phi, become weights of the P
      pooled positions. 'softmax': softmax(a / sqrt(C / 2)). 'dot_product':
      a / P.
    groups: Groups of consecutive frames, which attend among themselves only.
      Where they do not divide the frames, as on a coarse grid, there are
      gcd(groups, T).
    pool_window: Windows (frames, rows, columns) of the max-pool in front of
      phi and g; (1, 1, 1) for none.
    dtype: Compute type; affinities are computed in float32 at least.
  """

  mode: str
  groups: int = 1
  pool_window: tuple[int, int, int] = (1, 2, 2)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T H W C'], same_group: norm.SameGroup
  ) -> Float[Array, 'B T H W C']:
    """Returns x plus what each position takes from the others.

    Args:
      x: Video features.
      same_group: Batch-norm groups, as `norm.BatchNorm` takes them.

    Raises:
      ValueError: If the mode is unknown.
    """
    if self.mode not in MODES:
      raise ValueError(
        f'Unknown non-local mode {self.mode!r}; accepted are '
        f'{", ".join(MODES)}.'
      )
    b, t, h, w, c = x.shape
    groups = math.gcd(self.groups, t)
    inner = c // 2
    grouped = x.reshape(b * groups, t // groups, h, w, c)
    pooled = max_pool_windows(grouped, self.pool_window)
    theta, phi, g = (
      Projection(inner, self.dtype, name=name)(source).reshape(
        b * groups, -1, inner
      )
      for name, source in (('theta', grouped), ('phi', pooled), ('g', pooled))
    )
    affinity = jnp.einsum(
      'bnc,bpc->bnp',
      theta,
      phi,
      preferred_element_type=jnp.promote_types(self.dtype, jnp.float32),
    )
    if self.mode == 'softmax':
      weights = jax.nn.softmax(affinity * inner**-0.5)
    else:
      weights = affinity / phi.shape[1]
    y = jnp.einsum('bnp,bpc->bnc', weights.astype(self.dtype), g)
    y = Projection(c, self.dtype, name='out')(y.reshape(b, t, h, w, inner))
    y = norm.BatchNorm(
      momentum=self.norm_momentum,
      eps=self.norm_eps,
      frozen=self.norm_frozen,
      zero_init=True,
      dtype=self.dtype,
      name='norm',
    )(y, same_group)
    return x + y
