"""How fast a stream is labelled by one core: frames per second, and its rate.

taskset -c 0 python -m experiments.bench.stream_speed

makes videos of ten seconds, and labels every second of each with the network of
`make demo` (its weights do not matter), as predict does with --every_s=1: it
reads, decodes, resizes, cuts windows and scores them. Rates are of CPU seconds,
which other work on the machine disturbs little. The result goes to
experiments/records/stream_speed.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import pathlib
import sys
import tempfile
import time

import av
from absl import flags

from experiments import tabulate
from experiments.runs import history, record
from mgjax import cli, environment

EXPERIMENT = 'stream_speed'
CONFIG = 'configs/moving_digits.py'
_FPS = 30


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  sizes = ['320x240', '640x360', '1280x720', '1920x1080']
  flags.DEFINE_list('sizes', sizes, 'Of the frames.', flag_values=values)
  flag('seconds', int, 10, 'Of each video.', 2)
  flag('name', str, 'result', 'Of the record: NAME.json.')
  flag('records', str, str(record.RECORDS / EXPERIMENT), 'Folder of results.')


def make_video(path: pathlib.Path, size: str, seconds: int) -> None:
  """Encodes FFmpeg's moving test picture as H.264, a key frame a second."""
  picture = f'testsrc2=size={size}:rate={_FPS}:duration={seconds}'
  with av.open(picture, format='lavfi') as source, av.open(path, 'w') as out:
    stream = out.add_stream('libx264', rate=_FPS)
    stream.width, stream.height = map(int, size.split('x'))
    stream.pix_fmt = 'yuv420p'
    stream.options = {'preset': 'veryfast', 'g': str(_FPS)}
    for frame in source.decode(video=0):
      out.mux(stream.encode(frame.reformat(format='yuv420p')))
    out.mux(stream.encode(None))


def make_scorer(config):
  """The network of a config with new weights, for windows of one clip."""
  import jax
  import optax

  from mgjax import models
  from mgjax.hosts import parallel
  from mgjax.predicting.window_scorer import WindowScorer
  from mgjax.setup import data as data_setup
  from mgjax.setup import evaluation, network
  from mgjax.step import compilation, train_state

  config.eval.batch_size = 1
  mesh, model = parallel.make_mesh(1), network.model(config)
  state = train_state.create_state(
    model,
    optax.identity(),
    jax.random.key(0),
    models.example_video(model, config.data.num_frames),
  )
  return WindowScorer(
    program=compilation.compile_program(
      evaluation.lower_eval_step(config, model, mesh, state),
      parallel.platform(mesh),
    ),
    state=state,
    mesh=mesh,
    views=data_setup.views(config),
    batch_size=1,
    num_classes=config.model.num_classes,
    ensemble='sum',
  )


def measure(scorer, path: pathlib.Path, size: str) -> dict:
  """Labels a video once; returns its entry."""
  from mgjax.data.frame_reader import FrameReader, Input, Kind
  from mgjax.predicting.window_thread import WindowThread
  from mgjax.predicting.windows import Settings

  cpu, wall, num_windows = time.process_time(), time.perf_counter(), 0
  reader = FrameReader(Input(size, f'file:{path}', Kind.FILE))
  thread = WindowThread(reader, Settings(scorer.views, None, 1.0, None), False)
  while True:
    try:
      window = thread.next()
    except EOFError:
      break
    if window:
      scorer.score(window)
      num_windows += 1
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  return {
    'size': size,
    'num_frames': reader.num_frames,
    'num_windows': num_windows,
    'cpu_s': cpu,
    'wall_s': wall,
  }


def make() -> list[tabulate.Table]:
  """Rates of the records there are."""
  return [table(record.load_files(EXPERIMENT))]


def table(records: dict[str, dict]) -> tabulate.Table:
  """Rates.

  Args:
    records: By their names.
  """
  rows = []
  for name, found in records.items():
    for entry in found['entries']:
      times = lambda s, entry=entry: f'{entry["num_frames"] / s / _FPS:.1f}'
      rows.append(
        (
          f'{entry["size"]}, {_FPS} frames per second',
          times(entry['wall_s']),
          times(entry['cpu_s']),
          record.processor_text(found['environment']),
          history.code_of([found]),
          f'{name}.json',
        )
      )
  columns = (
    'video',
    'times its rate [measured]',
    'the same, by CPU seconds [measured]',
    'machine',
    'code',
    'record',
  )
  return tabulate.Table(EXPERIMENT, columns, rows)


def main(args: flags.FlagValues) -> None:
  from mgjax.cpu import allocator

  allocator.keep()  # As predict does.
  benchmark = record.Benchmark(args.records, args.name, __spec__.name)
  config = cli.read_config(CONFIG)
  config.unlock()
  scorer = make_scorer(config)
  entries = []
  with tempfile.TemporaryDirectory() as scratch:
    for size in args.sizes:
      path = pathlib.Path(scratch) / f'{size}.mp4'
      make_video(path, size, args.seconds)
      measure(scorer, path, size)  # What the first call sets up.
      entries.append(measure(scorer, path, size))
  entry = benchmark.write(
    config=CONFIG,
    seconds=args.seconds,
    environment=environment.describe(),
    entries=entries,
  )
  print(tabulate.markdown(table({args.name: entry})))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
