r"""Reads and writes weight files of PyTorch and its peers, without PyTorch.

    torch_files.load(path)['state_dict']['fc.weight'].numpy()
    torch_files.save(path, {'state_dict': {'fc.weight': array}})

Read: torch.save's zip format (1.6 and later) and the one before it (.pth,
.pyth, .pt, .pth.tar), plain pickles of NumPy arrays (caffe2's .pkl),
.safetensors and NumPy's .npz. Nothing of a file is executed or extracted to
disk (unpickling.py has the reasons), and tensors are read only when they are
asked for.
"""

import io
import math
import os
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from mgjax import files
from mgjax.errors import ConfigError
from mgjax.weights import flax_files, safetensors_files, unpickling
from mgjax.weights.tensors import Damaged, Tensor
from mgjax.weights.unpickling import STORAGES, Unpickler

# torch.save before 1.6 starts with this number, pickled.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# The structure of a checkpoint of 10^4 tensors is about 2 MB.
_MAX_STRUCTURE = 2**28


def load(path: pathlib.Path) -> dict:
  """Reads a file's structure.

  Returns:
    Nested dicts with a `Tensor` for every tensor or array; other values as
    they are, objects of a few known classes as empty or plain dicts. What else
    .safetensors have is under safetensors_files.METADATA.

  Raises:
    ConfigError: The file cannot be read, is of another format, is damaged, or
      names a global that weights do not need.
  """
  try:
    with open(path, 'rb') as file:
      head = file.read(16)
      file.seek(0)
      if head[:4] == b'PK\x03\x04':
        content = _load_zip(path)
      elif head[8:9] == b'{':
        content = safetensors_files.load(path)
      else:
        content = _load_pickles(file)
  except OSError as error:
    raise ConfigError(f'{path}: {error.strerror or error}') from error
  except unpickling.Refused as error:
    raise ConfigError(
      f'{path}: refused, because it names {error}; a file of weights needs '
      'only tensors and plain containers. Nothing of it has been executed'
    ) from error
  except RecursionError as error:
    raise ConfigError(f'{path}: its containers are nested too deep') from error
  except Exception as error:  # Whatever a damaged pickle runs into.
    raise ConfigError(
      f'{path}: not a readable weights file of torch, caffe2, safetensors '
      f'or NumPy ({type(error).__name__}: {error})'
    ) from error
  if not isinstance(content, dict):
    raise ConfigError(
      f'{path}: holds a {type(content).__name__}, not a dict of tensors'
    )
  return content


# Formats.


def _load_zip(path: pathlib.Path):
  """torch.save's zip: NAME/data.pkl and a file NAME/data/KEY per storage.

  Or that of NumPy.
  """
  with zipfile.ZipFile(path) as archive:
    if flax_files.is_npz(archive):
      return flax_files.load(path)
    names = {info.filename: info for info in archive.infolist()}
    found = [n for n in names if n.endswith('/data.pkl')]
    if len(found) != 1 or any(i.compress_type for i in names.values()):
      raise Damaged('not a zip file as torch.save writes it')
    prefix = found[0].removesuffix('data.pkl')
    if prefix + 'constants.pkl' in names:
      raise Damaged('a TorchScript program; save its state_dict instead')
    order = '<'
    if prefix + 'byteorder' in names:
      order = {b'little': '<', b'big': '>'}[archive.read(prefix + 'byteorder')]
    if names[found[0]].file_size > _MAX_STRUCTURE:
      raise Damaged('its structure is too large')
    structure = archive.read(found[0])

  def storage(key: str, dtype: np.dtype, count: int) -> Tensor:
    info = names[f'{prefix}data/{key}']
    if info.file_size != count * dtype.itemsize:
      raise Damaged(f'storage {key} has {info.file_size} bytes')

    def read():
      try:
        with zipfile.ZipFile(path) as archive:
          data = archive.read(info)
      except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f'{path}: is damaged ({error})') from error
      return np.frombuffer(data, dtype.newbyteorder(order))

    return Tensor((count,), dtype, read)

  size = len(structure)
  unpickler = Unpickler(io.BytesIO(structure), size, storage)
  return unpickling.finished(unpickler.load(), size)


