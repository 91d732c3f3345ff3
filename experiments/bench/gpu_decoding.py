"""Decodes whole videos on a GPU, through FFmpeg's CUDA path, and on the CPU.

python -m experiments.bench.gpu_decoding --name=h200

compares frames per second of whole generated videos of Kinetics' form (340x256,
300 frames, H.264), one after the other: on one core; on the GPU's decoder with
frames that are copied to the host, as the loader would need them; and with
frames that stay on the GPU. A GPU's decoder is set up anew for every file: of
short small videos that may be most of the time. Pixels of the first two are
compared. A record is one file in
experiments/records/gpu_decoding.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from absl import flags
from av.codec import hwaccel

from experiments import tabulate
from experiments.bench import kinetics_like, layouts
from experiments.runs import record
from mgjax import cli, environment
from mgjax.cli import ConfigError

EXPERIMENT = 'gpu_decoding'


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('name', str, None, "Of the record; by default the device's.")
  flag('hardware', str, 'cuda', "FFmpeg's name of the decoder's device.")
  flag('videos', int, 8, 'Generated videos.', 1)
  flag('turns', int, 5, 'Timed turns of each way.', 1)
  flag('records', str, str(record.RECORDS / EXPERIMENT), 'Folder of results.')


def find_hardware(name: str, *, stays: bool = False) -> hwaccel.HWAccel:
  """FFmpeg's path to a decoder on a device.

  Args:
    name: Of the kind of device.
    stays: Whether frames stay on the device, or are copied to the host.

  Raises:
    ConfigError: This FFmpeg has none of this name, or PyAV is too old.
  """
  known = hwaccel.hwdevices_available()
  if name not in known:
    raise ConfigError(
      f'--hardware={name}: this FFmpeg has {", ".join(known) or "none"}'
    )
  try:
    return hwaccel.HWAccel(
      name, allow_software_fallback=False, is_hw_owned=stays
    )
  except TypeError:  # An option that is not known.
    raise ConfigError(
      f'--hardware={name}: PyAV {av.__version__} cannot keep frames on a '
      'device; install a newer one'
    ) from None


def decode(path: pathlib.Path, hardware: Any = None) -> list[np.ndarray]:
  """The luminance of every frame of a video, uint8 [H, W].

  Args:
    path: Video file.
    hardware: Of `find_hardware`; None: the CPU, on one thread.
  """
  return [frame.to_ndarray(format='gray') for frame in _frames(path, hardware)]


def _frames(path: pathlib.Path, hardware: Any) -> Iterator[av.VideoFrame]:
  with av.open(str(path), hwaccel=hardware) as container:
    stream = container.streams.video[0]
    if hardware is None:
      stream.thread_type, stream.codec_context.thread_count = 'NONE', 1
    yield from container.decode(stream)


def _seconds(paths: list[pathlib.Path], hardware: Any, stays: bool) -> float:
  begin = time.perf_counter()
  for path in paths:
    if stays:
      for _ in _frames(path, hardware):
        pass
    else:
      decode(path, hardware)
  return time.perf_counter() - begin


def table(entry: dict) -> tabulate.Table:
  """One row per way of a record."""
  frames = entry['frames']
  median = {way: statistics.median(t) for way, t in entry['wall_s'].items()}
  return tabulate.Table(
    EXPERIMENT,
    ('decoder', 'frames/s [measured]', 'x one core [measured]'),
    [
      (way, f'{frames / s:,.0f}', f'{median["one core"] / s:.2f}')
      for way, s in median.items()
    ],
  )


def main(args: flags.FlagValues) -> None:
  ways = {
    'one core': (None, False),
    f'{args.hardware}, to the host': (find_hardware(args.hardware), False),
    f'{args.hardware}, stays': (find_hardware(args.hardware, stays=True), True),
  }
  name = args.name or layouts.device_name()
  benchmark = record.Benchmark(args.records, name, __spec__.name)
  with tempfile.TemporaryDirectory() as folder:
    paths = [pathlib.Path(folder) / f'{i}.mp4' for i in range(args.videos)]
    for i, video in enumerate(paths):
      kinetics_like.write_video(video, i, 250)
    try:
      ours = decode(paths[0], ways[f'{args.hardware}, to the host'][0])
    # PyAV raises the latter where no stream suits the device.
    except (av.FFmpegError, RuntimeError) as error:
      raise ConfigError(
        f'--hardware={args.hardware}: no such decoder on this machine ({error})'
      ) from error
    reference = decode(paths[0])
    difference = max(
      int(np.abs(a.astype(int) - b).max())
      for a, b in zip(ours, reference, strict=True)
    )
    wall_s = {way: [] for way in ways}
    for _ in range(args.turns):
      for way, how in ways.items():
        wall_s[way].append(_seconds(paths, *how))
  entry = benchmark.write(
    environment={**environment.describe(), 'av': av.__version__},
    frames=args.videos * kinetics_like.FRAMES,
    largest_difference=difference,
    wall_s=wall_s,
  )
  print(tabulate.markdown(table(entry)))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
