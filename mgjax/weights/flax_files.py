"""Reads Flax's weights in .npz files: arrays whose names are joined by '/'."""

import functools
import math
import pathlib
import re
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from mgjax.errors import ConfigError
from mgjax.weights.tensors import Damaged, Tensor, sizes

_ENDING = '.npy'
# Layers that `flax.linen.scan` has stacked; unstacked ones have numbers behind.
_STACKED = re.compile(r'(.*/)?x_layers/.*')
# How NumPy reads bfloat16, which its files have no name for.
_BFLOAT16 = np.dtype('V2')


def is_npz(archive: zipfile.ZipFile) -> bool:
  """Whether a zip file is one of NumPy's."""
  names = archive.namelist()
  return bool(names) and all(name.endswith(_ENDING) for name in names)


def load(path: pathlib.Path) -> dict[str, Tensor]:
  """Reads the headers of an .npz: arrays by name, read when they are asked for.

  Nothing is unpickled.

  Raises:
    Damaged: An array is incomplete, or one of Python's objects.
  """
  with zipfile.ZipFile(path) as archive:
    return {
      info.filename.removesuffix(_ENDING): _tensor(path, archive, info)
      for info in archive.infolist()
    }


def _tensor(
  path: pathlib.Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> Tensor:
  """An array in a file, by its header."""
  with archive.open(info) as file:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
      raise Damaged(f'{info.filename} is of an unknown version')
    read_header = (
      np.lib.format.read_array_header_1_0
      if version == (1, 0)
      else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file)
    start = file.tell()
  shape = sizes(shape)
  if dtype.hasobject:
    raise Damaged(f"{info.filename} holds Python's objects, not numbers")
  if info.file_size - start != math.prod(shape) * dtype.itemsize:
    raise Damaged(f'{info.filename} is incomplete')
  is_bfloat16 = dtype == _BFLOAT16
  if not is_bfloat16 and dtype.kind not in 'fiub':
    raise Damaged(f'{info.filename} holds {dtype}, not numbers')

  def read() -> np.ndarray:
    try:
      with zipfile.ZipFile(path) as archive, archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
      raise ConfigError(f'{path}: is damaged ({error})') from error
    return array.view(ml_dtypes.bfloat16) if is_bfloat16 else array

  return Tensor(
    shape, np.dtype(ml_dtypes.bfloat16) if is_bfloat16 else dtype, read
  )


def unstack(
  state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str]]:
  """Takes stacked layers apart: .../x_layers/... becomes .../x_layers_0/....

  Returns:
    The tensors by name; how those were made that the file does not hold.

  Raises:
    ConfigError: The file has a layer in both forms.

  Source: google-deepmind/videoprism d481d91, videoprism/layers.py,
    StackedTransformer with `scan`; the layers are along the first axis.
  """
  apart: dict[str, Tensor] = {}
  made: dict[str, str] = {}
  for name, tensor in state.items():
    if not _STACKED.fullmatch(name) or not tensor.shape:
      continue
    # All layers are taken one after the other: the array is read once.
    read = functools.cache(tensor.read)
    for i in range(tensor.shape[0]):
      layer = re.sub(r'(^|/)x_layers/', rf'\1x_layers_{i}/', name)
      if layer in state:
        raise ConfigError(f'{name} and {layer} are both in the file')
      apart[layer] = Tensor(
        tensor.shape[1:], tensor.dtype, lambda read=read, i=i: read()[i]
      )
      made[layer] = f'layer {i} of {name}'
  rest = {
    name: tensor
    for name, tensor in state.items()
    if not _STACKED.fullmatch(name) or not tensor.shape
  }
  return rest | apart, made
