"""Times ways to compute 3-D convolutions on a device: layouts, folded or not.

python -m experiments.bench.layouts --name=h200
python -m experiments.bench.layouts --name=cpu-small --small

compiles the training step of SlowFast-R50 at the base grid and at the coarsest
one of the Kinetics schedule in each way, and lets the ways take turns. The ways
are one convolution of XLA with the layout that the compiler chooses, the same
with NHWC forced upon XLA:GPU, and the CPU's formulation by 2-D convolutions and
matrix products. A record is one file in experiments/records/layouts.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import dataclasses
import functools
import statistics
import sys
import time
from typing import Any, NamedTuple
from unittest import mock

from absl import flags

from experiments import tabulate
from experiments.bench import step_time
from experiments.runs import record, settings
from mgjax import cli
from mgjax.grids.schedule import Grid

EXPERIMENT = 'layouts'
_CONFIG = 'configs/kinetics400.py:grid=both'


class Way(NamedTuple):
  """A way to compute convolutions.

  Attributes:
    formulation: Of models.conv.conv3d: 'native', one convolution of XLA; or
      'folded', 2-D convolutions and products, as on CPUs; or 'two axes', 2-D
      convolutions alone (`by_two_axes`).
    options: Of the compiler.
    platforms: Where it can be asked for; (): everywhere.
    num_lanes: Of models.slowfast.SlowFast.
  """

  formulation: str
  options: dict[str, Any] | None = None
  platforms: tuple[str, ...] = ()
  num_lanes: int = 1


WAYS = {
  'native': Way('native'),
  'native, NHWC': Way('native', {'xla_gpu_force_conv_nhwc': True}, ('gpu',)),
  'folded': Way('folded'),
  # Frames and clips are neighbours there, so that to fold them moves nothing.
  'folded, NHWC': Way('folded', {'xla_gpu_force_conv_nhwc': True}, ('gpu',)),
  'two axes': Way('two axes', None, ('gpu', 'cpu')),
  'frames in channels': Way('native', None, ('tpu',), num_lanes=128),
}


def by_two_axes(
  x: Any, kernel: Any, *, strides: tuple[int, int, int] = (1, 1, 1)
) -> Any:
  """models.conv.conv3d by 2-D convolutions that move no array.

  Channels come last, so that frames and clips, or rows and columns, become one
  axis by renaming. A kernel over all three axes is a sum over its frames.

  Args:
    x: Clips [B, T, H, W, C].
    kernel: Weights [kt, kh, kw, C, D].
    strides: Of T, H and W.

  Returns:
    [B, t, h, w, D].
  """
  import jax.numpy as jnp
  from jax import lax

  kt, kh, kw, c, d = kernel.shape
  st, sh, sw = strides

  def convolve(x: Any, kernel: Any, strides: tuple[int, int]) -> Any:
    return lax.conv_general_dilated(
      x,
      kernel,
      strides,
      [(k // 2, k // 2) for k in kernel.shape[:2]],
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  if (kh, kw) == (1, 1):
    x = x[:, :, ::sh, ::sw]
    b, t, h, w, _ = x.shape
    x = x.reshape(b, t, h * w, c)
    y = convolve(x, kernel.reshape(kt, 1, c, d), (st, 1))
    return y.reshape(b, -1, h, w, d)
  b, t = x.shape[:2]
  frames = -(-t // st)
  x = jnp.pad(x, [(0, 0), (kt // 2, kt // 2), (0, 0), (0, 0), (0, 0)])
  total = 0
  for tap in range(kt):
    seen = x[:, tap : tap + (frames - 1) * st + 1 : st]
    y = convolve(seen.reshape(-1, *x.shape[2:]), kernel[tap], (sh, sw))
    total += y.reshape(b, frames, *y.shape[1:])
  return total


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('name', str, None, "Of the record; by default the device's.")
  flag('clips', int, 8, 'Of the base grid, on each device.', 1)
  flag('turns', int, 10, 'Timed turns of each way.', 1)
  flag('small', bool, False, 'A tiny network on tiny clips, to try it.')
  flag('records', str, str(record.RECORDS / EXPERIMENT), 'Folder of results.')


def config_of(args: flags.FlagValues, num_devices: int) -> Any:
  clips = args.clips * num_devices
  overrides = [
    '--config.model.dtype=bfloat16',
    f'--config.data.batch_size={clips}',
    f'--config.norm.group_clips={args.clips}',
  ]
  if args.small:
    overrides += [
      '--config.model.blocks=1',
      '--config.model.width=8',
      '--config.model.alpha=2',
      '--config.data.num_frames=4',
      '--config.data.crop_px=64',
      '--config.data.jitter_px=72,90',
    ]
  return cli.read_config(_CONFIG, overrides)


def measure(args: flags.FlagValues) -> list[dict]:
  """Times each way at each grid; returns a record's entries."""
  # They take seconds to import, and bad flags need none of them.
  import jax

  from mgjax.hosts import parallel
  from mgjax.planning import made_up
  from mgjax.setup import network
  from mgjax.step import compilation, programs

  mesh = parallel.make_mesh()
  config = config_of(args, mesh.size)
  composed = network.compose(config, mesh)
  schedule = settings.schedule(config)
  state = made_up.state(composed.abstract, mesh)
  key = parallel.make_key(mesh, 0)
  lr, groups = programs.put_scalars(mesh, 0.001, mesh.size)
  platform = mesh.devices.flat[0].platform
  entries = []
  for grid in (schedule.grids[-1], schedule.grids[0]):
    batch = made_up.batch(
      programs.batch_spec(grid, mesh), mesh, config.model.num_classes
    )
    steps, compile_s = {}, {}
    for name, way in WAYS.items():
      if platform in (way.platforms or (platform,)):
        start = time.perf_counter()
        steps[name] = compile_step(config, schedule, composed, mesh, grid, way)
        compile_s[name] = time.perf_counter() - start
        print(f'{grid}, {name}: compiled', file=sys.stderr, flush=True)
    seconds = {name: [] for name in steps}
    for turn in range(args.turns + 1):
      for name, step in steps.items():
        begin = time.perf_counter()
        state, _ = step(state, batch, lr, groups, key, {})
        jax.block_until_ready(state)
        if turn:  # The first is slower.
          seconds[name].append(time.perf_counter() - begin)
    entries.append(
      {
        **grid._asdict(),
        'wall_s': seconds,
        'compile_s': compile_s,
        'compiled_bytes': {
          name: compilation.needed_bytes(step) for name, step in steps.items()
        },
      }
    )
  return entries


