"""Reads and writes .safetensors: a header of JSON, then the tensors' bytes."""

import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from mgjax import files
from mgjax.errors import ConfigError
from mgjax.weights.tensors import Damaged, Tensor, sizes

METADATA = '__metadata__'
# The header of 10^4 tensors is about 2 MB.
_MAX_HEADER = 2**28
_DTYPES = {
  'F64': '<f8',
  'F32': '<f4',
  'F16': '<f2',
  'BF16': ml_dtypes.bfloat16,
  'I64': '<i8',
  'I32': '<i4',
  'I16': '<i2',
  'I8': 'i1',
  'U8': 'u1',
  'BOOL': '?',
}


def load(path: pathlib.Path) -> dict[str, Tensor | dict]:
  """Reads a file's header: tensors by name, which are read when asked for.

  Returns:
    The tensors; under METADATA the file's own text by key, where it has any.

  Raises:
    Damaged: The header contradicts itself or the file's size.
  """
  with open(path, 'rb') as file:
    (length,) = struct.unpack('<Q', file.read(8))
    if length > _MAX_HEADER:
      raise Damaged('its header is too large')
    header = json.loads(file.read(length))
    start_of_data = 8 + length
    left = size = os.fstat(file.fileno()).st_size - start_of_data
  content: dict[str, Tensor | dict] = {}
  for name, entry in header.items():
    if name == METADATA:
      content[name] = entry
      continue
    start, end = sizes(entry['data_offsets'])
    if entry['dtype'] not in _DTYPES or end > size:
      raise Damaged(f'{name} is of an unknown type or incomplete')
    left -= end - start  # Tensors do not overlap.
    if end < start or left < 0:
      raise Damaged(f'{name} overlaps others')
    dtype, shape = np.dtype(_DTYPES[entry['dtype']]), sizes(entry['shape'])
    if end - start != math.prod(shape) * dtype.itemsize:
      raise Damaged(f'{end - start} bytes do not make a {dtype} array {shape}')
    content[name] = _tensor(path, start_of_data + start, dtype, shape)
  return content


def _tensor(
  path: pathlib.Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]
) -> Tensor:
  def read():
    try:
      with open(path, 'rb') as file:
        file.seek(offset)
        data = file.read(math.prod(shape) * dtype.itemsize)
      return np.frombuffer(data, dtype).reshape(shape)
    except (OSError, ValueError) as error:
      raise ConfigError(f'{path}: is damaged ({error})') from error

  return Tensor(shape, dtype, read)


def save(
  path: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes a file, whole or not at all.

  Args:
    path: The file.
    tensors: float32, by name.
    metadata: Text by key. transformers asks for 'format': 'pt'.

  Source: the format's description in huggingface/safetensors, README.
  """
  header: dict[str, dict] = {METADATA: dict(metadata)}
  start = 0
  for name in sorted(tensors):
    end = start + 4 * tensors[name].size
    header[name] = {
      'dtype': 'F32',
      'shape': list(tensors[name].shape),
      'data_offsets': [start, end],
    }
    start = end
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # Tensors start at a multiple of 8 bytes.
  data = [
    np.ascontiguousarray(tensors[name], '<f4') for name in sorted(tensors)
  ]
  files.write_bytes(
    path,
    b''.join(
      [struct.pack('<Q', len(text)), text, *(a.tobytes() for a in data)]
    ),
  )
