r"""Step time of every grid of a schedule, and the speed-up that they imply.

python -m experiments.bench.grid_step_times \
  --config=configs/kinetics400.py:grid=both
python -m experiments.bench.grid_step_times --name=slowfast-r50-reduced \
  --config=configs/kinetics400.py:grid=both --config.data.num_frames=16 \
  --config.data.crop_px=112 --config.data.jitter_px=128,160 \
  --config.data.batch_size=4 --config.norm.group_clips=4

The second is what two CPU cores can do; without --config the tables of the
records are printed, written and drawn, as other scripts do it.

Steps are those of training, on random clips; the grids take turns, so that
whatever else the machine does meets all of them alike, and times are medians
over turns. A record is one file in experiments/records/grid_step_times.

Equal multiply-adds are not equal times: multigrid keeps the former equal. The
speed-up of a schedule is the time of all steps of its baseline over the time of
all of its own; its deviation is that of the same ratio over turns.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import statistics
import sys
import time
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from experiments import tabulate
from experiments.bench import step_time
from experiments.runs import record, settings
from mgjax import cli
from mgjax.cli import ConfigError
from mgjax.grids.schedule import Grid
from mgjax.planning import plan, plan_text
from mgjax.setup import clip_costs, grids, planning

TABLE = record.STEP_TIMES


def _compiled_steps(
  config: ml_collections.ConfigDict, composed: Any, mesh: Any
) -> dict[Grid, tuple[Any, dict[str, Any]]]:
  """The training step of every grid of a schedule, and of the full grid.

  Each with the strengths of augmentation that it takes.
  """
  # They take seconds to import, and bad flags need none of them.
  from mgjax.hosts import parallel
  from mgjax.setup import augmentation, programs
  from mgjax.step import compilation

  schedule = settings.schedule(config)
  baseline = config.copy_and_resolve_references()
  baseline.grid.mode = 'none'
  planning.check_network(config, [grids.full_grid(config)])
  steps: dict[Grid, tuple[Any, dict[str, Any]]] = {}
  for s in (schedule, settings.schedule(baseline)):
    lowered = programs.lower_programs(config, s, composed, mesh, 0, set())
    for program, lower in lowered.items():
      if program.grid not in steps:
        steps[program.grid] = (
          compilation.compile_program(lower(), parallel.platform(mesh)),
          augmentation.put_strengths(config, s, mesh, 0),
        )
        print(f'compiled {program.grid}', file=sys.stderr, flush=True)
  return steps


class Measured(NamedTuple):
  """What was found of the training step of a grid.

  Attributes:
    seconds: Of each step.
    compiled_bytes: What the compiler gives to it, of each device.
    allocated_bytes: The most that the device's allocator had given out when it
      had run, less the batches of other grids; None where it does not count.
  """

  seconds: list[float]
  compiled_bytes: int
  allocated_bytes: int | None


def measure(
  config: ml_collections.ConfigDict, *, turns: int
) -> dict[Grid, Measured]:
  """Times the training step of every grid.

  Args:
    config: Names the schedule and the network.
    turns: Steps of each grid.

  Returns:
    By grid, the full grid last where it is not one of the schedule's.
  """
  # They take seconds to import, and bad flags need none of them.
  import jax

  from mgjax.hosts import parallel
  from mgjax.planning import made_up
  from mgjax.setup import network
  from mgjax.step import compilation, programs

  mesh = parallel.make_mesh()
  composed = network.compose(config, mesh)
  steps = _compiled_steps(config, composed, mesh)
  state = made_up.state(composed.abstract, mesh)
  key = parallel.make_key(mesh, 0)
  lr, groups = programs.put_scalars(mesh, 0.001, 1)
  inputs = {
    grid: made_up.batch(
      programs.batch_spec(grid, mesh), mesh, config.model.num_classes
    )
    for grid in steps
  }
  found = {
    grid: Measured([], compilation.needed_bytes(step), None)
    for grid, (step, _) in steps.items()
  }

  def run(grid: Grid) -> float:
    nonlocal state
    step, strengths = steps[grid]
    begin = time.perf_counter()
    state, _ = step(state, inputs[grid], lr, groups, key, strengths)
    jax.block_until_ready(state)
    return time.perf_counter() - begin

  # The first turn is slower: buffers, threads, choice of algorithms. From the
  # smallest program on, since the allocator keeps the peak of all so far.
  for grid in sorted(found, key=lambda grid: found[grid].compiled_bytes):
    run(grid)
    others = sum(_bytes_here(i) for g, i in inputs.items() if g != grid)
    if (peak := _allocator_peak(mesh)) is not None:
      found[grid] = found[grid]._replace(allocated_bytes=peak - others)
  for _ in range(turns):
    for grid in steps:
      found[grid].seconds.append(run(grid))
  return found


def _allocator_peak(mesh: Any) -> int | None:
  """The most bytes that were in use on a device; None: it does not count."""
  counted = mesh.devices.flat[0].memory_stats() or {}
  return counted.get('peak_bytes_in_use')


def _bytes_here(batch: dict[str, Any]) -> int:
  """Bytes of a batch on a device."""
  return sum(x.addressable_shards[0].data.nbytes for x in batch.values())


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'name',
    None,
    'Of the record; by default the name of the model.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'turns', 7, 'Steps of each grid.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_string(
    'records',
    str(record.RECORDS / TABLE),
    'Folder of results.',
    flag_values=values,
  )
  flags.DEFINE_float(
    'peak_tflops',
    None,
    "All devices' rate of matrix products in this type, for the share that "
    'steps reach.',
    lower_bound=1e-9,
    flag_values=values,
  )


def main(values: flags.FlagValues) -> None:
  config = values.config
  if config.optim.loss != 'softmax':
    raise ConfigError(
      f'optim.loss={config.optim.loss!r}: clips have one random label each; '
      "use 'softmax'"
    )
  name = values.name or config.model.name
  benchmark = record.Benchmark(values.records, name, __spec__.name)
  from mgjax.cpu import allocator

  allocator.keep()  # As training does.
  found = measure(config, turns=values.turns)
  benchmark.write(
    environment=step_time.full_environment(),
    **described(values['config']),
    grids=[
      {
        **grid._asdict(),
        'wall_s': one.seconds,
        'compiled_bytes': one.compiled_bytes,
        'allocated_bytes': one.allocated_bytes,
      }
      for grid, one in found.items()
    ],
    peak_tflops=values.peak_tflops,
  )
  if benchmark.path.parent == record.RECORDS / TABLE:
    print('\n\n'.join(tabulate.markdown(table) for table in make()))


def described(flag: flags.Flag) -> dict[str, Any]:
  """What a record says of its config, so that it can be checked.

  Args:
    flag: --config and the overrides that it was given.
  """
  config = settings.kept(flag.value)
  overrides = config_flags.get_override_values(flag)
  return {
    'config': config_flags.get_config_filename(flag),
    'overrides': [f'--config.{k}={v}' for k, v in overrides.items()],
    'config_hash': settings.config_hash(config),
    'settings': config,
  }


def _turns(entry: dict[str, Any]) -> list[dict[Grid, float]]:
  """Seconds of a step of each grid, turn by turn."""
  seconds = {
    Grid(*(line[name] for name in Grid._fields)): line['wall_s']
    for line in entry['grids']
  }
  return [
    dict(zip(seconds, turn, strict=True))
    for turn in zip(*seconds.values(), strict=True)
  ]


def _step_s(entry: dict[str, Any]) -> dict[Grid, float]:
  """Median seconds of a step of each grid."""
  turns = _turns(entry)
  return {
    grid: statistics.median(turn[grid] for turn in turns) for grid in turns[0]
  }


def _name(grid: Grid, full: Grid) -> str:
  """Such as '8B x T/4 x (S/2)²'."""
  return plan_text.shape_text(grid._asdict(), full._asdict())


def _load() -> dict[str, tuple[dict[str, Any], ml_collections.ConfigDict]]:
  """The records there are and their configs, by name."""
  return {
    # Not the stored settings: fields may have been added since.
    name: (entry, cli.read_config(entry['config'], entry['overrides']))
    for name, entry in record.load_files(TABLE).items()
  }


def _machine(entry: dict[str, Any], config: ml_collections.ConfigDict) -> str:
  environment = entry['environment']
  device = f'{environment["num_devices"]} x {environment["device"]}'
  if environment['device'] == 'cpu':
    device = f'CPU, {environment["num_cpus"]} cores'
  return f'{device}, {config.model.dtype}'


def _share(entry: dict[str, Any], gmacs: float, seconds: float) -> str:
  """What a step reaches of the devices' rate of matrix products, in percent.

  Args:
    entry: A record.
    gmacs: 1e9 multiply-adds of the step's forward pass.
    seconds: Of the step.
  """
  if not (peak := entry.get('peak_tflops')):
    return ''
  # A multiply-add is two operations; backward is twice forward.
  return f'{100 * 6 * gmacs / 1e3 / seconds / peak:.0f}'


def _gib(num_bytes: int | None) -> str:
  return '' if num_bytes is None else f'{num_bytes / 2**30:.2f}'


def times_table() -> tabulate.Table:
  """One row per grid of each record."""
  rows = []
  for name, (entry, config) in _load().items():
    lines = {Grid(*(x[n] for n in Grid._fields)): x for x in entry['grids']}
    step_s, full = _step_s(entry), grids.full_grid(config)
    gmacs = clip_costs.gmacs_per_clip(config, step_s)
    for grid, seconds in step_s.items():
      macs = grid.batch * gmacs[grid] / (full.batch * gmacs[full])
      rows.append(
        (
          name,
          _name(grid, full),
          str(grid),
          f'{macs:.3f}',
          f'{1e3 * seconds:.0f}',
          f'{seconds / step_s[full]:.2f}',
          f'{grid.batch / seconds:.1f}',
          _share(entry, grid.batch * gmacs[grid], seconds),
          _gib(lines[grid].get('compiled_bytes')),
          _gib(lines[grid].get('allocated_bytes')),
          f'{TABLE}/{name}.json',
        )
      )
  return tabulate.Table(
    TABLE,
    (
      'network',
      'grid',
      'frames x pixels, clips',
      'MACs / full step [computed]',
      'step, ms [measured]',
      'time / full step [measured]',
      'clips/s [measured]',
      '% of matrix rate [measured]',
      'memory, GiB [compiled]',
      'memory, GiB [measured]',
      'record',
    ),
    rows,
  )


def speedup_table() -> tabulate.Table:
  """What the step times make of the schedule of each record."""
  rows = []
  for name, (entry, config) in _load().items():
    schedule, full = settings.schedule(config), grids.full_grid(config)
    made = planning.make_plan(config, schedule)

    def ratio(step_s, made=made, schedule=schedule, full=full):
      base_hours = made['baseline']['steps'] * step_s[full] / 3600
      return base_hours / plan.training_hours(schedule, step_s)

    ratios = [ratio(turn) for turn in _turns(entry)]
    deviation = f' ± {statistics.stdev(ratios):.2f}' if len(ratios) > 1 else ''
    rows.append(
      (
        name,
        f'{config.grid.mode}, {config.grid.epoch_factor:g} x the epochs',
        f'{made["speedup"]["steps"]:.2f}',
        f'{made["speedup"]["macs"]:.2f}',
        f'{ratio(_step_s(entry)):.2f}{deviation}',
        str(len(ratios)),
        _machine(entry, config),
        f'{TABLE}/{name}.json',
      )
    )
  return tabulate.Table(
    'grid_speedups',
    (
      'network',
      'schedule',
      'fewer steps [computed]',
      'fewer MACs [computed]',
      'less time, implied by step times [measured]',
      'turns',
      'machine',
      'record',
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  return [times_table(), speedup_table()]


def picture(path: pathlib.Path) -> None:
  """Time of a step of each grid over that of a full one."""
  found = _load()

  def draw(axes):
    for name, (entry, config) in found.items():
      step_s, full = _step_s(entry), grids.full_grid(config)
      axes.plot(
        [step_s[grid] / step_s[full] for grid in step_s],
        [_name(grid, full) for grid in step_s],
        'o',
        label=name,
      )
    axes.axvline(1, color='grey', linewidth=0.5)
    axes.invert_yaxis()  # In the table's order.
    axes.set_xlim(0, None)
    axes.set_xlabel('time of a step / full step')
    if found:
      axes.legend(frameon=False)

  tabulate.save_picture(draw, path)


if __name__ == '__main__':
  if any(argument.startswith('--config') for argument in sys.argv[1:]):
    sys.exit(cli.run(main, define_flags))
  sys.exit(tabulate.main(make, picture))
