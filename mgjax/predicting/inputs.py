"""Finds out what the arguments of `predict` are: files, folders, streams."""

import pathlib
import re
from collections.abc import Sequence

from mgjax.data import frame_reader, suffixes
from mgjax.data.frame_reader import Kind
from mgjax.errors import ConfigError

STDIN = '-'
_ADDRESS = re.compile(r'[a-zA-Z][a-zA-Z0-9+.-]*://')
# Up to the last @ of the host: FFmpeg takes passwords with one.
_PASSWORD = re.compile(r'(?<=://)([^/@:]*):[^/]*(?=@)')


def is_stream(argument: str) -> bool:
  """Whether an argument can only be read forward: no file, and no folder."""
  path = pathlib.Path(argument)
  return (
    argument == STDIN
    or bool(_ADDRESS.match(argument))
    or path.is_char_device()
    or path.is_fifo()
  )


def shown(argument: str) -> str:
  """An argument as it may be printed, and kept in files of labels."""
  return _PASSWORD.sub(r'\1:***', argument)


def files_of(arguments: Sequence[str]) -> list[pathlib.Path]:
  """Video files, and those in folders and the folders below, in order.

  Args:
    arguments: Paths.

  Raises:
    ConfigError: A folder has no video file.
  """
  found = []
  for argument in arguments:
    path = pathlib.Path(argument)
    if path.is_dir():
      inside = sorted(
        p
        for p in path.rglob('*')
        if suffixes.suffix_of(p.name) in suffixes.VIDEO_SUFFIXES
      )
      if not inside:
        raise ConfigError(
          f'{path}: there is no video file in the folder, such as '
          f'{", ".join(sorted(suffixes.VIDEO_SUFFIXES)[:3])}'
        )
      found += inside
    else:
      found.append(path)
  return found


def inputs_of(
  arguments: Sequence[str], form: str | None, options: str | None
) -> list[frame_reader.Input]:
  """What a `FrameReader` reads of each argument; of a folder, each file.

  Args:
    arguments: Paths, addresses, '-' or names of devices.
    form: FFmpeg's name of their format; None: FFmpeg finds out.
    options: FFmpeg's options, 'name=value,name=value'; None: there are none.

  Raises:
    ConfigError: The options are not of that form, a folder has no video, or
      standard input is given twice.
  """
  if arguments.count(STDIN) > 1:
    raise ConfigError("'-' is given twice; there is one standard input")
  given = dict(_option(text) for text in (options or '').split(',') if text)

  def make(name: str, url: str, kind: Kind, default: str | None = None):
    return frame_reader.Input(name, url, kind, form or default, given)

  found = []
  for argument in arguments:
    path = pathlib.Path(argument)
    if argument == STDIN:
      found.append(make(argument, 'fd:', Kind.PIPE))
    elif _ADDRESS.match(argument):
      found.append(make(shown(argument), argument, Kind.ADDRESS))
    elif path.is_char_device():
      found.append(make(argument, argument, Kind.DEVICE, 'v4l2'))
    elif form and not path.exists():
      # Such as '0' of avfoundation, 'video=NAME' of dshow.
      found.append(make(argument, argument, Kind.DEVICE))
    else:
      # 'file:', as a name may have a colon.
      found += [
        make(str(p), f'file:{p}', Kind.PIPE if p.is_fifo() else Kind.FILE)
        for p in files_of([argument])
      ]
  return found


def _option(text: str) -> tuple[str, str]:
  name, equals, value = text.partition('=')
  if not (name and equals):
    raise ConfigError(
      f'--input_options: {text!r} has no value; the form is '
      'framerate=30,video_size=640x480'
    )
  return name, value