def _load_pickles(file: io.BufferedIOBase):
  """A pickle of arrays, or torch.save before 1.6: pickles, then storages."""
  storages = {}  # (dtype, elements, [their bytes]) by key.

  def storage(key: str, dtype: np.dtype, count: int) -> Tensor:
    _, _, data = storages.setdefault(key, (dtype, count, []))
    return Tensor((count,), dtype, lambda: np.frombuffer(data[0], dtype))

  size = os.fstat(file.fileno()).st_size
  first = Unpickler(file, size, storage).load()
  if type(first) is not int or first != _LEGACY_MAGIC:
    return unpickling.finished(first, size)
  Unpickler(file, size).load()  # Version of the format.
  if not Unpickler(file, size).load().get('little_endian', True):
    raise Damaged('written on a big-endian machine; save it again by torch')
  content = unpickling.finished(Unpickler(file, size, storage).load(), size)
  for key in Unpickler(file, size).load():
    dtype, count, data = storages[unpickling.key_text(key)]
    (written,) = struct.unpack('<q', file.read(8))
    data.append(file.read(count * dtype.itemsize))
    if written != count or len(data[0]) != count * dtype.itemsize:
      raise Damaged(f'storage {key} is incomplete')
  if not all(data for _, _, data in storages.values()):
    raise Damaged('a storage is missing')
  return content


# Writing.


def save(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes what torch.load(path, weights_only=True) reads, whole or not at all.

  Args:
    path: File to write.
    content: Nested dicts; leaves are NumPy arrays (float32 or int64), which
      become tensors, integers and text.

  Source: torch.save's zip format, version 3.
  """
  storages = []
  structure = b'\x80\x02' + _opcodes(content, storages) + b'.'
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('archive/data.pkl', structure)
    archive.writestr('archive/byteorder', 'little')
    for key, array in enumerate(storages):
      # Fixed dates, so that equal weights make equal files.
      archive.writestr(zipfile.ZipInfo(f'archive/data/{key}'), array.tobytes())
    archive.writestr('archive/version', '3\n')
  files.write_bytes(path, file.getvalue())


def _opcodes(value: Any, storages: list[np.ndarray]) -> bytes:
  """Pickle opcodes (protocol 2) that make `value`; arrays go to `storages`.

  The pickle module would import what it names; torch need not be here.
  """
  if isinstance(value, Mapping):
    items = b''.join(
      _opcodes(k, storages) + _opcodes(v, storages) for k, v in value.items()
    )
    return b'ccollections\nOrderedDict\n)R(' + items + b'u'
  if isinstance(value, np.ndarray):
    name = {'float32': 'FloatStorage', 'int64': 'LongStorage'}[value.dtype.name]
    key = _opcodes(str(len(storages)), storages)
    storages.append(value.astype(STORAGES[name]))
    strides = [math.prod(value.shape[i + 1 :]) for i in range(value.ndim)]
    return (
      b'ctorch._utils\n_rebuild_tensor_v2\n(('
      + _opcodes('storage', storages)
      + b'ctorch\n%s\n' % name.encode()
      + key
      + _opcodes('cpu', storages)
      + _opcodes(value.size, storages)
      + b'tQ'
      + _opcodes(0, storages)
      + _opcodes(value.shape, storages)
      + _opcodes(tuple(strides), storages)
      + b'\x89'
      + _opcodes({}, storages)
      + b'tR'
    )
  if isinstance(value, tuple):
    return b'(' + b''.join(_opcodes(v, storages) for v in value) + b't'
  if isinstance(value, str):
    text = value.encode()
    return b'X' + struct.pack('<I', len(text)) + text
  if isinstance(value, int) and abs(value) < 2**31:
    return b'J' + struct.pack('<i', value)
  raise TypeError(f'cannot write a {type(value).__name__}')
