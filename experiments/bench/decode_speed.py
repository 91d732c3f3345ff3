r"""How many clips a core decodes per second, at every grid of a schedule.

taskset -c 1 python -m experiments.bench.decode_speed
taskset -c 1 python -m experiments.bench.decode_speed --key_frames=60 --name=60
taskset -c 1 python -m experiments.bench.decode_speed \
  --torch_python=/usr/bin/python3 --name=torchvision

compares ways to get the same training clips of generated videos of Kinetics'
form (340x256, 10 s, 300 frames, H.264 as FFmpeg writes it: a key frame every
250 frames; or more often, as for streaming), clip by clip in turn:

  whole span   what PySlowFast's PyAV path does: decode all frames of the clip's
               span, convert all to RGB, stack them, select, turn into floats,
               normalise, resize whole frames, crop
  torchvision  what PySlowFast does by default: the same by torchvision's video
               reader, which resizes while it converts; in a process and an
               interpreter of its own (torchvision_worker.py)
  mgjax        mgjax.data.stream

each from these files, and again from what mgjax.data.prepare makes of them:
short side 256, key frames every 12, and a copy of short side 192. All readers
get the copy that mgjax chooses for the clip.

Frames and crops are the same; uint8 pixels are compared. The result goes to
experiments/records/decode_speed/, or decode_speed_NAME/.

No wheel of torchvision on PyPI has that reader (nine were looked at, 0.8.2 to
0.24.1 for Linux; since 0.24 it is not built by default). Debian's
python3-torchvision has it: that interpreter is --torch_python, without which
torchvision is left out.

Source: PySlowFast 287ec00, slowfast/datasets/decoder.py, pyav_decode and
  temporal_sampling; kinetics.py, __getitem__; transform.py.
Differs: That converts and resizes in PyTorch; here NumPy and OpenCV do it.
  It moves the start to a whole time stamp; here the frames are mgjax's. At that
  commit its PyAV path fails: it subtracts 1 from a list of numbers of frames.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import av
import cv2
import ml_collections
import numpy as np
from absl import flags

from experiments import tabulate
from experiments.bench import kinetics_like, worker
from experiments.runs import history, record
from mgjax import cli, environment, files
from mgjax.cli import ConfigError
from mgjax.data import sampling, sources
from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.setup import data as data_setup
from mgjax.setup import grids

CONFIG = 'configs/kinetics400.py:grid=both'

_FFMPEG_INTERVAL = 250  # Frames between key frames, by default.
_NUM_TRAIN = 240_436  # Kinetics-400's, as the multigrid paper has it.
_READERS = ('whole span', 'torchvision', 'mgjax')
# Of each way: who reads, and whether what mgjax.data.prepare has made.
_WAYS = {
  'whole span': ('whole span', False),
  'torchvision': ('torchvision', False),
  'mgjax': ('mgjax', False),
  'whole span, prepared': ('whole span', True),
  'torchvision, prepared': ('torchvision', True),
  'prepared': ('mgjax', True),
}
_REFERENCE = 'whole span'  # Its pixels are what the others' are compared with.


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
    float(kinetics_like.FPS),
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


def find_reader(python: str) -> None:
  """Looks whether an interpreter has torchvision's video reader.

  Raises:
    ConfigError: It has not, or there is none.
  """
  code = (
    'import torch; from torchvision import io; io._probe_video_from_memory; '
    'torch.ops.video_reader.read_video_from_memory'
  )
  try:
    subprocess.run(
      [python, '-c', code], check=True, capture_output=True, text=True
    )
  except (OSError, subprocess.CalledProcessError) as error:
    said = (getattr(error, 'stderr', '') or str(error)).strip().splitlines()
    raise ConfigError(
      f'--torch_python={python}: no video reader of torchvision there '
      f"({said[-1]}); PyPI's wheels have none, Debian's python3-torchvision has"
    ) from None


class _Ways:
  """The ways to get a clip.

  Args:
    config: Of the clips.
    folder: Of the data sets.
    scratch: An empty folder.
    ask: Of a torchvision_worker; None: there is none.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    scratch: pathlib.Path,
    ask: Callable[[dict], dict] | None,
  ):
    self._config, self._scratch, self._ask = config, scratch, ask
    self.names = [
      way
      for way, (reader, _) in _WAYS.items()
      if ask or reader != 'torchvision'
    ]
    self.schedule = grids.schedule(config, _NUM_TRAIN)
    self._streams = {}  # By whether what is prepared is read.
    for prepared, name in (
      (False, kinetics_like.NAME),
      (True, f'{kinetics_like.NAME}/short256'),
    ):
      config.data.name = name
      config.data.copies = prepared
      source = data_setup.source(config, 'train')
      self._streams[prepared] = data_setup.train_stream(
        config.copy_and_resolve_references(),
        self.schedule,
        _Repeated(source, _NUM_TRAIN),
      )

  def timed_clip(
    self, way: str, number: int, ranges: GridRanges, chosen: dict
  ) -> tuple[np.ndarray, float, float]:
    """Makes a clip.

    Args:
      way: One of `names`.
      number: Of the clip in the run.
      ranges: The grid.
      chosen: The clip's frames and crop, by `expected_clip`.

    Returns:
      Its pixels [T, H, W, 3] (float32 and normalised, or uint8), and the
      seconds of CPU and of wall clock.
    """
    reader, prepared = _WAYS[way]
    path = self._file(prepared, number, ranges.grid, chosen)
    if reader == 'torchvision':
      return self._torchvision_clip(path, ranges, chosen)
    cpu, wall = time.process_time(), time.perf_counter()
    if reader == 'whole span':
      pixels = whole_span_clip(path, config=self._config, **chosen)
    else:
      pixels = self._streams[prepared].clip(
        number,
        ranges.grid,
        stride_frames=ranges.stride_frames,
        jitter_px=ranges.jitter_px,
      )['video']
    return pixels, time.process_time() - cpu, time.perf_counter() - wall

  def _file(
    self, prepared: bool, number: int, grid: Grid, chosen: dict
  ) -> pathlib.Path:
    """The file that the stream would read, for who reads files."""
    stream = self._streams[prepared]
    short_px = max(min(chosen['resized']), grid.H, grid.W)
    video = stream.source.read(
      stream.order.example(number), short_px=short_px
    ).video
    path = self._scratch / f'{hashlib.sha256(video).hexdigest()[:16]}.mp4'
    if not path.exists():
      path.write_bytes(video)
    return path

  def _torchvision_clip(
    self, path: pathlib.Path, ranges: GridRanges, chosen: dict
  ) -> tuple[np.ndarray, float, float]:
    frames = chosen['frames']
    pixels = self._scratch / 'pixels.npy'
    taken = self._ask(
      {
        'clip': {
          'path': str(path),
          'first': int(frames[0]),
          'span': chosen['span'],
          'offsets': (frames - frames[0]).tolist(),
          'min_px': ranges.jitter_px[0],
          'resized': chosen['resized'],
          'crop': chosen['crop'],
          'pixels': str(pixels),
        }
      }
    )
    return np.load(pixels), taken['cpu_s'], taken['wall_s']


