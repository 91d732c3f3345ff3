"""Pickles of weights, read without running what they name.

Pickles are programs; here they can only call the functions of `_GLOBALS`, all
of them this file's own and none with an effect. Anything else that a file names
is refused. What a file costs in time and memory is in proportion to its size:
values that it shares and would unfold to more are refused (`Unpickler`).
"""

import io
import math
import pickle
import struct
import types
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from mgjax.weights.tensors import Damaged, Tensor, sizes, tensor_of_bytes

# What a file may unfold to, in items per byte. Real files stay below 1.
_GROWTH = 16
_MIN_ITEMS = 2**16  # Any file may unfold to that.
_MAX_KEY = 256  # Digits and letters of a key that is no text.
# Types of the storages of torch, by name.
STORAGES = {
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


class Refused(Exception):
  """A file names a global that is not allowed."""


class _Function:
  """A function for unpicklers; has no attributes that a file could set."""

  __slots__ = ('_function',)

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)

  def __setstate__(self, state):
    raise Damaged('state is set on a function')


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
      raise Damaged('a dtype without a code')
    dtype = np.dtype(self.code).newbyteorder(self.order)
    return dtype if dtype.kind in 'fiub' else None


class _Array:
  """numpy.ndarray while it is unpickled."""

  __slots__ = ('tensor',)

  def __setstate__(self, state):
    _, shape, dtype, fortran, data = state
    self.tensor = tensor_of_bytes(
      data, dtype.numpy(), shape, 'F' if fortran else 'C'
    )


def _rebuild_tensor(storage, offset, shape, strides, *unused) -> Tensor:
  shape, strides = sizes(shape), sizes(strides)
  (offset,) = sizes([offset])
  if len(shape) != len(strides):
    raise Damaged(f'strides {strides} for a tensor {shape}')
  size = math.prod(shape)
  last = offset + sum(
    (n - 1) * s for n, s in zip(shape, strides, strict=True) if n
  )
  if size and (last >= storage.shape[0] or size > storage.shape[0]):
    raise Damaged(f'a tensor {shape} lies outside its storage')

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
    raise Damaged('bytes in another encoding than latin1')
  return text.encode('latin-1')


def _numpy_scalar(dtype, data):
  tensor = tensor_of_bytes(data, dtype.numpy(), ())
  return None if tensor is None else tensor.numpy().item()


def _reconstruct(cls, base, items) -> _Record:
  """copyreg._reconstructor for the classes that are records."""
  if cls is not _Record:
    raise Damaged('an object of a class that holds no record')
  return _Record(items if isinstance(items, dict) else {})


def _array_of_buffer(data, dtype, shape, order) -> Tensor | None:
  return tensor_of_bytes(data, dtype.numpy(), shape, order)


def _left_out(*unused) -> None:
  """A value that weights do not need, whatever it is made of."""


def _named(modules: str, **values: Any) -> dict[str, Any]:
  """Names of values in any of some modules."""
  return {f'{m}.{k}': v for m in modules.split() for k, v in values.items()}


# Every name that a file may use, and what it becomes; a text stands for an
# argument that nobody looks at.
_GLOBALS = types.MappingProxyType(
  {
    **_named(
      'torch._utils',
      _rebuild_tensor=_Function(_rebuild_tensor),
      _rebuild_tensor_v2=_Function(_rebuild_tensor),
      _rebuild_parameter=_Function(lambda data, *unused: data),
    ),
    **_named('torch', Size=_Function(lambda shape=(): sizes(shape))),
    # The persistent ids of torch name storages by these.
    **_named('torch', **{name: name for name in STORAGES}),
    **_named(
      'numpy.core.multiarray numpy._core.multiarray',  # Before NumPy 2, since.
      _reconstruct=_Function(lambda *unused: _Array()),
      scalar=_Function(_numpy_scalar),
    ),
    **_named(
      'numpy.core.numeric numpy._core.numeric',
      _frombuffer=_Function(_array_of_buffer),
    ),
    **_named('numpy', ndarray='ndarray', dtype=_Function(_DType)),
    **_named('_codecs', encode=_Function(_encode)),
    # Configurations, arguments, schedules and logs that some checkpoints carry
    # along. A Counter is in torch's MultiStepLR.
    **_named('fvcore.common.config yacs.config', CfgNode=_Record),
    **_named('argparse', Namespace=_Record),
    **_named('mmengine.logging.history_buffer', HistoryBuffer=_Record),
    **_named(
      'collections',
      OrderedDict=_Record,
      Counter=_Record,
      defaultdict=_Function(lambda *unused: _Record()),
    ),
    **_named('torch', device=_Function(_left_out)),
    **_named(
      'builtins __builtin__',
      **{
        name: _Function(_left_out)
        for name in 'set frozenset bytearray complex slice range'.split()
      },
      **{name: name for name in 'list int float str object dict'.split()},
    ),
    **_named('copyreg copy_reg', _reconstructor=_Function(_reconstruct)),
  }
)