def compile_step(config, schedule, composed, mesh, grid: Grid, way: Way) -> Any:
  """The training step of a grid, compiled in a way."""
  from mgjax.hosts import parallel
  from mgjax.models import conv
  from mgjax.setup import programs
  from mgjax.step import compilation
  from mgjax.step.step_cache import Program

  composed = dataclasses.replace(
    composed, model=composed.model.changed(num_lanes=way.num_lanes)
  )
  lower = programs.lower_programs(config, schedule, composed, mesh, 0, set())
  # No setting asks for it: the formulation follows the platform but here.
  if way.formulation == 'two axes':
    conv3d = by_two_axes
  else:
    conv3d = functools.partial(conv.conv3d, formulation=way.formulation)
  with mock.patch.object(conv, 'conv3d', conv3d):
    told = compilation.options(parallel.platform(mesh))
    options = {**told, **(way.options or {})}
    return lower[Program('train', grid)]().compile(options or None)


def table(entry: dict) -> tabulate.Table:
  """One row per grid and way of a record."""
  rows = []
  for line in entry['grids']:
    step_s = {w: statistics.median(t) for w, t in line['wall_s'].items()}
    first = next(iter(step_s.values()))
    for way, seconds in step_s.items():
      rows.append(
        (
          str(Grid(*(line[name] for name in Grid._fields))),
          way,
          f'{1e3 * seconds:.1f}',
          f'{seconds / first:.2f}',
          f'{line["compiled_bytes"][way] / 2**30:.2f}',
          f'{line["compile_s"][way]:.0f}',
        )
      )
  return tabulate.Table(
    EXPERIMENT,
    (
      'grid',
      'convolutions',
      'step, ms [measured]',
      'time / native [measured]',
      'memory, GiB [compiled]',
      'compiling, s [measured]',
    ),
    rows,
  )


def main(args: flags.FlagValues) -> None:
  from mgjax.cpu import allocator

  environment = step_time.full_environment()
  name = args.name or device_name()
  benchmark = record.Benchmark(args.records, name, __spec__.name)
  allocator.keep()  # As training does.
  entry = benchmark.write(
    environment=environment, small=args.small, grids=measure(args)
  )
  print(tabulate.markdown(table(entry)))


def device_name() -> str:
  """A name for records of the devices that JAX finds: 'nvidia-h200'."""
  import jax

  device = jax.devices()[0]
  words = device.device_kind.lower().replace(' ', '-')
  return words if len(jax.devices()) == 1 else f'{words}-x{len(jax.devices())}'


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
