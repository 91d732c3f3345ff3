r"""Reads and writes weight files of PyTorch and its peers, without PyTorch.

    torch_files.load(path)['state_dict']['fc.weight'].numpy()
    torch_files.save(path, {'state_dict': {'fc.weight': array}})

Read: torch.save's zip format (1.6 and later) and the one before it (.pth,
.pyth, .pt, .pth.tar), plain pickles of NumPy arrays (caffe2's .pkl) and
.safetensors. Pickles are programs; here they can only call the functions of
`_GLOBALS`, all of them this file's own and none with an effect. Anything else
that a file names is refused. Nothing is extracted to disk, no class of the
file is imported, and tensors are read only when they are asked for. What a file
costs in time and memory is in proportion to its size: values that it shares
and would unfold to more are refused (`_Unpickler`).
"""

import dataclasses
import io
import json
import math
import os
import pathlib
import pickle
import struct
import types
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from mgjax import files
from mgjax.cli import ConfigError

# torch.save before 1.6 starts with this number, pickled.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# The structure of a checkpoint of 10^4 tensors is about 2 MB.
_MAX_STRUCTURE = 2**28
_MAX_AXES = 64  # As NumPy.
# What a file may unfold to, in items per byte. Real files stay below 1.
_GROWTH = 16
_MIN_ITEMS = 2**16  # Any file may unfold to that.
_MAX_KEY = 256  # Digits and letters of a key that is no text.
_STORAGES = {
  'FloatStorage': np.dtype('<f4'),
  'DoubleStorage': np.dtype('<f8'),
  'HalfStorage': np.dtype('<f2'),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'),
  'ByteStorage': np.dtype('u1'),
  'BoolStorage': np.dtype('?'),
}
_SAFETENSORS = {
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


class _Damaged(Exception):
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
    raise _Damaged('state is set on a tensor')

  def numpy(self) -> np.ndarray:
    """Returns the elements, in an array of their own."""
    return np.array(self.read())


def load(path: pathlib.Path) -> dict:
  """Reads a file's structure.

  Returns:
    Nested dicts with a `Tensor` for every tensor or array; other values as
    they are, objects of a few known classes as empty or plain dicts.

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
        content = _load_safetensors(file)
      else:
        content = _load_pickles(file)
  except OSError as error:
    raise ConfigError(f'{path}: {error.strerror or error}') from error
  except _Refused as error:
    raise ConfigError(
      f'{path}: refused, because it names {error}; a file of weights needs '
      'only tensors and plain containers. Nothing of it has been executed'
    ) from error
  except RecursionError as error:
    raise ConfigError(f'{path}: its containers are nested too deep') from error
  except Exception as error:  # Whatever a damaged pickle runs into.
    raise ConfigError(
      f'{path}: not a readable weights file of torch, caffe2 or safetensors '
      f'({type(error).__name__}: {error})'
    ) from error
  if not isinstance(content, dict):
    raise ConfigError(
      f'{path}: holds a {type(content).__name__}, not a dict of tensors'
    )
  return content


# Restricted unpickling.


class _Refused(Exception):
  """A file names a global that is not allowed."""


class _Function:
  """A function for unpicklers; has no attributes that a file could set."""

  __slots__ = ('_function',)

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)

  def __setstate__(self, state):
    raise _Damaged('state is set on a function')


class _Record(dict):
  """Stands for a few known classes: the items of a dict are kept, no more."""

  __slots__ = ()

  def __init__(self, items=()):
    if not isinstance(items, dict):  # Whose keys are checked.
      items = list(items)
      _check_keys([key for key, _ in items])
    super().__init__(items)

  def __setstate__(self, state):
    """Drops what else the object held."""


class _DType:
  """numpy.dtype while it is unpickled: (type code, byte order)."""

  __slots__ = ('code', 'order')

  def __init__(self, code, *unused):
    self.code, self.order = code, '|'

  def __setstate__(self, state):
    self.order = state[1]

  def numpy(self) -> np.dtype | None:
    """The type of numbers; None of texts and objects, which are no weights."""
    if not isinstance(self.code, str) or len(self.code) > 16:
      raise _Damaged('a dtype without a code')
    dtype = np.dtype(self.code).newbyteorder(self.order)
    return dtype if dtype.kind in 'fiub' else None


class _Array:
  """numpy.ndarray while it is unpickled."""

  __slots__ = ('tensor',)

  def __setstate__(self, state):
    _, shape, dtype, fortran, data = state
    self.tensor = _tensor_of_bytes(
      data, dtype.numpy(), shape, 'F' if fortran else 'C'
    )


def _bytes(data) -> bytes:
  """Bytes as Python 2 (decoded as latin-1) or 3 pickled them."""
  if isinstance(data, str):
    return data.encode('latin-1')
  if not isinstance(data, (bytes, bytearray)):  # bytes(n) makes n of them.
    raise _Damaged(f'an array is made of a {type(data).__name__}')
  return bytes(data)


def _tensor_of_bytes(data, dtype, shape, order='C') -> Tensor | None:
  """A tensor of an array's bytes; None where they are no numbers."""
  if dtype is None:
    return None
  data, shape = _bytes(data), _sizes(shape)
  if len(data) != math.prod(shape) * dtype.itemsize:
    raise _Damaged(f'{len(data)} bytes do not make a {dtype} array {shape}')
  read = lambda: np.frombuffer(data, dtype).reshape(shape, order=order)
  return Tensor(shape, dtype, read)


def _sizes(shape) -> tuple[int, ...]:
  if len(shape) > _MAX_AXES:
    raise _Damaged(f'a tensor of {len(shape)} axes')
  shape = tuple(shape)
  if not all(type(n) is int and 0 <= n < 2**63 for n in shape):
    # Such a value is not printed anywhere: it may unfold to any length.
    raise _Damaged('a tensor of what is not a shape')
  return shape


def _rebuild_tensor(storage, offset, shape, strides, *unused) -> Tensor:
  shape, strides = _sizes(shape), _sizes(strides)
  (offset,) = _sizes([offset])
  if len(shape) != len(strides):
    raise _Damaged(f'strides {strides} for a tensor {shape}')
  size = math.prod(shape)
  last = offset + sum(
    (n - 1) * s for n, s in zip(shape, strides, strict=True) if n
  )
  if size and (last >= storage.shape[0] or size > storage.shape[0]):
    raise _Damaged(f'a tensor {shape} lies outside its storage')

  def read():
    elements = storage.read()[offset:]
    return np.lib.stride_tricks.as_strided(
      elements,
      shape,
      [s * elements.itemsize for s in strides],
      writeable=False,
    )

  return Tensor(shape, storage.dtype, read)


def _encode(text: str, encoding: str) -> bytes:
  """_codecs.encode, as Python 3 writes bytes in old protocols."""
  if encoding != 'latin1':
    raise _Damaged('bytes in another encoding than latin1')
  return text.encode('latin-1')


def _numpy_scalar(dtype, data):
  tensor = _tensor_of_bytes(data, dtype.numpy(), ())
  return None if tensor is None else tensor.numpy().item()


def _reconstruct(cls, base, items) -> _Record:
  """copyreg._reconstructor for the classes that are records."""
  if cls is not _Record:
    raise _Damaged('an object of a class that holds no record')
  return _Record(items if isinstance(items, dict) else {})


def _array_of_buffer(data, dtype, shape, order) -> Tensor | None:
  return _tensor_of_bytes(data, dtype.numpy(), shape, order)


def _left_out(*unused) -> None:
  """A value that weights do not need, whatever it is made of."""


_NUMPY_GLOBALS = {
  f'numpy.{core}.{name}': value
  for core in ('core', '_core')  # Before NumPy 2, and since.
  for name, value in (
    ('multiarray._reconstruct', _Function(lambda *unused: _Array())),
    ('multiarray.scalar', _Function(_numpy_scalar)),
    ('numeric._frombuffer', _Function(_array_of_buffer)),
  )
}
# Every name that a file may use, and what it becomes.
_GLOBALS = types.MappingProxyType(
  {
    'torch._utils._rebuild_tensor': _Function(_rebuild_tensor),
    'torch._utils._rebuild_tensor_v2': _Function(_rebuild_tensor),
    'torch._utils._rebuild_parameter': _Function(lambda data, *unused: data),
    'torch.Size': _Function(lambda shape=(): _sizes(shape)),
    # The persistent ids of torch name storages by these.
    **{f'torch.{name}': name for name in _STORAGES},
    **_NUMPY_GLOBALS,
    'numpy.ndarray': 'ndarray',  # An argument of _reconstruct.
    'numpy.dtype': _Function(_DType),
    '_codecs.encode': _Function(_encode),
    'collections.OrderedDict': _Record,
    # Configurations, arguments, schedules and logs that some checkpoints carry
    # along.
    'fvcore.common.config.CfgNode': _Record,
    'yacs.config.CfgNode': _Record,
    'argparse.Namespace': _Record,
    'collections.Counter': _Record,  # In torch's MultiStepLR.
    'collections.defaultdict': _Function(lambda *unused: _Record()),
    'mmengine.logging.history_buffer.HistoryBuffer': _Record,
    'torch.device': _Function(_left_out),
    **{
      f'{module}.{name}': _Function(_left_out)
      for module in ('builtins', '__builtin__')
      for name in ('set', 'frozenset', 'bytearray', 'complex', 'slice', 'range')
    },
    **{
      f'{module}.{name}': name  # Arguments of defaultdict.
      for module in ('builtins', '__builtin__')
      for name in ('list', 'int', 'float', 'str')
    },
    'copyreg._reconstructor': _Function(_reconstruct),
    'copy_reg._reconstructor': _Function(_reconstruct),
    'builtins.object': 'object',  # An argument of _reconstructor.
    '__builtin__.object': 'object',
    '__builtin__.dict': 'dict',
    'builtins.dict': 'dict',
  }
)


class _Unpickler(pickle._Unpickler):
  """An unpickler that knows `_GLOBALS` and nothing else.

  Pickles can name a value again, for two bytes. So a few hundred bytes make a
  tree of 2^40 leaves (dicts or tuples that hold one another twice), and calls
  that copy or hash a long value copy it as often as they stand there. Here

  - calls may look at `_GROWTH` items per byte of the file, all together;
  - keys, which are hashed, are texts, numbers or short flat tuples;
  - the whole, all that is shared unfolded, has `_GROWTH` items per byte at
    most (`_finished`), so that everything that walks through it is quick.

  It is Python's own unpickler in Python, whose operations can be extended
  (joblib does so, too); the one in C makes room for 2^32 memo entries where a
  file names the last one.

  Args:
    file: Where a pickle starts.
    size: Bytes of the file.
    storage: Makes tensors of persistent ids; None: there are none.
  """

  dispatch = dict(pickle._Unpickler.dispatch)

  def __init__(
    self,
    file: io.BufferedIOBase,
    size: int,
    storage: Callable | None = None,
  ):
    # Python 2's strings, arrays' bytes among them, come out as latin-1.
    super().__init__(file, encoding='latin1')
    self._storage = storage
    self._items_left = _max_items(size)

  def find_class(self, module: str, name: str):
    if f'{module}.{name}' not in _GLOBALS:
      raise _Refused(f'{module}.{name}'[:100])
    return _GLOBALS[f'{module}.{name}']

  def persistent_load(self, pid):
    if self._storage is None:
      raise _Damaged('tensors are stored outside the file')
    kind, name, key, _, count, *view = pid
    if kind != 'storage' or any(v is not None for v in view):
      raise _Damaged('a storage of an unknown kind')
    if not isinstance(name, str) or name not in _STORAGES:
      raise _Damaged('a storage of an unknown type')
    _sizes([count])
    return self._storage(_text(key), _STORAGES[name], count)

  def look_at(self, arguments) -> None:
    """Counts what a call is given, before it is called."""
    self._items_left -= _extent(arguments, depth=2)
    if self._items_left < 0:
      raise _Damaged('its calls unfold to more than the file')

  def load_bytearray8(self) -> None:
    # Python's own makes room for as many bytes as the file says it has.
    (length,) = struct.unpack('<Q', self.read(8))
    self.append(bytearray(self.read(length)))

  dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _max_items(size: int) -> int:
  """Items that a file of so many bytes may unfold to."""
  return max(_GROWTH * size, _MIN_ITEMS)


def _extent(value, depth: int) -> int:
  """Items of a value, those inside of lists and tuples down to a depth."""
  if not isinstance(value, (str, bytes, bytearray, dict, list, tuple)):
    return 1
  inside = value if depth and isinstance(value, (list, tuple)) else ()
  return 1 + len(value) + sum(_extent(item, depth - 1) for item in inside)


def _text(key) -> str:
  """The key of a storage; any other value may unfold to any length."""
  if not isinstance(key, (str, int)):
    raise _Damaged('the key of a storage is no text')
  return str(key)


def _check_keys(keys: Sequence) -> None:
  """Refuses keys that take long to hash: nested or long ones."""
  for key in keys:
    parts = key if isinstance(key, (tuple, frozenset)) else [key]
    if not isinstance(key, str) and (
      any(isinstance(part, (tuple, frozenset)) for part in parts)
      or sum(map(_length, parts)) > _MAX_KEY
    ):
      raise _Damaged('a key that is neither a text nor a short tuple')


def _length(part) -> int:
  """Characters or digits of a part of a key."""
  if isinstance(part, int):
    return 1 + part.bit_length() // 3
  return len(part) if isinstance(part, (str, bytes)) else 1


def _checked(opcode: bytes, check: Callable[[_Unpickler], None]) -> None:
  """Has `_Unpickler` check its stack before an operation."""
  load = _Unpickler.dispatch[opcode[0]]

  def checked(unpickler):
    check(unpickler)
    load(unpickler)

  _Unpickler.dispatch[opcode[0]] = checked


# `stack` is what stands behind the last mark.
for _opcode, _check in (
  (pickle.REDUCE, lambda u: u.look_at(u.stack[-1])),
  (pickle.BUILD, lambda u: u.look_at(u.stack[-1])),
  (pickle.NEWOBJ, lambda u: u.look_at(u.stack[-1])),
  (pickle.NEWOBJ_EX, lambda u: u.look_at(u.stack[-2:])),
  (pickle.INST, lambda u: u.look_at(u.stack)),
  (pickle.OBJ, lambda u: u.look_at(u.stack)),
  (pickle.SETITEM, lambda u: _check_keys(u.stack[-2:-1])),
  (pickle.SETITEMS, lambda u: _check_keys(u.stack[::2])),
  (pickle.DICT, lambda u: _check_keys(u.stack[::2])),
  (pickle.ADDITEMS, lambda u: _check_keys(u.stack)),
  (pickle.FROZENSET, lambda u: _check_keys(u.stack)),
):
  _checked(_opcode, _check)


def _finished(content, size: int):
  """Puts a `Tensor` in the place of every array in dicts; the rest stays.

  Args:
    content: What an unpickler made.
    size: Bytes of the file.

  Raises:
    _Damaged: It holds itself, or has more than `_max_items` items where all
      that is shared is unfolded.
  """
  known: dict[int, tuple[Any, int]] = {}  # By id; content keeps all alive.
  under_way = (None, 0)

  def finish(value) -> tuple[Any, int]:
    if isinstance(value, _Array):
      return value.tensor, 1
    if not isinstance(value, (dict, list, tuple, set, frozenset)):
      return value, 1
    if id(value) in known:
      if known[id(value)] is under_way:
        raise _Damaged('a container holds itself')
      return known[id(value)]
    known[id(value)] = under_way
    if isinstance(value, dict):
      parts = {key: finish(item) for key, item in value.items()}
      found = {key: item for key, (item, _) in parts.items()}
      count = sum(n for _, n in parts.values())
    else:
      found, count = value, sum(finish(item)[1] for item in value)
    if count > _max_items(size):
      raise _Damaged('its containers unfold to more than the file')
    known[id(value)] = found, 1 + count
    return known[id(value)]

  return finish(content)[0]


# Formats.


def _load_zip(path: pathlib.Path):
  """torch.save's zip: NAME/data.pkl and a file NAME/data/KEY per storage."""
  with zipfile.ZipFile(path) as archive:
    names = {info.filename: info for info in archive.infolist()}
    found = [n for n in names if n.endswith('/data.pkl')]
    if len(found) != 1 or any(i.compress_type for i in names.values()):
      raise _Damaged('not a zip file as torch.save writes it')
    prefix = found[0].removesuffix('data.pkl')
    if prefix + 'constants.pkl' in names:
      raise _Damaged('a TorchScript program; save its state_dict instead')
    order = '<'
    if prefix + 'byteorder' in names:
      order = {b'little': '<', b'big': '>'}[archive.read(prefix + 'byteorder')]
    if names[found[0]].file_size > _MAX_STRUCTURE:
      raise _Damaged('its structure is too large')
    structure = archive.read(found[0])

  def storage(key: str, dtype: np.dtype, count: int) -> Tensor:
    info = names[f'{prefix}data/{key}']
    if info.file_size != count * dtype.itemsize:
      raise _Damaged(f'storage {key} has {info.file_size} bytes')

    def read():
      try:
        with zipfile.ZipFile(path) as archive:
          data = archive.read(info)
      except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f'{path}: is damaged ({error})') from error
      return np.frombuffer(data, dtype.newbyteorder(order))

    return Tensor((count,), dtype, read)

  size = len(structure)
  unpickler = _Unpickler(io.BytesIO(structure), size, storage)
  return _finished(unpickler.load(), size)


