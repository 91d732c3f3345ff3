"""Reading weight files: equal to torch, and nothing in them is executed.

tests/golden/torch_files: zip.pth and legacy.pth are one checkpoint, written by
torch.save of PyTorch 2.13.0 in both its formats, with tensors that share,
stride and shift into their storages; expected.npz are their values as float32.
"""

import collections
import json
import os
import pathlib
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest

from mgjax.cli import ConfigError
from mgjax.weights import tensors, torch_files, unpickling

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'torch_files'


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth'])
def test_files_that_torch_wrote_are_read_exactly(name):
  content = torch_files.load(GOLDEN / name)
  state = content['state_dict']
  with np.load(GOLDEN / 'expected.npz') as expected:
    assert set(state) == set(expected)
    for key, value in expected.items():
      array = state[key].numpy()
      assert state[key].shape == array.shape == value.shape
      np.testing.assert_array_equal(array.astype(np.float32), value, key)
  assert state['bfloat16'].dtype.name == 'bfloat16'
  assert state['count'].numpy() == 5
  assert list(content['norm']) == [
    'weight',
    'bias',
    'running_mean',
    'running_var',
    'num_batches_tracked',
  ]


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth'])
def test_what_is_not_a_tensor_is_plain_data(name):
  content = torch_files.load(GOLDEN / name)
  assert (content['epoch'], content['arch']) == (3, 'resnet50')
  assert content['best_prec1'] == 71.5
  assert content['args'] == {}  # An argparse.Namespace, emptied.


def test_what_is_saved_is_read_back(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    'a.weight': rng.normal(size=(3, 2, 1, 1)).astype(np.float32),
    'b.weight': rng.normal(size=(4, 3)).astype(np.float32).T,
    'count': np.zeros((), np.int64),
    'none': np.zeros((0, 2), np.float32),
  }
  path = tmp_path / 'x.pth'
  torch_files.save(path, {'state_dict': arrays, 'epoch': 3, 'arch': 'r\xf6'})
  content = torch_files.load(path)
  assert (content['epoch'], content['arch']) == (3, 'r\xf6')
  for name, array in arrays.items():
    read = content['state_dict'][name].numpy()
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype


def test_the_written_pickle_names_nothing_but_what_torch_needs(tmp_path):
  path = tmp_path / 'x.pth'
  torch_files.save(path, {'w': np.ones(2, np.float32), 'n': np.array(1)})
  with zipfile.ZipFile(path) as archive:
    structure = archive.read('archive/data.pkl')
  named = {
    argument
    for opcode, argument, _ in pickletools.genops(structure)
    if opcode.name == 'GLOBAL'
  }
  assert named == {
    'collections OrderedDict',
    'torch._utils _rebuild_tensor_v2',
    'torch FloatStorage',
    'torch LongStorage',
  }


def python2_array(array: np.ndarray) -> bytes:
  """Opcodes of an array as Python 2's protocol 2 pickles it."""
  data = array.tobytes()
  return (
    b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b'
    + b'\x87R(K\x01('
    + b''.join(b'J' + struct.pack('<i', n) for n in array.shape)
    + b'tcnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff'
    + b'J\xff\xff\xff\xffK\x00tb\x89T'
    + struct.pack('<i', len(data))
    + data
    + b'tb'
  )


def test_a_pickle_of_python_2_is_read_as_numpy_reads_it(tmp_path):
  array = np.arange(6, dtype=np.float32).reshape(2, 3) * 1e-3
  data = b'\x80\x02}U\x05blobs}U\x07conv1_w' + python2_array(array) + b'ss.'
  expected = pickle.loads(data, encoding='latin1')['blobs']['conv1_w']
  np.testing.assert_array_equal(expected, array)
  path = tmp_path / 'c2.pkl'
  path.write_bytes(data)
  read = torch_files.load(path)['blobs']['conv1_w']
  np.testing.assert_array_equal(read.numpy(), array)


@pytest.mark.parametrize('protocol', range(6))
def test_pickled_arrays_of_every_protocol_are_read(tmp_path, protocol):
  arrays = {
    'c': np.arange(6, dtype=np.float32).reshape(2, 3),
    'f': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    'big': np.arange(3, dtype='>i4'),
  }
  path = tmp_path / 'x.pkl'
  path.write_bytes(pickle.dumps({'blobs': arrays}, protocol=protocol))
  read = torch_files.load(path)['blobs']
  for name, array in arrays.items():
    np.testing.assert_array_equal(read[name].numpy(), array)


