"""Attention, and what transformers make of it: the parts that they share."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mgjax.models import conv, positions
from mgjax.models.dropout import Dropout
from mgjax.models.head import ClipIndex
from mgjax.models.positions import Rotation

# Hidden features of an MLP per feature of a token, where nothing else is said.
MLP_RATIO = 4

# Source: timm's and both references' trunc_normal_(std=0.02), which cuts off at
# 2, a hundred standard deviations away.
_STD = 0.02
init_weights = nn.initializers.normal(_STD)


def layer_norm(eps: float, dtype: Any, name: str) -> nn.Module:
  # The variance of differences, as torch has it: E[x^2] - E[x]^2 cancels.
  return nn.LayerNorm(
    epsilon=eps, dtype=dtype, use_fast_variance=False, name=name
  )


def dense(
  features: int, dtype: Any, name: str, bias: bool = True, scale: float = 1.0
):
  return nn.Dense(
    features,
    use_bias=bias,
    dtype=dtype,
    kernel_init=nn.initializers.normal(_STD * scale),
    name=name,
  )


class TubeletEmbedding(nn.Module):
  """Cuts clips into tubelets and makes a token of each: a strided convolution.

  Attributes:
    width: D, of a token.
    size: Frames, height and width of a tubelet, in pixels.
    dtype: Compute type.
  """

  width: int
  size: tuple[int, int, int]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, video: Float[Array, 'B T H W C']
  ) -> Float[Array, 'B t h w D']:
    batch, *lengths, channels = video.shape
    cuts = [
      part
      for length, size in zip(lengths, self.size, strict=True)
      for part in (length // size, size)
    ]
    kernel = self.param(
      'kernel', init_weights, (*self.size, channels, self.width)
    )
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    # As a matrix product: tubelets do not overlap, and that is fast everywhere.
    x = video.reshape(batch, *cuts, channels).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    x = x.reshape(*x.shape[:4], -1).astype(self.dtype)
    kernel = kernel.reshape(-1, self.width).astype(self.dtype)
    return x @ kernel + bias.astype(self.dtype)


def attend(
  query: Float[Array, 'B q heads d'],
  key: Float[Array, 'B k heads d'],
  value: Float[Array, 'B k heads d'],
  logit_cap: float = 0.0,
  bias: Float[Array, 'B heads q k'] | None = None,
) -> Float[Array, 'B q D']:
  """Scaled dot-product attention; heads are joined.

  With `logit_cap`, affinities x become logit_cap * tanh(x / logit_cap). A bias
  is added to them.

  Programs for NVIDIA GPUs have cuDNN's flash attention where it takes the
  shapes and the type (float16, bfloat16; no cap, no bias). It is chosen when a
  program is lowered, by the platform that it is lowered for.
  """
  einsums = functools.partial(_einsums, logit_cap=logit_cap, bias=bias)
  is_plain = not logit_cap and bias is None
  if is_plain and _is_flash(query.shape, key.shape, query.dtype):
    x = jax.lax.platform_dependent(
      query, key, value, cuda=_flash, default=einsums
    )
  else:
    x = einsums(query, key, value)
  return x.reshape(*x.shape[:2], -1)


def _einsums(
  query: Array,
  key: Array,
  value: Array,
  *,
  logit_cap: float,
  bias: Array | None,
) -> Array:
  """Attention whose softmax is in float32 at least.

  (jax.nn.dot_product_attention without cuDNN is the same, but for a softmax in
  float32 always, which costs a float64 program its digits.)
  """
  exact = jnp.promote_types(query.dtype, jnp.float32)
  affinities = jnp.einsum(
    'bqhd,bkhd->bhqk',
    query * query.shape[-1] ** -0.5,
    key,
    preferred_element_type=exact,
  )
  if logit_cap:
    affinities = logit_cap * jnp.tanh(affinities / logit_cap)
  if bias is not None:
    affinities = affinities + bias
  weights = jax.nn.softmax(affinities, axis=-1).astype(value.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


_flash = functools.partial(jax.nn.dot_product_attention, implementation='cudnn')


@functools.cache
def _is_flash(
  query: tuple[Any, ...], key: tuple[Any, ...], dtype: np.dtype
) -> bool:
  """Whether cuDNN is installed and takes these shapes, forward and back.

  JAX says so by tracing only; its rules are those of a cuDNN version. In an
  export the number of clips is a symbol.
  """
  if jnp.finfo(dtype).bits > 16:
    return False
  loss = lambda *arrays: _flash(*arrays).astype(jnp.float32).sum()
  shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in (query, key, key)]
  try:
    jax.eval_shape(jax.grad(loss), *shapes)
  except (NotImplementedError, RuntimeError, ValueError):
    return False
  return True


def query_key_value(
  attention: nn.Module, x: Float[Array, 'B tokens _'], width: int, bias: str
) -> list[Float[Array, 'B tokens D']]:
  """From one matrix, 'qkv', which becomes a parameter of the attention.

  Args:
    attention: The module, in its `__call__`; it has a dtype.
    x: Tokens.
    width: D, of each of the three.
    bias: Which have a bias: 'qkv', 'qv' or ''.
  """
  dtype = attention.dtype
  parts = jnp.split(dense(3 * width, dtype, 'qkv', bias=False)(x), 3, -1)
  for i, name in enumerate('qkv'):
    if name in bias:
      term = attention.param(f'{name}_bias', nn.initializers.zeros, (width,))
      parts[i] = parts[i] + term.astype(dtype)
  return parts


class SelfAttention(nn.Module):
  """Attention of tokens among themselves.

  Attributes:
    heads: Number of heads.
    bias: Which of query, key and value have a bias: 'qkv', 'qv' or ''.
    dtype: Compute type.
    logit_cap: See `attend`.
    init_scale: Factor on the initial weights of the last layer.

  Source: MCG-NJU/VideoMAE 14ef8d8, modeling_finetune.py, Attention (query, key
    and value from one matrix; q_bias, v_bias).
  """

  heads: int
  bias: str = 'qkv'
  dtype: Any = jnp.float32
  logit_cap: float = 0.0
  init_scale: float = 1.0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B tokens D'], rotation: Rotation | None = None
  ) -> Float[Array, 'B tokens D']:
    width = x.shape[-1]
    query, key, value = (
      part.reshape(*x.shape[:2], self.heads, -1)
      for part in query_key_value(self, x, width, self.bias)
    )
    if rotation is not None:
      query = positions.rotate(query, rotation)
      key = positions.rotate(key, rotation)
    return dense(width, self.dtype, 'proj', scale=self.init_scale)(
      attend(query, key, value, self.logit_cap)
    )


class MLP(nn.Module):
  """Two layers with a GELU between them.

  Attributes:
    hidden: Features between them.
    dtype: Compute type.
    gelu: 'exact', or an approximation by 'tanh'.
    init_scale: Factor on the initial weights of the last layer.
  """

  hidden: int
  dtype: Any = jnp.float32
  gelu: str = 'exact'
  init_scale: float = 1.0

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B tokens D']
  ) -> Float[Array, 'B tokens D']:
    y = dense(self.hidden, self.dtype, 'fc1')(x)
    y = jax.nn.gelu(y, approximate=self.gelu == 'tanh')
    return dense(x.shape[-1], self.dtype, 'fc2', scale=self.init_scale)(y)


class Block(nn.Module):
  """Attention and an MLP, each behind a LayerNorm and beside a shortcut.

  Attributes:
    heads: Of the attention.
    mlp_width: Hidden features of the MLP.
    bias: See `SelfAttention`.
    eps: Of the LayerNorms.
    drop_path: Share of the clips that skip a branch, in training; a number, or
      an array of one.
    deterministic: Whether none does.
    dtype: Compute type.
    gelu: See `MLP`.
    logit_cap: See `attend`.
    norm: Makes a LayerNorm of an eps, a compute type and a name.
    init_scale: Factor on the initial weights of the branches' last layers.
  """

  heads: int
  mlp_width: int
  bias: str
  eps: float
  drop_path: Any
  deterministic: bool
  dtype: Any = jnp.float32
  gelu: str = 'exact'
  logit_cap: float = 0.0
  norm: Callable[[float, Any, str], nn.Module] = layer_norm
  init_scale: float = 1.0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B tokens D'],
    rotation: Rotation | None = None,
    clip_index: ClipIndex = None,
  ) -> Float[Array, 'B tokens D']:
    drop = functools.partial(
      Dropout(self.drop_path, whole=True),
      clip_index=clip_index,
      deterministic=self.deterministic,
    )
    y = self.norm(self.eps, self.dtype, 'norm1')(x)
    y = SelfAttention(
      self.heads,
      self.bias,
      self.dtype,
      self.logit_cap,
      self.init_scale,
      name='attention',
    )(y, rotation)
    x = conv.join(x, drop(y), relu_after=False)
    y = self.norm(self.eps, self.dtype, 'norm2')(x)
    mlp = MLP(
      self.mlp_width, self.dtype, self.gelu, self.init_scale, name='mlp'
    )
    return conv.join(x, drop(mlp(y)), relu_after=False)