def measure(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  num_clips: int,
  ask: Callable[[dict], dict] | None = None,
) -> list[dict]:
  """Times the ways, clip by clip in turn.

  Args:
    config: Of the clips.
    folder: Of the data sets.
    num_clips: Clips of each grid.
    ask: Of a torchvision_worker; None: torchvision is left out.

  Returns:
    For each grid its shape, and by way the mean milliseconds per clip (of
    CPU and wall clock) and the largest and mean difference of uint8 pixels
    from those of the whole span.
  """
  mean, std = np.array(config.data.mean), np.array(config.data.std)
  rows = []
  with tempfile.TemporaryDirectory() as scratch:
    ways = _Ways(config, folder, pathlib.Path(scratch), ask)
    for ranges in grids_of(ways.schedule):
      cpu_ms = {way: [] for way in ways.names}
      wall_ms = {way: [] for way in ways.names}
      errors = {way: [] for way in ways.names if way != _REFERENCE}
      # The first clip of all warms up caches and allocators.
      for number in range(-1, num_clips):
        clip = max(number, 0)
        chosen = expected_clip(config, ranges, clip)
        pixels = {}
        # No way is always the first.
        for k in range(len(ways.names)):
          way = ways.names[(clip + k) % len(ways.names)]
          pixels[way], cpu, wall = ways.timed_clip(way, clip, ranges, chosen)
          if number >= 0:
            cpu_ms[way].append(1e3 * cpu)
            wall_ms[way].append(1e3 * wall)
        to_bytes = lambda clip: (
          clip if clip.dtype == np.uint8 else (clip * std + mean) * 255
        )
        reference = to_bytes(pixels[_REFERENCE])
        for way in errors:
          errors[way].append(np.abs(to_bytes(pixels[way]) - reference))
      rows.append(
        {
          **ranges.grid._asdict(),
          'stride_frames': ranges.stride_frames,
          'jitter_px': ranges.jitter_px,
          'cpu_ms': {way: statistics.mean(cpu_ms[way]) for way in cpu_ms},
          'wall_ms': {way: statistics.mean(wall_ms[way]) for way in wall_ms},
          'max_error': {way: float(np.max(errors[way])) for way in errors},
          'mean_error': {way: float(np.mean(errors[way])) for way in errors},
        }
      )
      print(tabulate.line(_per_second(rows[-1], 'cpu_ms')), flush=True)
  return rows