def safetensors(header: dict, data: bytes) -> bytes:
  text = json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


def test_safetensors_are_read(tmp_path):
  a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(2)
  header = {
    '__metadata__': {'format': 'pt'},
    'b': {'dtype': 'I64', 'shape': [2], 'data_offsets': [24, 40]},
    'a': {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]},
    'h': {'dtype': 'BF16', 'shape': [1], 'data_offsets': [40, 42]},
  }
  path = tmp_path / 'x.safetensors'
  path.write_bytes(safetensors(header, a.tobytes() + b.tobytes() + b'\x80\x3f'))
  content = torch_files.load(path)
  np.testing.assert_array_equal(content['a'].numpy(), a)
  np.testing.assert_array_equal(content['b'].numpy(), b)
  assert content['h'].numpy().astype(np.float32) == [1.0]


# Hostile files.


class Call:
  """Pickles as the call of a function."""

  def __init__(self, function, *args):
    self._call = function, args

  def __reduce__(self):
    return self._call


def in_zip(structure: bytes, path: pathlib.Path, **storages: bytes) -> None:
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', structure)
    for name, data in storages.items():
      archive.writestr(f'archive/data/{name}', data)


HOSTILE = {
  'posix.system': Call(os.system, 'touch {}'),
  'builtins.eval': Call(eval, "open({!r}, 'w')"),
  'builtins.exec': Call(exec, "open({!r}, 'w')"),
  'builtins.getattr': Call(getattr, os, 'system'),
  'builtins.__import__': Call(__import__, 'os'),
}


@pytest.mark.parametrize('container', ['zip', 'legacy', 'plain'])
@pytest.mark.parametrize('culprit', HOSTILE)
def test_a_hostile_pickle_is_refused_by_name(tmp_path, culprit, container):
  touched = tmp_path / 'touched'
  function, args = HOSTILE[culprit].__reduce__()
  args = [a.format(str(touched)) if isinstance(a, str) else 1 for a in args]
  content = {'state_dict': Call(function, *args)}
  structure = pickle.dumps(content, protocol=2)
  path = tmp_path / 'x.pth'
  if container == 'zip':
    in_zip(structure, path)
  elif container == 'legacy':
    # A legacy file starts with three pickles: number, version, machine.
    head = b''.join(
      pickle.dumps(value, protocol=2)
      for value in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
    )
    path.write_bytes(head + structure)
  else:
    path.write_bytes(structure)
  wanted = culprit.replace('builtins.', '(builtins|__builtin__).')
  with pytest.raises(ConfigError, match=f'refused, because it names {wanted}'):
    torch_files.load(path)
  assert not touched.exists()


@pytest.mark.parametrize(
  'structure,names',
  [
    (b'cos\nsystem\n.', 'os.system'),
    (b'\x80\x04\x8c\x02os\x8c\x06system\x93.', 'os.system'),
    (b'(i__main__\nWeights\n.', '__main__.Weights'),
    # Attributes of what is allowed are not allowed themselves.
    (
      b'\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.',
      'numpy.ndarray.__',
    ),
    (b'cnumpy\nload\n.', 'numpy.load'),
    (b'ctorch\nload\n.', 'torch.load'),
    (b'ctorch._utils\n_import_dotted_name\n.', 'torch._utils._import_dotted'),
    (b'cfunctools\npartial\n.', 'functools.partial'),
  ],
)
def test_no_name_outside_the_list_is_found(tmp_path, structure, names):
  path = tmp_path / 'x.pkl'
  path.write_bytes(structure)
  with pytest.raises(ConfigError, match=names):
    torch_files.load(path)


@pytest.mark.parametrize('protocol', range(6))
def test_what_weights_do_not_need_is_left_out(tmp_path, protocol):
  """Schedules and logs of real checkpoints do not keep weights from reading."""
  weights = np.arange(3, dtype=np.float32)
  others = {
    'milestones': collections.Counter([10, 20]),
    'averages': collections.defaultdict(list, {'loss': [0.5]}),
    'seen': {1, 2},
    'frozen': frozenset('a'),
    'names': np.array(['walk', 'run']),
    'objects': np.array([None, {}], object),
    'name': np.str_('walk'),
    'bytes': bytearray(b'a'),
    'number': 1j,
  }
  path = tmp_path / 'x.pth'
  content = {'state_dict': {'w': weights}, **others}
  path.write_bytes(pickle.dumps(content, protocol=protocol))
  read = torch_files.load(path)
  np.testing.assert_array_equal(read['state_dict']['w'].numpy(), weights)
  assert set(read) == {'state_dict', *others}
  assert read['milestones'] == {10: 1, 20: 1}
  assert not any(isinstance(read[k], tensors.Tensor) for k in others)