def _load_pickles(file: io.BufferedIOBase):
  """A pickle of arrays, or torch.save before 1.6: pickles, then storages."""
  storages = {}  # (dtype, elements, [their bytes]) by key.

  def storage(key: str, dtype: np.dtype, count: int) -> Tensor:
    _, _, data = storages.setdefault(key, (dtype, count, []))
    return Tensor((count,), dtype, lambda: np.frombuffer(data[0], dtype))

  size = os.fstat(file.fileno()).st_size
  first = _Unpickler(file, size, storage).load()
  if type(first) is not int or first != _LEGACY_MAGIC:
    return _finished(first, size)
  _Unpickler(file, size).load()  # Version of the format.
  if not _Unpickler(file, size).load().get('little_endian', True):
    raise _Damaged('written on a big-endian machine; save it again by torch')
  content = _finished(_Unpickler(file, size, storage).load(), size)
  for key in _Unpickler(file, size).load():
    dtype, count, data = storages[_text(key)]
    (written,) = struct.unpack('<q', file.read(8))
    data.append(file.read(count * dtype.itemsize))
    if written != count or len(data[0]) != count * dtype.itemsize:
      raise _Damaged(f'storage {key} is incomplete')
  if not all(data for _, _, data in storages.values()):
    raise _Damaged('a storage is missing')
  return content


