"""Videos of the user's own in the place of a prepared data set.

What a source must be is written down in docs/own_code.md.
"""

import functools
import math
import numbers
import os
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from mgjax.config import own
from mgjax.data import scanning
from mgjax.data.decode import Form, FramesVideo
from mgjax.data.description import Description
from mgjax.data.sources import Example, Source, TimedLabel
from mgjax.errors import ConfigError, RunError


class ArrayVideo(FramesVideo):
  """Frames in memory as a video."""

  def __init__(self, frames: np.ndarray, fps: float):
    """Wraps frames.

    Args:
      frames: uint8 [T, H, W, 3], RGB.
      fps: Frame rate.
    """
    count, height, width, _ = frames.shape
    super().__init__(Form(count, fps, height, width))
    self._frames = frames

  def frame(self, index: int) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(self._frames[index], 'rgb24')


class _Parsed(NamedTuple):
  """An example of a user's own, of the form that docs/own_code.md describes."""

  video: np.ndarray | bytes | str | os.PathLike
  fps: float  # Of frames; that of a file is in it.
  label: int | None  # None where there are actions.
  actions: tuple[TimedLabel, ...]
  id: str


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
      RunError: The user's code fails to make the first example.
    """
    self._opened_by = (name, split, dict(options))
    self._where = f'data.name={name!r}, split {split!r}'
    data, label_names = self._open()
    super().__init__(name, split, data, label_names)
    # How each encoded file is read, once it has been looked at.
    self._in_order: dict[int, Form | None] = {}
    first = self._parsed(0)
    self.has_actions = first.label is None
    try:
      _encoded(first.video)
    except (OSError, ValueError) as error:
      raise ConfigError(self._unreadable(0, first.video, error)) from error

  def _open(self) -> tuple[Any, tuple[str, ...]]:
    """Returns the user's object and its names of the classes.

    Raises:
      ConfigError: As `__init__`.
    """
    name, split, options = self._opened_by
    made = own.load('data.name', name)
    needed = ('__len__', '__getitem__', 'label_names')
    try:
      data = made(split, **options)
      lacking = [name for name in needed if not hasattr(data, name)]
      if not lacking:
        num_videos, label_names = len(data), data.label_names
        # A text would be taken for a list of letters.
        if isinstance(label_names, Iterable) and not isinstance(
          label_names, str | bytes
        ):
          label_names = tuple(label_names)
    except Exception as error:  # Of the user's code: of any kind.
      raise ConfigError(
        f'{self._where}: it cannot be opened: {type(error).__name__}: {error}'
      ) from error
    if lacking:
      raise ConfigError(
        f'{self._where}: what the function returns has no {lacking[0]}; '
        'docs/own_code.md says what a source must have'
      )
    if not num_videos:
      raise ConfigError(f'{self._where}: it has no video')
    if not (
      isinstance(label_names, tuple)
      and label_names
      and all(isinstance(label, str) for label in label_names)
      and len(set(label_names)) == len(label_names)
    ):
      raise ConfigError(
        f'{self._where}: label_names is {_shown(label_names)}; it must be a '
        'list of names, a different one for each class'
      )
    return data, tuple(map(str, label_names))

  def __reduce__(self) -> tuple[Callable, tuple]:
    return OwnSource, self._opened_by

  def __getitem__(self, index: int) -> Example:
    """Returns an example.

    Raises:
      ConfigError: It is not of the form that docs/own_code.md describes.
      DecodeError: It is an encoded video, and damaged.
      RunError: The user's code fails, or the file cannot be read.
    """
    example = self._parsed(index)
    encoded, in_order, opened = b'', None, None
    if isinstance(example.video, np.ndarray):
      opened = ArrayVideo(example.video, example.fps)
    else:
      encoded = self._bytes(index, example.video)
      if index not in self._in_order:
        # Nobody has prepared it: key frames need not be what they are called.
        found = scanning.scan(encoded)
        known = None if found.is_addressable else found.form
        self._in_order[index] = known
      in_order = self._in_order[index]
    return Example(
      encoded,
      example.label,
      example.id,
      example.actions,
      in_order=in_order,
      opened=opened,
    )

  def encoded(self) -> Iterator[bytes]:
    for index in range(len(self)):
      video = self._parsed(index).video
      if isinstance(video, np.ndarray):
        if not index:
          return  # Nothing is decoded: all are like the first one.
        continue
      yield self._bytes(index, video)

  def name_of(self, index: int) -> str:
    """The id of an example; its number where it has none."""
    return self._parsed(index).id

  def label_of(self, index: int) -> int:
    return self._parsed(index).label

  def _parsed(self, index: int) -> _Parsed:
    """An example as the user's object gives it.

    Raises:
      ConfigError: It is not of the form that docs/own_code.md describes.
      RunError: The user's code fails.
    """
    try:
      example = self.records[index]
      if isinstance(example, Mapping):
        example = dict(example)
        actions = _plain(example.get('actions'))
        # Now, as it can be a generator: the user's code, and gone once read.
        if isinstance(actions, Iterable):
          example['actions'] = tuple(actions)
    except Exception as error:  # Of the user's code: of any kind.
      where = traceback.extract_tb(error.__traceback__)[-1]
      raise RunError(
        f'{self._where}: example {index} cannot be read '
        f'({type(error).__name__} at {where.filename}:{where.lineno}: {error})'
      ) from error
    try:
      parsed = _parse(example, index, len(self.label_names))
      if index and (parsed.label is None) != self.has_actions:
        kinds = ('a label', 'actions')
        raise ConfigError(
          f'has {kinds[not self.has_actions]}, but example 0 has '
          f'{kinds[self.has_actions]}; all must have the same'
        )
    except ConfigError as error:
      raise ConfigError(f'{self._where}: example {index} {error}') from error
    return parsed

  def _bytes(self, index: int, video: bytes | str | os.PathLike) -> bytes:
    """The bytes of a video file.

    Raises:
      RunError: The file cannot be read.
    """
    try:
      return _encoded(video)
    except (OSError, ValueError) as error:
      raise RunError(
        self._unreadable(index, video, error)
        + '; the same command goes on from the newest checkpoint'
      ) from error

  def _unreadable(self, index: int, path: Any, error: Exception) -> str:
    reason = getattr(error, 'strerror', None) or error
    return f'{self._where}: example {index}: {path}: {reason}'


def _encoded(video: np.ndarray | bytes | str | os.PathLike) -> bytes:
  """The bytes of a video file, b'' of frames.

  Raises:
    OSError: The file cannot be read.
    ValueError: There can be no such path.
  """
  if isinstance(video, np.ndarray):
    return b''
  if isinstance(video, bytes):
    return video
  with open(video, 'rb') as file:
    return file.read()


def _shown(value: Any) -> str:
  return textwrap.shorten(repr(value), 80, placeholder=' ...')


def _plain(value: Any) -> Any:
  """Arrays as lists, of numbers of Python."""
  return value.tolist() if isinstance(value, np.ndarray) else value


def _is_finite(value: Any) -> bool:
  try:
    return isinstance(value, numbers.Real) and math.isfinite(float(value))
  except OverflowError:  # An int that no float can hold.
    return False


# What follows raises ConfigError with what is wrong with an example, such as
# 'has a video of ...'.


def _parse(example: Any, index: int, num_classes: int) -> _Parsed:
  if not isinstance(example, dict):
    raise ConfigError(f'is a {type(example).__name__}; it must be a dict')
  kinds = {'label', 'actions'} & set(example)
  if 'video' not in example or len(kinds) != 1:
    raise ConfigError(
      f"has {sorted(map(str, example))}; it must have 'video' and 'label' (or "
      "'actions' in its place)"
    )
  video, fps = example['video'], example.get('fps', 30.0)
  _check_video(video)
  if isinstance(video, np.ndarray) and not (_is_finite(fps) and fps > 0):
    raise ConfigError(
      f'has the fps {_shown(fps)}; a frame rate is a number above 0'
    )
  return _Parsed(
    video,
    float(fps) if isinstance(video, np.ndarray) else 0.0,
    _label(example['label'], num_classes) if 'label' in example else None,
    _actions(example.get('actions', ()), num_classes),
    str(example.get('id', index)),
  )


def _check_video(video: Any) -> None:
  if isinstance(video, np.ndarray):
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
      raise ConfigError(
        f'has a video of {video.dtype} {video.shape}; frames must be uint8 '
        '[T, H, W, 3]'
      )
    if not min(video.shape):
      raise ConfigError(f'has a video of {video.shape}, which has no frame')
  elif not isinstance(video, bytes | str | os.PathLike):
    raise ConfigError(
      f'has a video of type {type(video).__name__}; it must be frames, uint8 '
      '[T, H, W, 3], the bytes of a video file, or its path'
    )


def _label(label: Any, num_classes: int) -> int:
  if not isinstance(label, int | np.integer) or not 0 <= label < num_classes:
    raise ConfigError(
      f'has the label {_shown(label)}; labels are integers in '
      f'[0, {num_classes})'
    )
  return int(label)


def _actions(actions: Any, num_classes: int) -> tuple[TimedLabel, ...]:
  if not isinstance(actions, tuple):
    raise ConfigError(
      f'has the actions {_shown(actions)}; they are a list of '
      '(class, start, end)'
    )
  found = []
  for action in map(_plain, actions):
    if not isinstance(action, Sequence) or len(action) != 3:
      raise ConfigError(
        f'has the action {_shown(action)}; it must be (class, start, end)'
      )
    label, start, end = action
    label = _label(label, num_classes)
    if not (_is_finite(start) and _is_finite(end) and start <= end):
      raise ConfigError(
        f'has the action {_shown(action)}; its start and end are seconds, and '
        'the end is not before the start'
      )
    found.append(TimedLabel(label, float(start), float(end)))
  return tuple(found)


def open_source(name: str, split: str, options: Mapping[str, Any]) -> OwnSource:
  """Opens a split, or returns it where it has just been opened.

  A launch asks several times for the same two, and to open one can take the
  user's code long.

  Args:
    name: 'package.module:function'.
    split: Such as 'train'.
    options: Of the function; each can be hashed.

  Raises:
    ConfigError: As `OwnSource`.
    RunError: As `OwnSource`.
  """
  made = own.load('data.name', name)
  return _opened(made, name, split, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=2)
def _opened(
  made: Callable, name: str, split: str, options: tuple[tuple[str, Any], ...]
) -> OwnSource:
  del made  # Part of the key: a module can be imported anew.
  return OwnSource(name, split, dict(options))


def describe(sources: Sequence[OwnSource]) -> Description:
  """What splits of one source say of it.

  Args:
    sources: Its splits, at least one.

  Raises:
    ConfigError: They have not the same classes, or kind of labels.
  """
  first, *others = sources
  for other in others:
    for what, differs in (
      ('names of the classes', other.label_names != first.label_names),
      ('kinds of labels', other.has_actions != first.has_actions),
    ):
      if differs:
        raise ConfigError(
          f'data.name={first.name!r}: the splits {first.split!r} and '
          f'{other.split!r} have other {what}'
        )
  return Description(
    first.name,
    {source.split: len(source) for source in sources},
    len(first.label_names),
    first.has_actions,
  )
