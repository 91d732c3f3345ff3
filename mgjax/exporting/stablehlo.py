"""A network as one program that JAX alone loads, on CPUs, GPUs and TPUs."""

from collections.abc import Callable

import jax
import jax.export
import numpy as np

from mgjax.errors import ConfigError
from mgjax.files import size_text
from mgjax.step import compilation

PLATFORMS = ('cpu', 'cuda', 'tpu')
# Both formats of programs have offsets of 32 bits, with a sign.
_MAX_BYTES = 2**31 - 2**24


def video_spec(
  clip: tuple[int, int, int], batch: int | None
) -> jax.ShapeDtypeStruct:
  """What a program takes: uint8 [B, T, H, W, 3].

  Args:
    clip: T, H and W.
    batch: B; None: any.
  """
  size = batch or jax.export.symbolic_shape('batch')[0]
  return jax.ShapeDtypeStruct((size, *clip, 3), np.uint8)


def check_size(variables: dict) -> None:
  """Refuses variables that no program can hold.

  Raises:
    ConfigError: They are too many.
  """
  size = sum(4 * array.size for array in jax.tree.leaves(variables))
  if size > _MAX_BYTES:
    raise ConfigError(
      f'the weights have {size_text(size)}, a program at most '
      f'{size_text(_MAX_BYTES)}; --to=safetensors has no bound'
    )


def dump(score: Callable, video: jax.ShapeDtypeStruct) -> bytes:
  """Makes the file's content.

  Args:
    score: From uint8 [B, T, H, W, 3] to arrays by name.
    video: Of `video_spec`.
  """
  program = jax.export.export(jax.jit(score), platforms=PLATFORMS)(video)
  return bytes(program.serialize())


def load(content: bytes) -> Callable:
  """The function of `dump`, from its file, on the CPU."""
  program = jax.export.deserialize(bytearray(content))
  return compilation.once_on_cpu(program.call)
