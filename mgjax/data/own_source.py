"""Videos of the user's own in the place of a prepared data set.

What a source must be is written down in docs/own_code.md.
"""

import os
import pathlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import av
import numpy as np

from mgjax.config import own
from mgjax.data import scanning
from mgjax.data.decode import Crop, Form, Video
from mgjax.data.description import Description
from mgjax.data.sources import Example, Source, TimedLabel
from mgjax.errors import ConfigError, RunError


class ArrayVideo(Video):
  """Frames in memory as a video: resized and cropped like decoded ones."""

  def __init__(self, frames: np.ndarray, fps: float):
    """Wraps frames.

    Args:
      frames: uint8 [T, H, W, 3], RGB.
      fps: Frame rate.
    """
    self._frames = frames
    self.num_frames, self.height, self.width = frames.shape[:3]
    self.fps = fps

  def __exit__(self, *unused) -> None:
    """There is nothing to close."""

  def frames(
    self,
    indices: np.ndarray,
    height: int,
    width: int,
    crop: Crop | None = None,
  ) -> np.ndarray:
    convert = self._converter(height, width, crop or Crop(0, 0, height, width))
    found = {
      i: convert(av.VideoFrame.from_ndarray(self._frames[i], 'rgb24'))
      for i in set(indices.tolist())
    }
    return np.stack([found[i] for i in indices.tolist()])


class OwnSource(Source):
  """A split that a function of the user's own opens.

  It is pickled as the name of the function, so that processes open it anew.
  """

  def __init__(self, name: str, split: str, options: Mapping[str, Any]):
    """Opens the split and looks at its first example.

    Args:
      name: 'package.module:function'.
      split: Such as 'train'.
      options: Of the function.

    Raises:
      ConfigError: There is no such function or split, or what it returns is
        not of the form that docs/own_code.md describes.
    """
    self._opened_by = (name, split, dict(options))
    made = own.load('data.name', name)
    told = f'data.name={name!r}, split {split!r}'
    try:
      data = made(split, **options)
    except Exception as error:  # Of the user's code: of any kind.
      raise ConfigError(
        f'{told}: it cannot be opened: {type(error).__name__}: {error}'
      ) from error
    lacking = [
      attribute
      for attribute in ('__len__', '__getitem__', 'label_names')
      if not hasattr(data, attribute)
    ]
    if lacking:
      raise ConfigError(
        f'{told}: what the function returns has no {lacking[0]}; '
        'docs/own_code.md says what a source must have'
      )
    super().__init__(name, split, data, tuple(map(str, data.label_names)))
    self._told = told
    # How each encoded file is read, once it has been looked at.
    self._in_order: dict[int, Form | None] = {}
    if len(data):
      example = self._checked(0)
      self.has_actions = 'actions' in example

  def __reduce__(self) -> tuple[Callable, tuple]:
    return OwnSource, self._opened_by

  def __getitem__(self, index: int) -> Example:
    """Returns an example.

    Raises:
      ConfigError: It is not of the form that docs/own_code.md describes.
      DecodeError: It is an encoded video, and damaged.
    """
    example = self._checked(index)
    video, in_order = example['video'], None
    if isinstance(video, np.ndarray):
      opened = ArrayVideo(video, float(example.get('fps', 30.0)))
      encoded = b''
    else:
      opened = None
      encoded = video if isinstance(video, bytes) else _file(video, self._told)
      if index not in self._in_order:
        # Nobody has prepared it: key frames need not be what they are called.
        found = scanning.scan(encoded)
        known = None if found.is_addressable else found.form
        self._in_order[index] = known
      in_order = self._in_order[index]
    return Example(
      encoded,
      None if self.has_actions else int(example['label']),
      self.name_of(index),
      tuple(TimedLabel(*action) for action in example.get('actions', ())),
      in_order=in_order,
      opened=opened,
    )

  def name_of(self, index: int) -> str:
    """The id of an example; its number where it has none."""
    return str(self._checked(index).get('id', index))

  def _checked(self, index: int) -> Mapping[str, Any]:
    """An example as the user's object gives it.

    Raises:
      ConfigError: It is not of the form that docs/own_code.md describes.
      RunError: The user's code fails.
    """
    try:
      example = self.records[index]
    except Exception as error:  # Of the user's code: of any kind.
      where = traceback.extract_tb(error.__traceback__)[-1]
      raise RunError(
        f'{self._told}: example {index} cannot be read '
        f'({type(error).__name__} at {where.filename}:{where.lineno}: {error})'
      ) from error
    wrong = _wrong(example, len(self.label_names))
    if wrong:
      raise ConfigError(f'{self._told}: example {index} {wrong}')
    return example


def _file(path: str | os.PathLike, told: str) -> bytes:
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise ConfigError(f'{told}: {path}: {error.strerror}') from error


def _wrong(example: Any, num_classes: int) -> str:
  """What is wrong with an example, or ''."""
  if not isinstance(example, Mapping):
    return f'is a {type(example).__name__}; it must be a dict'
  if 'video' not in example or not {'label', 'actions'} & set(example):
    return (
      f"has {sorted(map(str, example))}; it must have 'video' and 'label' (or "
      "'actions')"
    )
  video = example['video']
  if isinstance(video, np.ndarray):
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
      return (
        f'has a video of {video.dtype} {video.shape}; frames must be uint8 '
        '[T, H, W, 3]'
      )
    if not min(video.shape):
      return f'has a video of {video.shape}, which has no frame'
  elif not isinstance(video, bytes | str | os.PathLike):
    return (
      f'has a video of type {type(video).__name__}; it must be frames, uint8 '
      '[T, H, W, 3], the bytes of a video file, or its path'
    )
  labels: Sequence[Any] = (
    [action[0] for action in example['actions']]
    if 'actions' in example
    else [example['label']]
  )
  for label in labels:
    if not isinstance(label, int | np.integer) or not 0 <= label < num_classes:
      return (
        f'has the label {label!r}; labels are integers in [0, {num_classes})'
      )
  return ''


def describe(
  name: str, splits: Sequence[str], options: Mapping[str, Any]
) -> Description:
  """What a source says of itself.

  Args:
    name: 'package.module:function'.
    splits: Those that are asked for.
    options: Of the function.

  Raises:
    ConfigError: As `OwnSource`.
  """
  opened = {split: OwnSource(name, split, options) for split in splits}
  first, *others = opened.values()
  for other in others:
    if other.label_names != first.label_names:
      raise ConfigError(
        f'data.name={name!r}: the splits {first.split!r} and {other.split!r} '
        'have other names of the classes'
      )
  return Description(
    name,
    {split: len(source) for split, source in opened.items()},
    len(first.label_names),
    first.has_actions,
  )