class Unpickler(pickle._Unpickler):
  """An unpickler that knows `_GLOBALS` and nothing else.

  Pickles can name a value again, for two bytes. So a few hundred bytes make a
  tree of 2^40 leaves (dicts or tuples that hold one another twice), and calls
  that copy or hash a long value copy it as often as they stand there. Here

  - calls may look at `_GROWTH` items per byte of the file, all together;
  - keys, which are hashed, are texts, numbers or short flat tuples;
  - the whole, all that is shared unfolded, has `_GROWTH` items per byte at
    most (`finished`), so that everything that walks through it is quick.

  It is Python's own unpickler in Python, whose operations can be extended
  (joblib does so, too); the one in C makes room for 2^32 memo entries where a
  file names the last one.

  Args:
    file: Where a pickle starts.
    size: Bytes of the file.
    storage: Makes tensors of persistent ids; None: there are none.
  """

  dispatch = dict(pickle._Unpickler.dispatch)
  # `load` sets them; no type says so.
  read: Callable[[int], bytes]
  append: Callable[[Any], None]

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
      raise Refused(f'{module}.{name}'[:100])
    return _GLOBALS[f'{module}.{name}']

  def persistent_load(self, pid):
    if self._storage is None:
      raise Damaged('tensors are stored outside the file')
    kind, name, key, _, count, *view = pid
    if kind != 'storage' or any(v is not None for v in view):
      raise Damaged('a storage of an unknown kind')
    if not isinstance(name, str) or name not in STORAGES:
      raise Damaged('a storage of an unknown type')
    sizes([count])
    return self._storage(key_text(key), STORAGES[name], count)

  def look_at(self, arguments) -> None:
    """Counts what a call is given, before it is called."""
    self._items_left -= _extent(arguments, depth=2)
    if self._items_left < 0:
      raise Damaged('its calls unfold to more than the file')

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


def key_text(key) -> str:
  """The key of a storage; any other value may unfold to any length."""
  if not isinstance(key, (str, int)):
    raise Damaged('the key of a storage is no text')
  return str(key)


def _check_keys(keys: Sequence) -> None:
  """Refuses keys that take long to hash: nested or long ones."""
  for key in keys:
    parts = key if isinstance(key, (tuple, frozenset)) else [key]
    if not isinstance(key, str) and (
      any(isinstance(part, (tuple, frozenset)) for part in parts)
      or sum(map(_length, parts)) > _MAX_KEY
    ):
      raise Damaged('a key that is neither a text nor a short tuple')


def _length(part) -> int:
  """Characters or digits of a part of a key."""
  if isinstance(part, int):
    return 1 + part.bit_length() // 3
  return len(part) if isinstance(part, (str, bytes)) else 1


def _checked(opcode: bytes, check: Callable[[Unpickler], None]) -> None:
  """Has `Unpickler` check its stack before an operation."""
  load = Unpickler.dispatch[opcode[0]]

  def checked(unpickler):
    check(unpickler)
    load(unpickler)

  Unpickler.dispatch[opcode[0]] = checked


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


def finished(content, size: int):
  """Puts a `Tensor` in the place of every array in dicts and lists.

  Args:
    content: What an unpickler made.
    size: Bytes of the file.

  Raises:
    Damaged: It holds itself, or has more than `_max_items` items where all
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
        raise Damaged('a container holds itself')
      return known[id(value)]
    known[id(value)] = under_way
    if isinstance(value, dict):
      parts = {key: finish(item) for key, item in value.items()}
      found = {key: item for key, (item, _) in parts.items()}
      count = sum(n for _, n in parts.values())
    else:
      items = [finish(item) for item in value]
      found, count = value, sum(n for _, n in items)
      if isinstance(value, list):
        found = [item for item, _ in items]
    if count > _max_items(size):
      raise Damaged('its containers unfold to more than the file')
    known[id(value)] = found, 1 + count
    return known[id(value)]

  return finish(content)[0]