def _per_second(row: dict, unit: str) -> tuple[str, ...]:
  """The grid, and the clips per second of each way."""
  grid = f'{row["T"]} x {row["H"]}²'
  return (grid, *(f'{1e3 / ms:.1f}' for ms in row[unit].values()))


def format_report(result: dict) -> str:
  """The Markdown page of a result."""
  machine, rows = result['machine'], result['grids']
  ways = tuple(rows[0]['cpu_ms'])
  per_second = {
    unit: tabulate.Table(
      'decode_speed', ('grid', *ways), [_per_second(row, unit) for row in rows]
    )
    for unit in ('cpu_ms', 'wall_ms')
  }
  differences = tabulate.Table(
    'differences',
    ('grid', *(way for way in ways if way != _REFERENCE)),
    [
      (
        f'{row["T"]} x {row["H"]}²',
        *(
          f'{error:.2f} ({row["max_error"][way]:.1f})'
          for way, error in row['mean_error'].items()
        ),
      )
      for row in rows
    ],
  )
  versions = [
    f'{label} {machine[name]}'
    for name, label in (
      *(('python', 'Python'), ('av', 'PyAV'), ('opencv', 'OpenCV')),
      *(('torch', 'torch'), ('torchvision', 'torchvision')),
    )
    if name in machine
  ]
  lines = [
    '# Clips per second and core',
    '',
    f'`{result["command"]}`, commit {result["commit"][:12]}'
    + (' with changes' if result['changed_files'] else '')
    + f': {result["num_clips"]} clips of {result["num_videos"]} generated '
    f'videos (a key frame every {result["key_frames"]} frames) at every grid '
    'of the Kinetics schedule. *Prepared*, by itself, is mgjax from what '
    '`mgjax.data.prepare` has made of them.',
    '',
    f'{machine["cpu"]}, {", ".join(versions)}; load average '
    f'{record.load_average_of(result)[0]:.1f} of {machine["num_cpus"]} CPUs '
    '(wall-clock times suffer from it).',
    '',
    'Clips per second of CPU time:',
    '',
    tabulate.markdown(per_second['cpu_ms']),
    '',
    'Clips per second of wall clock:',
    '',
    tabulate.markdown(per_second['wall_ms']),
    '',
    'Mean (largest) difference of pixels from the whole span, of 255:',
    '',
    tabulate.markdown(differences),
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
  """Ranges over the grids, for each record and what the ways read."""
  rows = []
  for name, result in _load().items():
    machine = result['machine']
    for prepared in (False, True):
      # By reader: milliseconds at every grid, if it was timed.
      found = {
        reader: [row['cpu_ms'][way] for row in result['grids']]
        for way, (reader, is_prepared) in _WAYS.items()
        if is_prepared == prepared and way in result['grids'][0]['cpu_ms']
      }
      ours = found['mgjax']
      rows.append(
        (
          f'every {result["key_frames"]} frames',
          'prepared' if prepared else 'as they were',
          *(
            _range([1e3 / ms for ms in found.get(reader, ())])
            for reader in _READERS
          ),
          *(
            _range(
              [a / b for a, b in zip(found.get(reader, []), ours, strict=False)]
            )
            for reader in _READERS[:-1]
          ),
          record.processor_text(machine),
          history.code_of([result]),
          # From docs/speed.md, where the table stands.
          f'[{name}](../experiments/records/{name}/README.md)',
        )
      )
  columns = (
    'key frames',
    'files',
    *(f'{reader}, clips/s' for reader in _READERS),
    *(f'mgjax: times {reader}' for reader in _READERS[:-1]),
    'machine',
    'code',
    'record [measured]',
  )
  return [tabulate.Table('decode_speed', columns, rows)]


def _range(values: list[float]) -> str:
  if not values:
    return ''
  return f'{min(values):.1f} to {max(values):.1f}'


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  text = 'Frames from one key frame to the next.'
  flag('key_frames', int, _FFMPEG_INTERVAL, text, 1)
  flag('num_videos', int, 6, 'Videos that are generated.', 1)
  flag('num_clips', int, 24, 'Clips per grid.', 1)
  text = "The Python that has torchvision's video reader; '': leave that out."
  flag('torch_python', str, '', text)
  text = "Of the record: the folder decode_speed_NAME; '': decode_speed."
  flag('name', str, '', text)
  flag('records', str, str(record.RECORDS), 'Folder of records.')


def main(args: flags.FlagValues) -> None:
  """Measures, and writes the record."""
  if args.torch_python:
    find_reader(args.torch_python)
  name = f'decode_speed_{args.name}' if args.name else 'decode_speed'
  out = pathlib.Path(args.records) / name
  benchmark = record.Benchmark(str(out), 'result', __spec__.name)
  cache = pathlib.Path('data') / f'decode_speed_{args.key_frames}'
  kinetics_like.prepare_data(cache, args.num_videos, args.key_frames)
  config = cli.read_config(CONFIG).copy_and_resolve_references()
  config.data.dir = str(cache)
  with contextlib.ExitStack() as stack:
    ask, versions = None, {}
    if args.torch_python:
      ask = stack.enter_context(
        worker.started(
          args.torch_python, 'experiments.bench.torchvision_worker', {}
        )
      )
      pixels = {k: list(config.data[k]) for k in ('mean', 'std')}
      versions = ask({'load': pixels})['versions']
    rows = measure(config, cache, args.num_clips, ask)
  result = benchmark.write(
    config=CONFIG,
    num_videos=args.num_videos,
    key_frames=args.key_frames,
    num_clips=args.num_clips,
    machine={
      'cpu': environment.cpu_name(),
      'num_cpus': environment.num_cpus(),
      'python': platform.python_version(),
      'av': av.__version__,
      'opencv': cv2.__version__,
      **versions,
    },
    grids=rows,
  )
  (out / 'README.md').write_text(format_report(result), encoding='utf-8')


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
