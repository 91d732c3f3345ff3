"""The part of the command `predict` that labels streams, window by window."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

import ml_collections
from absl import flags
from etils import epath

from mgjax import files, stop_signal
from mgjax.data.decode import DecodeError
from mgjax.data.frame_reader import FrameReader, Input
from mgjax.errors import ConfigError, RunError
from mgjax.predicting import inputs, output, smoothing, windows
from mgjax.predicting.label_writers import WRITERS, Label, SubRip, Writer
from mgjax.predicting.loading import Network
from mgjax.predicting.window_scorer import WindowScorer
from mgjax.predicting.window_thread import WindowThread
from mgjax.setup import data as data_setup

# Flags that mean something for streams only, and for files only.
_OF_STREAMS = (
  *('output', 'window_s', 'ema_alpha', 'moving_average', 'live'),
  *('input_format', 'input_options'),
)
_OF_FILES = ('sheet', 'heatmap', 'features')


def check_flags(values: flags.FlagValues, videos: Sequence[str]) -> bool:
  """Returns whether flags ask for the labels of streams.

  Raises:
    ConfigError: They contradict each other.
  """
  if values.every_s is None and values.every_frames is None:
    for name in _OF_STREAMS:
      if values[name].value is not None:
        raise ConfigError(
          f'--{name} is for labels along a stream; give --every_s or '
          '--every_frames as well, or leave it out'
        )
    if values.format in WRITERS and values.format != 'text':
      raise ConfigError(
        f'--format={values.format} is for labels along a stream; give '
        '--every_s or --every_frames as well, or use text or json'
      )
    for video in filter(inputs.is_stream, videos):
      raise ConfigError(
        f'{inputs.shown(video)}: a stream is labelled piece by piece; give '
        '--every_s, such as --every_s=1, or --every_frames'
      )
    return False
  for first, second in (
    ('every_s', 'every_frames'),
    ('ema_alpha', 'moving_average'),
  ):
    if values[first].value is not None and values[second].value is not None:
      raise ConfigError(f'give --{first} or --{second}, not both')
  for name in _OF_FILES:
    if values[name].value:
      raise ConfigError(
        f'--{name} explains files as a whole; leave it out, or --every_s and '
        '--every_frames'
      )
  if values.format not in WRITERS:
    raise ConfigError(
      f'--format={values.format}: labels along a stream are written as '
      f'{", ".join(WRITERS)}'
    )
  return True


def window_settings(
  values: flags.FlagValues, config: ml_collections.ConfigDict
) -> windows.Settings:
  """Which windows the flags ask for.

  Raises:
    ConfigError: The settings of the evaluation do not suit windows.
  """
  views = data_setup.views(config)
  if views.sampling == 'segments' and values.window_s is None:
    raise ConfigError(
      "data.sampling='segments' spreads the frames of a clip over the whole "
      'video: give --window_s, the seconds of a window; those of the videos '
      'that the network was trained on'
    )
  if values.window_s is None:
    # As long as a clip: all of them would be the same.
    views = dataclasses.replace(views, num_views=1)
  return windows.Settings(
    views, values.every_frames, values.every_s, values.window_s
  )


def main(
  values: flags.FlagValues,
  config: ml_collections.ConfigDict,
  checkpoint: epath.Path,
  names: Sequence[str],
  videos: Sequence[str],
) -> None:
  """Labels streams.

  Args:
    values: Flags, checked.
    config: Of the run.
    checkpoint: Its folder.
    names: Of the classes.
    videos: Arguments of the command.

  Raises:
    ConfigError: Nothing can be used, or the flags cannot work.
    RunError: Something cannot be used, or has broken off; all else is written.
  """
  settings = window_settings(values, config)
  sources = inputs.inputs_of(videos, values.input_format, values.input_options)
  outputs = _outputs(values, sources)
  num_clips = settings.views.num_views * settings.views.num_crops
  labelling = _Labelling(
    values, settings, Network(config, checkpoint, num_clips), names
  )
  errors, has_labels = {}, False
  with (
    stop_signal.listening() as stop,
    contextlib.closing(_Files(WRITERS[values.format])) as writers,
  ):
    try:
      for source, path in zip(sources, outputs, strict=True):
        try:
          for label in labelling.labels(source, stop):
            has_labels = True
            writers.to(path).write(label)
            stop.defer(lambda: 'the window at hand')
        except (DecodeError, RunError, windows.WindowError) as error:
          errors[source.name] = error
    except stop_signal.Stopped as stopped:
      writers.close()
      sys.exit(stop_signal.exit_code(stopped.args[0]))
  _report(errors, len(sources), has_labels)


def _report(
  errors: dict[str, Exception], num_sources: int, has_labels: bool
) -> None:
  """Raises what the sources ended with that could not be used."""
  if not errors:
    return
  reasons = '; '.join(
    str(e) if isinstance(e, RunError) else f'{name}: {e}'
    for name, e in errors.items()
  )
  if has_labels or any(isinstance(e, RunError) for e in errors.values()):
    raise RunError(
      f'{len(errors)} of {num_sources} sources could not be used to their end: '
      f'{reasons}'
    )
  raise ConfigError(f'none of the sources can be used: {reasons}')


class _Labelling:
  """Labels one source after the other."""

  def __init__(
    self,
    values: flags.FlagValues,
    settings: windows.Settings,
    network: Network,
    names: Sequence[str],
  ):
    self._settings, self._network, self._names = settings, network, names
    self._top, self._live = values.top, values.live
    self._alpha, self._count = values.ema_alpha, values.moving_average

  @functools.cached_property
  def _scorer(self) -> WindowScorer:
    network = self._network
    return WindowScorer(
      # Once there is a window: a source that cannot be used is found before.
      program=network.program,
      state=network.state,
      mesh=network.mesh,
      views=self._settings.views,
      batch_size=network.config.eval.batch_size,
      num_classes=len(self._names),
      ensemble=network.config.eval.ensemble,
    )

  def labels(
    self, source: Input, stop: stop_signal.Listener
  ) -> Iterator[Label]:
    """Yields the labels of a source; says at the end how fast it was.

    Raises:
      DecodeError: It is not there, or not a video.
      RunError: It has broken off.
      Stopped: There was a signal.
    """
    smooth = lambda scores: scores
    if self._alpha is not None:
      smooth = smoothing.exponential_moving_average(self._alpha)
    elif self._count is not None:
      smooth = smoothing.moving_average(self._count)
    reader = FrameReader(source)
    pace = _Pace(reader)
    with contextlib.closing(
      WindowThread(reader, self._settings, self._live)
    ) as thread:
      while True:
        if stop.received is not None:
          raise stop_signal.Stopped(stop.received)
        try:
          window = thread.next()
        except EOFError:
          break
        if window is None:
          continue
        result = {'scores': smooth(self._scorer.score(window))}
        output.add_predictions([result], self._names, self._top)
        pace.count()
        yield Label(
          source.name, window.start_s, window.end_s, result['predictions']
        )
    pace.say(thread.num_left_out)


class _Pace:
  """How fast a source is labelled, beside its own rate."""

  def __init__(self, reader: FrameReader):
    self._reader = reader
    self._windows = self._frames = 0
    self._since = time.monotonic()

  def count(self) -> None:
    """Counts a window."""
    self._windows += 1
    if self._windows == 1:  # Without the time that compilation took.
      self._since, self._frames = time.monotonic(), self._reader.num_frames

  def say(self, num_left_out: int) -> None:
    """Says it on stderr."""
    reader = self._reader
    text = f'{reader.source.name}: {reader.num_frames} frames'
    seconds = time.monotonic() - self._since
    if (timed := reader.num_frames - self._frames) and self._windows > 1:
      rate = timed / max(seconds, 1e-6)
      text += f', {rate:.0f} per second, {rate / reader.fps:.1f} x their rate'
    text += f'; {self._windows} windows'
    if num_left_out:
      text += f'; {num_left_out} more came while the network was busy'
    if reader.num_damaged:
      text += f'; {reader.num_damaged} packets were damaged'
    print(text, file=sys.stderr, flush=True)


def _outputs(
  values: flags.FlagValues, sources: Sequence[Input]
) -> list[pathlib.Path | None]:
  """The file for each source; None: standard output.

  Raises:
    ConfigError: It cannot be written, or is one of the videos.
  """
  name = values.output
  if name and (name.endswith('/') or os.path.isdir(name)):
    files.make_folder(name, f'--output={name}')
    suffix = 'txt' if values.format == 'text' else values.format
    stems = output.file_names([source.name for source in sources])
    return [pathlib.Path(name) / f'{stem}.{suffix}' for stem in stems]
  if issubclass(WRITERS[values.format], SubRip) and len(sources) > 1:
    raise ConfigError(
      f'--format={values.format}: subtitles are of one video, and there are '
      f'{len(sources)}; give --output=FOLDER/, which gets a file for each'
    )
  path = pathlib.Path(name) if name else None
  if path:
    files.check_output(path, f'--output={name}')
    for source in sources:
      given = source.url.removeprefix('file:')
      if path.exists() and os.path.exists(given) and path.samefile(given):
        raise ConfigError(f'--output={name} is a video that is to be read')
  return [path] * len(sources)


class _Files:
  """The files of labels, of which one is open at a time."""

  def __init__(self, writer: type[Writer]):
    self._make = writer
    self._path: pathlib.Path | None = None
    self._writer: Writer | None = None

  def to(self, path: pathlib.Path | None) -> Writer:
    """The writer of a file; None: of standard output."""
    if self._writer is None or path != self._path:
      self.close()
      file = sys.stdout
      if path:
        # Line by line, not whole at the end: a stream may have none.
        file = path.open(
          'w', encoding='utf-8', errors='backslashreplace', newline=''
        )
      self._path, self._writer = path, self._make(file)
    return self._writer

  def close(self) -> None:
    """Completes the file that is open."""
    if self._writer:
      writer, self._writer = self._writer, None
      writer.end()
      if writer.file is not sys.stdout:
        writer.file.close()
