"""Tensors in files, which are read when they are asked for."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

_MAX_AXES = 64  # As NumPy.


class Damaged(Exception):
  """What a file holds contradicts itself."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file; `numpy` reads it.

  Attributes:
    shape: In the file's axis order.
    dtype: Of the elements.
    read: Returns the elements.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray] = dataclasses.field(repr=False)

  def __setstate__(self, state):
    raise Damaged('state is set on a tensor')

  def numpy(self) -> np.ndarray:
    """Returns the elements, in an array of their own."""
    return np.array(self.read())


def _bytes(data) -> bytes:
  """Bytes as Python 2 (decoded as latin-1) or 3 pickled them."""
  if isinstance(data, str):
    return data.encode('latin-1')
  if not isinstance(data, (bytes, bytearray)):  # bytes(n) makes n of them.
    raise Damaged(f'an array is made of a {type(data).__name__}')
  return bytes(data)


def tensor_of_bytes(data, dtype, shape, order='C') -> Tensor | None:
  """A tensor of an array's bytes; None where they are no numbers."""
  if dtype is None:
    return None
  data, shape = _bytes(data), sizes(shape)
  if len(data) != math.prod(shape) * dtype.itemsize:
    raise Damaged(f'{len(data)} bytes do not make a {dtype} array {shape}')
  read = lambda: np.frombuffer(data, dtype).reshape(shape, order=order)
  return Tensor(shape, dtype, read)


def sizes(shape) -> tuple[int, ...]:
  if len(shape) > _MAX_AXES:
    raise Damaged(f'a tensor of {len(shape)} axes')
  shape = tuple(shape)
  if not all(type(n) is int and 0 <= n < 2**63 for n in shape):
    # Such a value is not printed anywhere: it may unfold to any length.
    raise Damaged('a tensor of what is not a shape')
  return shape