def _load_safetensors(file: io.BufferedIOBase) -> dict:
  (length,) = struct.unpack('<Q', file.read(8))
  if length > _MAX_STRUCTURE:
    raise _Damaged('its header is too large')
  header = json.loads(file.read(length))
  data = file.read()
  content = {}
  left = len(data)  # Tensors do not overlap.
  for name, entry in header.items():
    if name == '__metadata__':
      continue
    start, end = _sizes(entry['data_offsets'])
    if entry['dtype'] not in _SAFETENSORS or end > len(data):
      raise _Damaged(f'{name} is of an unknown type or incomplete')
    left -= end - start
    if end < start or left < 0:
      raise _Damaged(f'{name} overlaps others')
    content[name] = _tensor_of_bytes(
      data[start:end], np.dtype(_SAFETENSORS[entry['dtype']]), entry['shape']
    )
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
  content = io.BytesIO()
  with zipfile.ZipFile(content, 'w') as archive:
    archive.writestr('archive/data.pkl', structure)
    archive.writestr('archive/byteorder', 'little')
    for key, array in enumerate(storages):
      # Fixed dates, so that equal weights make equal files.
      archive.writestr(zipfile.ZipInfo(f'archive/data/{key}'), array.tobytes())
    archive.writestr('archive/version', '3\n')
  files.write_bytes(path, content.getvalue())


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
    storages.append(value.astype(_STORAGES[name]))
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