def test_a_log_of_mmengine_is_left_out(tmp_path):
  log = (
    b'cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81'
    b'}X\x01\x00\x00\x00aK\x01sb'
  )
  path = tmp_path / 'x.pth'
  path.write_bytes(b'\x80\x02}X\x03\x00\x00\x00log' + log + b's.')
  assert torch_files.load(path) == {'log': {}}


def test_a_file_cannot_change_a_tensor(tmp_path):
  path = tmp_path / 'x.pth'
  tensor = pickle.dumps(np.zeros(2, np.float32), protocol=2)[2:-1]
  state = b'}X\x05\x00\x00\x00shapeK\x01sb'
  torch_files.save(path, {'w': np.zeros(2, np.float32)})
  with zipfile.ZipFile(path) as archive:
    structure = archive.read('archive/data.pkl')
    storage = archive.read('archive/data/0')
  assert torch_files.load(path)['w'].shape == (2,)
  # The tensor is made by the last call; what follows sets items and stops.
  *_, ending = structure.rpartition(b'R')
  in_zip(structure[: -len(ending)] + state + ending, path, **{'0': storage})
  with pytest.raises(ConfigError, match='state is set on a tensor'):
    torch_files.load(path)
  # An array is a tensor only once the file is read.
  path.write_bytes(b'\x80\x02}X\x01\x00\x00\x00w' + tensor + state + b's.')
  with pytest.raises(ConfigError, match='not a readable weights file'):
    torch_files.load(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / 'x.pth'
  torch_files.save(path, {'w': np.ones(2, np.float32)})

  def full(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(zipfile.ZipFile, 'writestr', full)
  with pytest.raises(OSError, match='No space'):
    torch_files.save(path, {'w': np.zeros(2, np.float32)})
  assert torch_files.load(path)['w'].numpy().tolist() == [1, 1]


def test_a_file_cannot_change_what_its_functions_are(tmp_path):
  before = {k: v for k, v in vars(unpickling._Function).items()}
  function = b'ctorch._utils\n_rebuild_tensor_v2\n'
  record = b'ccollections\nOrderedDict\n'
  for target in (function, record):
    for state in (
      b'}X\x08\x00\x00\x00__call__' + record + b's',
      b'N}X\x09\x00\x00\x00_function' + record + b's\x86',
    ):
      path = tmp_path / 'x.pkl'
      path.write_bytes(b'\x80\x02' + target + state + b'b.')
      with pytest.raises(ConfigError, match='not a readable weights file'):
        torch_files.load(path)
  assert dict(vars(unpickling._Function)) == before
  test_files_that_torch_wrote_are_read_exactly('zip.pth')


def tensor_of(key: str, count: int, shape: str) -> bytes:
  """Opcodes of {'w': a float tensor of this storage}."""
  return (
    b'\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(('
    + b'X\x07\x00\x00\x00storagectorch\nFloatStorage\nX'
    + struct.pack('<I', len(key))
    + key.encode()
    + b'X\x03\x00\x00\x00cpuJ'
    + struct.pack('<i', count)
    + b'tQK\x00'
    + shape.encode('latin1')
    + b'\x89}tRs.'
  )


@pytest.mark.parametrize(
  'key,count,shape,words',
  [
    ('0', 2, 'K\x02\x85K\x01\x85', None),
    ('../../etc/passwd', 2, 'K\x02\x85K\x01\x85', 'passwd'),
    ('/etc/passwd', 2, 'K\x02\x85K\x01\x85', 'passwd'),
    ('0', 3, 'K\x03\x85K\x01\x85', 'storage 0 has 8 bytes'),
    ('0', 2, 'K\x03\x85K\x01\x85', 'outside its storage'),
    ('0', 2, 'K\x02\x85K\x02\x85', 'outside its storage'),
    ('0', 2, 'J\xff\xff\xff\x7f\x85K\x00\x85', 'outside its storage'),
    ('0', 2, 'K\x02\x85J\xff\xff\xff\xff\x85', 'not a shape'),
    ('0', 2, 'K\x02\x85K\x01K\x01\x86', 'strides'),
  ],
)
def test_tensors_stay_inside_their_own_storage(
  tmp_path, key, count, shape, words
):
  path = tmp_path / 'x.pth'
  storage = np.arange(2, dtype=np.float32).tobytes()
  in_zip(tensor_of(key, count, shape), path, **{'0': storage})
  if words is None:
    assert torch_files.load(path)['w'].numpy().tolist() == [0, 1]
  else:
    with pytest.raises(ConfigError, match=words):
      torch_files.load(path)


def nested(kind: str, depth: int = 40) -> bytes:
  """Opcodes of a container that holds another one twice, and so on."""
  opcodes = {
    'dict': b'}(K\x00h\x00K\x01h\x00u',
    'list': b'](h\x00h\x00e',
    'tuple': b'h\x00h\x00\x86',
  }[kind]
  return b'K\x00q\x000' + (opcodes + b'q\x000') * depth + b'h\x00'


def text(value: str) -> bytes:
  return b'X' + struct.pack('<I', len(value)) + value.encode()


def call(name: str, arguments: bytes) -> bytes:
  module, _, function = name.rpartition('.')
  return f'c{module}\n{function}\n('.encode() + arguments + b'tR'


_PAIR = nested('tuple')  # Can be hashed.
_LONG = text('a' * 10**5) + b'q\x01'
_TOO_MUCH = 'unfold to more than the file'
_BOMBS = {
  'dicts': (b'}' + text('a') + nested('dict') + b's.', _TOO_MUCH),
  'lists': (b'}' + text('a') + nested('list') + b's.', _TOO_MUCH),
  'tuples': (b'}' + text('a') + nested('tuple') + b's.', _TOO_MUCH),
  'itself': (b'}q\x00' + text('a') + b'h\x00s.', 'holds itself'),
  'key': (b'}' + _PAIR + b'K\x00s.', 'a key'),
  'keys': (b'}(' + _PAIR + b'K\x00u.', 'a key'),
  'dict of keys': (b'(' + _PAIR + b'K\x00d.', 'a key'),
  'set': (b'}' + text('a') + b'\x8f(' + _PAIR + b'\x90s.', 'a key'),
  'long key': (b'}' + _LONG + b'h\x01\x86K\x00s.', 'a key'),
  'pairs': (
    call('collections.OrderedDict', b'((' + _PAIR + b'K\x00ll') + b'.',
    'a key',
  ),
  'copies of a text': (
    b'}'
    + text('a')
    + b'('
    + _LONG
    + call('_codecs.encode', b'h\x01' + text('latin1')) * 100
    + b'ls.',
    'calls unfold to more than the file',
  ),
  'copies of a dict': (
    b'}q\x01('
    + b''.join(b'J' + struct.pack('<i', i) + b'N' for i in range(10**4))
    + b'u'
    + b'('
    + call('collections.OrderedDict', b'h\x01') * 1000
    + b'1.',
    'calls unfold to more than the file',
  ),
  'dtype': (
    b'\x80\x02}'
    + text('a')
    + call(
      'numpy._core.multiarray.scalar',
      call('numpy.dtype', nested('list')) + text('a'),
    )
    + b's.',
    'dtype without a code',
  ),
  'zeros': (
    b'}'
    + text('a')
    + call(
      'numpy._core.numeric._frombuffer',
      b'\x8a\x05'
      + (10**11).to_bytes(5, 'little')
      # type f4, [10^11 / 4], C
      + call('numpy.dtype', text('f4'))
      + b'\x8a\x05'
      + (10**11 // 4).to_bytes(5, 'little')
      + b'\x85'
      + text('C'),
    )
    + b's.',
    'an array is made of a int',
  ),
  'bytearray': (
    b'}' + text('a') + b'\x96' + bytes(5) + b'\x01\0\0s.',
    'EOF|Memory',
  ),
  'shape': (
    tensor_of('0', 2, 'K\x02\x85')[:-5].replace(
      b'K\x02\x85', nested('tuple') + b'K\x01\x85'
    )
    + b'\x89}tRs.',
    'not a shape',
  ),
}


@pytest.mark.parametrize('name', _BOMBS)
def test_a_file_that_unfolds_to_more_than_itself_is_refused(tmp_path, name):
  """A walk through the nested ones, or their hash or text, takes 2^40 steps."""
  structure, words = _BOMBS[name]
  path = tmp_path / 'x.pth'
  zipped = lambda data: in_zip(data, path, **{'0': bytes(8)})
  for write in (path.write_bytes, zipped):
    write(structure)
    with pytest.raises(ConfigError, match=words):
      torch_files.load(path)


def test_the_last_place_of_the_memo_needs_no_room_for_those_before_it(tmp_path):
  path = tmp_path / 'x.pth'
  path.write_bytes(b'}r\xff\xff\xff\x7f.')
  assert torch_files.load(path) == {}


def test_shared_values_are_read(tmp_path):
  """Weights under two names, shared options, pairs as keys: all in use."""
  weights = {f'{i}.weight': np.ones(2, np.float32) for i in range(50)}
  betas = (0.9, 0.999)
  content = {
    'state_dict': weights,
    'ema': weights,
    'groups': [{'lr': 0.1, 'betas': betas} for _ in range(50)],
    'seen': {(0, 'a'): 1},
  }
  path = tmp_path / 'x.pth'
  path.write_bytes(pickle.dumps(content))
  read = torch_files.load(path)
  assert read['ema']['49.weight'].numpy().tolist() == [1, 1]
  assert (read['groups'], read['seen']) == (content['groups'], {(0, 'a'): 1})


def test_tensors_of_safetensors_do_not_overlap(tmp_path):
  entry = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
  path = tmp_path / 'x.safetensors'
  path.write_bytes(safetensors({'a': entry, 'b': entry}, bytes(8)))
  with pytest.raises(ConfigError, match='b overlaps others'):
    torch_files.load(path)


def test_zips_that_torch_does_not_write_are_refused(tmp_path):
  inner, outer = tmp_path / 'inner.pth', tmp_path / 'outer.pth'
  in_zip(b'}.', inner)
  with zipfile.ZipFile(outer, 'w') as archive:
    archive.write(inner, 'archive/inner.pth')
  bomb = tmp_path / 'bomb.pth'
  with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', b'}.')
    archive.writestr('archive/data/0', bytes(10**6))
  script = tmp_path / 'script.pth'
  with zipfile.ZipFile(script, 'w') as archive:
    archive.writestr('archive/data.pkl', b'}.')
    archive.writestr('archive/constants.pkl', b').')
  for path, words in ((outer, 'torch.save'), (bomb, 'torch'), (script, 'Scr')):
    with pytest.raises(ConfigError, match=words):
      torch_files.load(path)
  assert torch_files.load(inner) == {}


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth'])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, name):
  data = (GOLDEN / name).read_bytes()
  path = tmp_path / 'x.pth'
  for length in range(0, len(data) - 1, 97):
    path.write_bytes(data[:length])
    with pytest.raises(ConfigError, match='x.pth'):
      torch_files.load(path)


def test_a_changed_byte_of_a_tensor_is_noticed(tmp_path):
  path = tmp_path / 'x.pth'
  torch_files.save(path, {'w': np.full(9, 1.2345, np.float32)})
  data = bytearray(path.read_bytes())
  data[data.index(np.float32(1.2345).tobytes()) + 8] ^= 1
  path.write_bytes(data)
  content = torch_files.load(path)
  with pytest.raises(ConfigError, match='x.pth: is damaged'):
    content['w'].numpy()


def test_other_files_are_refused_with_their_name(tmp_path):
  path = tmp_path / 'x.pth'
  deep = b'\x80\x02}' + b'K\x01}' * 3000 + b's' * 3000 + b'.'
  loop = b'\x80\x02}q\x00K\x01h\x00s.'
  for data in (b'', b'hello', b'\x89PNG\r\n\x1a\n' * 9, b'K\x01.', deep, loop):
    path.write_bytes(data)
    with pytest.raises(ConfigError, match='x.pth'):
      torch_files.load(path)
  path.write_bytes(
    safetensors(
      {'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}, b''
    )
  )
  with pytest.raises(ConfigError, match='incomplete'):
    torch_files.load(path)
  with pytest.raises(ConfigError, match='No such file'):
    torch_files.load(tmp_path / 'missing')
