"""Weights, statistics and inputs of the golden references, from their names.

The files in golden/forward and golden/transformers hold no weights: each tensor
is a pure function of a salt, its name in the reference's state_dict and its
shape there (PyTorch's axis order). Random words come from SplitMix64 seeded by
crc32(salt + name), so they are the same bits on every machine and numpy
version.
"""

import zlib

import numpy as np

EMBEDDINGS = (
  'query_tokens',
  'mask_tokens',
  'cls_token',
  'class_token',
  'position_embeddings',
  'time_embeddings',
  'emb_var',
  'pooling_attention_query',
)
_GOLDEN_RATIO = 0x9E3779B97F4A7C15


def _mix(z):
  """SplitMix64's finaliser on a uint64 array, modulo 2**64, in place."""
  z ^= z >> np.uint64(30)
  z *= np.uint64(0xBF58476D1CE4E5B9)
  z ^= z >> np.uint64(27)
  z *= np.uint64(0x94D049BB133111EB)
  z ^= z >> np.uint64(31)
  return z


def words(name, count, salt=''):
  """The first `count` 64-bit words of the stream called salt + name."""
  seed = zlib.crc32((salt + name).encode())
  start = int(_mix(np.array([seed], np.uint64))[0])
  z = np.arange(1, count + 1, dtype=np.uint64)
  z *= np.uint64(_GOLDEN_RATIO)
  z += np.uint64(start)
  return _mix(z)


def unit(name, shape, salt=''):
  """float64 array: uniform with mean 0 and variance 1."""
  count = int(np.prod(shape, dtype=np.int64))
  r = (words(name, count, salt) >> np.uint64(11)).astype(np.float64)
  return ((r * 2.0**-52 - 1.0) * 1.7320508075688772).reshape(shape)


def tensor(name, shape, salt, gains):
  """The parameter or buffer `name`, float32 (counters: int64)."""
  kind = name.rsplit('.', 1)[-1]
  if kind == 'num_batches_tracked':
    return np.zeros(shape, np.int64)
  r = unit(name, shape, salt)
  if kind == 'weight' and len(shape) >= 2:
    gain = gains.get(name.split('.')[-2], 1.0)
    r *= np.sqrt(gain / float(np.prod(shape[1:], dtype=np.int64)))
  elif kind == 'weight':
    r = 1.0 + 0.1 * r
  elif kind in ('bias', 'running_mean', 'q_bias', 'v_bias', 'b', 'scale'):
    r = 0.1 * r
  elif kind == 'per_dim_scale':
    r = 0.2 * r
  elif kind == 'kernel':  # Flax: ..., in, out.
    r *= np.sqrt(1.0 / shape[-2])
  elif kind == 'w':  # Of Flax's heads: width, heads, width of a head.
    out = name.split('.')[-2] == 'post'
    r *= np.sqrt(1.0 / (shape[-1] * shape[-2] if out else shape[-3]))
  elif kind in ('rel_pos_h', 'rel_pos_w', 'rel_pos_t'):
    r *= 0.5 / np.sqrt(shape[-1])
  elif kind in EMBEDDINGS:
    r = 0.5 * r
  elif kind == 'running_var':
    r = 1.0 + 0.25 * r
  else:
    raise ValueError(f'No rule for a tensor called {name!r}.')
  return r.astype(np.float32)


def state(golden):
  """{name: array} of a golden file's network, checked against its digest."""
  salt, gains = golden['rule']['salt'], golden['rule']['gains']
  arrays, crc = {}, 0
  for name, shape, *_ in golden['state']:
    array = tensor(name, tuple(shape), salt, gains)
    crc = zlib.crc32(array.tobytes(), crc)
    arrays[name] = array
  assert crc == golden['rule']['digest']
  return arrays


def video(case, salt=''):
  """The clips [n, t, h, w, 3] of a golden case, checked against its digest.

  Pixel noise, plus blocks of 8 x 8 pixels of each frame's own, plus a colour of
  each clip's own: clips, frames and places all differ after pooling.
  """
  name = case['input']['video']
  n, t, h, w = (case[k] for k in 'nthw')
  noise = unit(name + '/noise', (n, t, h, w, 3), salt)
  blocks = unit(name + '/coarse', (n, t, -(-h // 8), -(-w // 8), 3), salt)
  blocks = blocks.repeat(8, axis=2)[:, :, :h].repeat(8, axis=3)[:, :, :, :w]
  colour = unit(name + '/colour', (n, 1, 1, 1, 3), salt)
  x = (0.5 * noise + 1.0 * blocks + 1.0 * colour).astype(np.float32)
  assert zlib.crc32(x.tobytes()) == case['input']['digest_nthwc']
  return x


def probe(name, array, salt=''):
  """Fingerprint of an array: a fixed random projection over sqrt(size).

  The projection is that of the name alone in golden/forward, whose probes are
  made without their files' salt.
  """
  a = np.asarray(array, np.float64)
  r = unit(name + '/probe', a.shape, salt)
  return float((a * r).sum() / np.sqrt(a.size))
