r"""How many clips a core decodes per second, at every grid of a schedule.

taskset -c 1 python -m experiments.bench.decode_speed
taskset -c 1 python -m experiments.bench.decode_speed --key_frames=60

compares three ways to get the same training clips of generated videos of
Kinetics' form (340x256, 10 s, 300 frames, H.264 as FFmpeg writes it: a key
frame every 250 frames; or more often, as for streaming), clip by clip in turn:

  whole span  what PySlowFast's PyAV path does: decode all frames of the clip's
              span, convert all to RGB, stack them, select, turn into floats,
              normalise, resize whole frames, crop
  mgjax       mgjax.data.stream from the same files
  prepared    mgjax.data.stream from what mgjax.data.prepare makes of them:
              short side 256, key frames every 12, and a copy of short side 192

Frames and crops are the same; uint8 pixels are compared. The result goes to
experiments/records/decode_speed/ (decode_speed_60/).

Source: PySlowFast 287ec00, slowfast/datasets/decoder.py, pyav_decode and
  temporal_sampling; kinetics.py, __getitem__; transform.py.
Differs: That converts and resizes in PyTorch; here NumPy and OpenCV do it.
  It moves the start to a whole time stamp; here the frames are mgjax's.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import av
import cv2
import ml_collections
import numpy as np
from absl import flags

from experiments import tabulate
from experiments.bench import kinetics_like
from experiments.runs import record
from mgjax import cli, environment, files
from mgjax.data import sampling, sources
from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.setup import data as data_setup
from mgjax.setup import grids

CONFIG = 'configs/kinetics400.py:grid=both'

_FFMPEG_INTERVAL = 250  # Frames between key frames, by default.
_NUM_TRAIN = 240_436  # Kinetics-400's, as the multigrid paper has it.
_METHODS = ('whole span', 'mgjax', 'prepared')


def whole_span_clip(
  path: pathlib.Path,
  frames: np.ndarray,
  span: int,
  resized: tuple[int, int],
  crop: tuple[int, int, int, int],
  config: ml_collections.ConfigDict,
) -> np.ndarray:
  """A clip as PySlowFast's PyAV path makes it.

  Args:
    path: Video file.
    frames: int [T], the chosen frames.
    span: Source frames that the clip covers.
    resized: Height and width to which frames are resized.
    crop: First row and column, height and width of the crop.
    config: Has mean and standard deviation of the pixels.

  Returns:
    float32 [T, H, W, 3], normalised.
  """
  with av.open(str(path)) as container:
    video = container.streams.video[0]
    ticks = video.duration / video.frames
    first, last = int(frames[0] * ticks), int((frames[0] + span) * ticks)
    container.seek(
      max(first - 1024, 0), any_frame=False, backward=True, stream=video
    )
    kept = {}
    for frame in container.decode(video=0):
      if frame.pts < first:
        continue
      kept[frame.pts] = frame
      if frame.pts > last:
        break
    # One thread: PyAV's default starts threads for every frame.
    pictures = [
      kept[pts].to_rgb(threads=1).to_ndarray() for pts in sorted(kept)
    ]
  clip = np.stack(pictures)[frames - frames[0]]
  clip = clip.astype(np.float32) / 255
  clip = clip - np.array(config.data.mean, np.float32)
  clip = clip / np.array(config.data.std, np.float32)
  y, x, height, width = crop
  clip = np.stack([cv2.resize(f, resized[::-1]) for f in clip])
  return np.ascontiguousarray(clip[:, y : y + height, x : x + width])


@dataclasses.dataclass(frozen=True)
class GridRanges:
  """A grid with the ranges from which its clips draw."""

  grid: Grid
  stride_frames: tuple[int, int]
  jitter_px: tuple[int, int]


def grids_of(schedule: GridSchedule) -> list[GridRanges]:
  """Shapes of the schedule, each as its first phase uses it."""
  found = {}
  for phase in schedule.phases:
    for grid, jitter in zip(phase.cycle, phase.jitter_px, strict=True):
      found.setdefault(grid[:3], GridRanges(grid, phase.stride_frames, jitter))
  return list(found.values())


def expected_clip(
  config: ml_collections.ConfigDict, ranges: GridRanges, number: int
) -> dict:
  """What mgjax.data.stream chooses for a clip of the generated videos.

  Written out, so that the comparison does not rest on the code it is about.
  """
  generator = np.random.Generator(np.random.Philox(key=[config.seed, number]))
  grid = ranges.grid
  uniforms = generator.random(8 + grid.T)
  frames = sampling.train_frames(
    kinetics_like.FRAMES,
    kinetics_like.FPS,
    num_frames=grid.T,
    stride_frames=ranges.stride_frames,
    sampling='dense',
    target_fps=config.data.target_fps,
    uniforms=uniforms[6:],
  )
  short = sampling.short_side(
    ranges.jitter_px, inverse=False, uniform=uniforms[0]
  )
  height, width = sampling.resized_hw(
    kinetics_like.HEIGHT, kinetics_like.WIDTH, short_px=short
  )
  y = sampling.random_offset(height, grid.H, uniforms[1])
  x = sampling.random_offset(width, grid.W, uniforms[2])
  low, high = ranges.stride_frames
  stride = low + int(uniforms[6] * (high - low + 1))
  return {
    'frames': frames,
    'span': stride * grid.T,
    'resized': (height, width),
    'crop': (y, x, grid.H, grid.W),
  }


class _Repeated(sources.Source):
  """A few videos as often as makes a data set of Kinetics' size.

  The stream's permutation takes much longer where there are only six numbers
  than where there are many.
  """

  def __init__(self, source: sources.Source, length: int):
    vars(self).update(vars(source))
    self._source, self._length = source, length

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> sources.Example:
    return self._source[index % len(self._source)]

  def read(self, index: int, *, short_px: int) -> sources.Example:
    return self._source.read(index % len(self._source), short_px=short_px)


class _Ways:
  """The three ways to get a clip."""

  def __init__(self, config: ml_collections.ConfigDict, folder: pathlib.Path):
    self._config, self._folder = config, folder
    self.schedule = grids.schedule(config, _NUM_TRAIN)
    self._streams = {}
    for way, name in (
      ('mgjax', kinetics_like.NAME),
      ('prepared', f'{kinetics_like.NAME}/short256'),
    ):
      config.data.name = name
      config.data.copies = way == 'prepared'
      source = data_setup.source(config, 'train')
      self._streams[way] = data_setup.train_stream(
        config.copy_and_resolve_references(),
        self.schedule,
        _Repeated(source, _NUM_TRAIN),
      )

  def timed_clip(
    self, way: str, number: int, ranges: GridRanges, chosen: dict
  ) -> tuple[np.ndarray, float, float]:
    """Makes a clip.

    Args:
      way: One of _METHODS.
      number: Of the clip in the run.
      ranges: The grid.
      chosen: The clip's frames and crop, by `expected_clip`.

    Returns:
      Its pixels [T, H, W, 3] (float32 and normalised, or uint8), and the
      seconds of CPU and of wall clock.
    """
    stream = self._streams.get(way)
    if stream is None:
      stream = self._streams['mgjax']
      name = stream.source[stream.order.example(number)].id
      path = self._folder / 'videos' / f'{name}.mp4'
    cpu, wall = time.process_time(), time.perf_counter()
    if way == 'whole span':
      pixels = whole_span_clip(path, config=self._config, **chosen)
    else:
      pixels = stream.clip(
        number,
        ranges.grid,
        stride_frames=ranges.stride_frames,
        jitter_px=ranges.jitter_px,
      )['video']
    return pixels, time.process_time() - cpu, time.perf_counter() - wall


def measure(
  config: ml_collections.ConfigDict, folder: pathlib.Path, num_clips: int
) -> list[dict]:
  """Times the three ways, clip by clip in turn.

  Returns:
    For each grid its shape, and by method the mean milliseconds per clip (of
    CPU and wall clock) and the largest and mean difference of uint8 pixels
    from the first method's.
  """
  ways = _Ways(config, folder)
  mean, std = np.array(config.data.mean), np.array(config.data.std)
  rows = []
  for ranges in grids_of(ways.schedule):
    cpu_ms = {method: [] for method in _METHODS}
    wall_ms = {method: [] for method in _METHODS}
    errors = {method: [] for method in _METHODS[1:]}
    # The first clip of all warms up caches and allocators.
    for number in range(-1, num_clips):
      clip = max(number, 0)
      chosen = expected_clip(config, ranges, clip)
      pixels = {}
      # No method is always the first.
      for k in range(len(_METHODS)):
        method = _METHODS[(clip + k) % len(_METHODS)]
        pixels[method], cpu, wall = ways.timed_clip(
          method, clip, ranges, chosen
        )
        if number >= 0:
          cpu_ms[method].append(1e3 * cpu)
          wall_ms[method].append(1e3 * wall)
      reference = (pixels['whole span'] * std + mean) * 255
      for method in errors:
        errors[method].append(np.abs(pixels[method] - reference))
    rows.append(
      {
        **ranges.grid._asdict(),
        'stride_frames': ranges.stride_frames,
        'jitter_px': ranges.jitter_px,
        'cpu_ms': {m: statistics.mean(cpu_ms[m]) for m in _METHODS},
        'wall_ms': {m: statistics.mean(wall_ms[m]) for m in _METHODS},
        'max_error': {m: float(np.max(errors[m])) for m in errors},
        'mean_error': {m: float(np.mean(errors[m])) for m in errors},
      }
    )
    print(tabulate.line(row_cells(rows[-1])), flush=True)
  return rows


def row_cells(row: dict) -> list[str]:
  """A row of the table."""
  cpu = row['cpu_ms']
  reference = cpu['whole span']
  cells = [f'{row["T"]} x {row["H"]}²']
  cells += [f'{1e3 / cpu[m]:.1f}' for m in _METHODS]
  cells += [f'{reference / cpu[m]:.1f}' for m in _METHODS[1:]]
  cells += [
    f'{row["wall_ms"]["whole span"] / row["wall_ms"][m]:.1f}'
    for m in _METHODS[1:]
  ]
  cells += [f'{row["max_error"]["mgjax"]:.1f}']
  cells += [f'{row["mean_error"][m]:.2f}' for m in _METHODS[1:]]
  return cells


def format_report(result: dict) -> str:
  """The Markdown page of a result."""
  machine = result['machine']
  table = tabulate.Table(
    'decode_speed',
    (
      *('grid', *_METHODS, 'mgjax x', 'prepared x', 'mgjax x, wall'),
      *('prepared x, wall', 'largest', 'mean', 'mean, prepared'),
    ),
    [tuple(row_cells(row)) for row in result['grids']],
  )
  lines = [
    '# Clips per second and core',
    '',
    f'`{result["command"]}`, commit {result["commit"][:12]}'
    + (' with changes' if result['changed_files'] else '')
    + f': {result["num_clips"]} clips of {result["num_videos"]} generated '
    f'videos (a key frame every {result["key_frames"]} frames) at every grid '
    'of the Kinetics schedule. Clips per second of CPU '
    'time; times as many as by decoding the whole span (CPU, wall clock); '
    'largest and mean difference of pixels, of 255.',
    '',
    f'{machine["cpu"]}, Python {machine["python"]}, PyAV {machine["av"]}, '
    f'OpenCV {machine["opencv"]}; load average {machine["load"][0]:.1f} of '
    f'{machine["num_cpus"]} CPUs (wall-clock times suffer from it).',
    '',
    tabulate.markdown(table),
  ]
  return '\n'.join(lines) + '\n'


def _load() -> dict[str, dict]:
  """The records there are, by the names of their folders."""
  return {
    path.parent.name: files.read_json(path)
    for path in sorted(record.RECORDS.glob('decode_speed*/result.json'))
  }


def problems() -> list[str]:
  """Says which records are of other grids than today's; [] if none is."""
  found = []
  for name, result in _load().items():
    schedule = grids.schedule(cli.read_config(result['config']), _NUM_TRAIN)
    # As JSON has them.
    today = [
      [*ranges.grid, list(ranges.stride_frames), list(ranges.jitter_px)]
      for ranges in grids_of(schedule)
    ]
    fields = ('T', 'H', 'W', 'batch', 'stride_frames', 'jitter_px')
    if [[row[field] for field in fields] for row in result['grids']] != today:
      found.append(
        f'{name}/result.json: its grids are not those of {result["config"]}'
      )
  return found


