"""Checks that weights give the logits, and features, that they should.

A file that mgjax wrote holds the logits of a clip; for any other one a user may
have logits of the reference (--logits). Where neither is known, the logits of
a clip must at least be finite.
"""

import json
import math
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mgjax.errors import ConfigError
from mgjax.models import norm
from mgjax.step import compilation
from mgjax.weights.tensors import Tensor

# Where a file keeps them, and the clips' sides.
KEY = 'mgjax_check'
_SIDE_PX = 64
_MAX_SIZE = 2**24  # Numbers of a clip that a file may ask for.
# Of the largest logit: two devices differ by less, two networks by more.
_TOLERANCE = 1e-2


def clip(shape: Sequence[int]) -> np.ndarray:
  """A clip that is the same everywhere: float32 of a shape, a wave."""
  return np.sin(np.arange(math.prod(shape))).reshape(shape).astype(np.float32)


def _shape(model: nn.Module, num_frames: int) -> tuple[int, ...]:
  """Of a clip that the network takes: multiples of its smallest one."""
  least_frames, *least_sides = model.example_clip(num_frames)
  frames = max(num_frames // least_frames, 1) * least_frames
  return 1, frames, *(-(-_SIDE_PX // side) * side for side in least_sides), 3


def make(
  model: nn.Module, variables: dict, num_frames: int
) -> dict[str, np.ndarray]:
  """What a file keeps: the 'shape' of a clip and its 'logits' [1, K]."""
  shape = _shape(model, num_frames)
  return {
    'shape': np.array(shape),
    'logits': _logits(model, variables, clip(shape)),
  }


def read(entry: Any) -> dict[str, np.ndarray]:
  """Reads what `make` made from a file's `KEY`; {} of anything else."""
  if not isinstance(entry, dict) or set(entry) != {'shape', 'logits'}:
    return {}
  if not all(isinstance(value, Tensor) for value in entry.values()):
    return {}
  return _checked({name: value.numpy() for name, value in entry.items()})


def as_text(check: dict[str, np.ndarray]) -> str:
  """What `make` made, as the text that .safetensors can keep."""
  return json.dumps({name: array.tolist() for name, array in check.items()})


def from_text(metadata: Any) -> dict[str, np.ndarray]:
  """Reads `as_text` from what a .safetensors file has beside its tensors.

  Args:
    metadata: Text by key, with that under `KEY`; {} of anything else.
  """
  try:
    found = json.loads(metadata[KEY])
    return _checked(
      {
        'shape': np.array(found['shape'], np.int64),
        'logits': np.array(found['logits'], np.float32),
      }
    )
  except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
    return {}


def _checked(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A check; {} where its shape is none of a clip."""
  shape = found['shape'].tolist()
  is_clip = len(shape) == 5 and shape[-1] == 3 and min(shape) > 0
  return found if is_clip and math.prod(shape) <= _MAX_SIZE else {}


def run(
  model: nn.Module,
  variables: dict,
  num_frames: int,
  *,
  stored: dict[str, np.ndarray],
  path: pathlib.Path,
  reference: pathlib.Path | None,
) -> str:
  """Runs a network with imported weights; returns what was found, in a line.

  Args:
    model: Of `models`.
    variables: All of the network's.
    num_frames: Of a clip, where none is known.
    stored: What `read` found in the file.
    path: Of the file.
    reference: An .npz of 'video' [B, T, H, W, 3], normalised, and 'logits'
      [B, K]; it counts before what is stored. None: there is none.

  Raises:
    ConfigError: The logits are other ones, or not finite; or the reference
      cannot be read.
  """
  if reference is not None:
    video, wanted = _read_reference(reference)
    source = f'--logits={reference}'
  elif stored:
    video, wanted = clip(stored['shape'].tolist()), stored['logits']
    source = f'{path}'
  else:
    video = clip(_shape(model, num_frames))
    wanted, source = None, f'{path}'
  logits = _logits(model, variables, video)
  if not np.isfinite(logits).all():
    raise ConfigError(f'{source}: the weights give logits that are not finite')
  if wanted is None:
    return (
      f'logits of a wave are finite, the largest {np.abs(logits).max():.3g}'
    )
  if wanted.shape != logits.shape:
    raise ConfigError(
      f'{source}: has logits {wanted.shape}, the model gives {logits.shape}'
    )
  found = difference(logits, wanted)
  if not found <= _TOLERANCE:
    raise ConfigError(
      f'{source}: the weights give other logits than it says; they differ by '
      f'{found:.2g} of the largest (accepted: {_TOLERANCE:g}). Is this '
      'the network, with its options, that the weights are of?'
    )
  return f'logits agree with those of {source} to {found:.1e}'


def difference(logits: np.ndarray, wanted: np.ndarray) -> float:
  """How far logits are from others: a share of the largest of those."""
  return float(np.abs(logits - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def check_features(
  model: nn.Module, variables: dict, num_frames: int, source: Any
) -> None:
  """Refuses weights by which a layer's features are not finite.

  Scores do not show it: a ReLU or a maximum that XLA:CPU fuses with what is
  around it may turn NaN into a number. So every layer is looked at by itself,
  in front of its ReLU, by a mean: a sum hides nothing.

  Args:
    model: The network.
    variables: All of its variables.
    num_frames: Of the clip, a wave.
    source: Where the variables are from, for the message.

  Raises:
    ConfigError: Names the first layer that has such features.
  """
  # What is inside of a rematerialised block could not be taken out of it.
  model = model.changed(remat=False)

  names = []

  def layer_means(variables, video):
    means = {}

    def keep_mean(call, args, kwargs, context):
      y = call(*args, **kwargs)
      if isinstance(context.module, norm.BatchNorm):
        means['/'.join(context.module.path)] = y.astype(np.float32).mean()
      return y

    with nn.intercept_methods(keep_mean):
      logits = model.apply(variables, video)
    # A dict comes back in the order of its keys, not in that of the layers.
    names[:] = [*means, 'the logits']
    return [*means.values(), logits.mean()]

  options = compilation.options_once(jax.devices()[0].platform) or None
  run = jax.jit(layer_means, compiler_options=options)
  means = jax.device_get(run(variables, clip(_shape(model, num_frames))))
  for name, mean in zip(names, means, strict=True):
    if not np.isfinite(mean):
      raise ConfigError(
        f'{source}: scores do not come from finite features: those of {name} '
        'are NaN or infinite, for a clip of a sine wave'
      )


def _logits(model: nn.Module, variables: dict, video: np.ndarray) -> np.ndarray:
  # In float32, whatever the run computes in: bfloat16 differs by the tolerance.
  model = model.changed(dtype=np.float32)
  return np.asarray(jax.jit(model.apply)(variables, video))


def _read_reference(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  try:
    with path.open('rb') as file:
      found = np.load(file)
      if isinstance(found, np.ndarray):
        raise ValueError('it is one array')
      video, logits = found['video'], found['logits']
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise ConfigError(
      f"--logits={path}: must be an .npz of arrays 'video' [B, T, H, W, 3], "
      f"normalised, and 'logits' [B, K] ({error})"
    ) from error
  if video.ndim != 5 or video.shape[-1] != 3:
    raise ConfigError(
      f'--logits={path}: video is {video.shape}, not [B, T, H, W, 3]'
    )
  return np.float32(video), logits