def make() -> list[tabulate.Table]:
  """Ranges over the grids, one row for each record."""
  rows = []
  for name, result in _load().items():
    cpu = [row['cpu_ms'] for row in result['grids']]
    clips_per_s = {m: [1e3 / ms[m] for ms in cpu] for m in _METHODS}
    times = {m: [ms['whole span'] / ms[m] for ms in cpu] for m in _METHODS[1:]}
    rows.append(
      (
        f'every {result["key_frames"]} frames',
        *(_range(clips_per_s[method]) for method in _METHODS),
        *(_range(times[method]) for method in _METHODS[1:]),
        # From docs/speed.md, where the table stands.
        f'[{name}](../experiments/records/{name}/README.md)',
      )
    )
  columns = (
    'key frames',
    'whole span, clips/s',
    'mgjax',
    'mgjax, prepared',
    'mgjax, times as many',
    'prepared, times as many',
    'record [measured]',
  )
  return [tabulate.Table('decode_speed', columns, rows)]


def _range(values: list[float]) -> str:
  return f'{min(values):.1f} to {max(values):.1f}'


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  text = 'Frames from one key frame to the next.'
  flag('key_frames', int, _FFMPEG_INTERVAL, text, 1)
  flag('num_videos', int, 6, 'Videos that are generated.', 1)
  flag('num_clips', int, 24, 'Clips per grid.', 1)


def main(args: flags.FlagValues) -> None:
  """Measures, and writes the record."""
  name = 'decode_speed'
  if args.key_frames != _FFMPEG_INTERVAL:
    name += f'_{args.key_frames}'
  cache = pathlib.Path('data') / name
  out = record.RECORDS / name
  kinetics_like.prepare_data(cache, args.num_videos, args.key_frames)
  config = cli.read_config(CONFIG).copy_and_resolve_references()
  config.data.dir = str(cache)
  version, load = record.code_version(), os.getloadavg()
  rows = measure(config, cache, args.num_clips)
  result = {
    'command': record.command_line(__spec__.name),
    'config': CONFIG,
    **version,
    'num_videos': args.num_videos,
    'key_frames': args.key_frames,
    'num_clips': args.num_clips,
    'machine': {
      'cpu': environment.cpu_name(),
      'num_cpus': environment.num_cpus(),
      'load': load,
      'python': platform.python_version(),
      'av': av.__version__,
      'opencv': cv2.__version__,
    },
    'grids': rows,
  }
  out.mkdir(parents=True, exist_ok=True)
  (out / 'result.json').write_text(json.dumps(result, indent=1) + '\n')
  (out / 'README.md').write_text(format_report(result), encoding='utf-8')


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
