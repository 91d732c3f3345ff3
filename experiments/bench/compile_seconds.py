r"""What it takes to compile the training steps of a schedule, and other ways.

python -m experiments.bench.compile_seconds \
  --config=configs/moving_digits.py:grid=both --name=moving_digits

compiles the step of every grid, cold, in each of the ways of WAYS, and takes
steps on random clips with each: the ways take turns, so that whatever else the
machine does meets all of them alike. Seconds of the CPU are those of all
threads, which other work disturbs less than it does the clock. A record is one
file in experiments/records/compile_seconds, written after every program.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import ml_collections
from absl import flags

from experiments import tabulate
from experiments.bench import grid_step_times, step_time
from experiments.runs import record, settings
from mgjax import cli
from mgjax.cli import ConfigError

TABLE = record.COMPILE_SECONDS
_LEVEL = 'xla_backend_optimization_level'


class Way(NamedTuple):
  """A way to compile a step.

  Attributes:
    options: What XLA:CPU is told beyond what it is told anyway. Levels are
      LLVM's.
    in_one_program: Whether gradients and update are one (step/split_step.py).
  """

  options: dict[str, str | int | bool] = {}
  in_one_program: bool = False


WAYS = {
  'one program at level 3': Way({_LEVEL: 3}, in_one_program=True),
  'one program at level 2': Way({_LEVEL: 2}, in_one_program=True),
  'two programs at level 3': Way({_LEVEL: 3}),
  # Today's.
  'two programs at level 2': Way({_LEVEL: 2}),
  'two programs at level 1': Way({_LEVEL: 1}),
  'two programs at level 0': Way({_LEVEL: 0}),
  'no expensive passes': Way({'xla_llvm_disable_expensive_passes': True}),
  'preset for fast compilation': Way(
    {'xla_cpu_opt_preset': 'CPU_OPT_PRESET_FAST_COMPILE'}
  ),
  'no fusion emitters': Way({'xla_cpu_use_fusion_emitters': False}),
  'elementwise operations by YNNPACK': Way(
    {
      'xla_cpu_experimental_ynn_fusion_type': (
        'LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,'
        'LIBRARY_FUSION_TYPE_ELTWISE'
      )
    }
  ),
}


def _timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
  """What a call returns, and its seconds by the clock and of all threads."""
  wall, cpu = time.perf_counter(), time.process_time()
  found = call()
  return found, {
    'wall_s': time.perf_counter() - wall,
    'cpu_s': time.process_time() - cpu,
  }


def measure(
  config: ml_collections.ConfigDict,
  *,
  ways: list[str],
  turns: int,
  keep: Callable[[list[dict]], None] = lambda programs: None,
) -> list[dict]:
  """Compiles and times the step of every grid.

  Args:
    config: Names the schedule and the network.
    ways: Of WAYS; the results of the first one are those that others are
      compared with.
    turns: Steps of each.
    keep: Called after every grid with what there is.

  Returns:
    Of each grid, its sides and, by way, 'compile' and 'steps' in
    seconds, 'kernels' that XLA:CPU has LLVM make, and 'differing', arrays of
    the state after a step that are not equal to the last bit.
  """
  # They take seconds to import, and bad flags need none of them.
  from mgjax.hosts import parallel
  from mgjax.setup import network, programs
  from mgjax.step import split_step

  mesh = parallel.make_mesh()
  composed = network.compose(config, mesh)
  schedule = settings.schedule(config)
  lower_all = lambda: programs.lower_programs(
    config, schedule, composed, mesh, 0, set()
  )
  lowered = {False: lower_all()}
  # No setting asks for it: the platform decides.
  with mock.patch.object(split_step, 'SplitStep', programs.in_one_program):
    lowered[True] = lower_all()
  found: list[dict] = []
  for program in lowered[False]:
    texts = {one: lower[program]() for one, lower in lowered.items()}
    compiled, entries = {}, {}
    # The other way round for every other program, as with the steps.
    for way in ways[:: (-1) ** len(found)]:
      compiled[way], compile_s = _timed(
        functools.partial(_compile, texts[WAYS[way].in_one_program], way)
      )
      kernels = compiled[way].as_text().count(' kind=kLoop')
      entries[way] = {'compile': compile_s, 'kernels': kernels}
      print(f'{program}, {way}: {compile_s["cpu_s"]:.1f} s', file=sys.stderr)
    steps = _steps(config, composed, mesh, program.grid, compiled, ways, turns)
    for way, taken in steps.items():
      entries[way] |= taken
    found.append(
      {
        **program.grid._asdict(),
        'ways': {way: entries[way] for way in ways},
      }
    )
    keep(found)
  return found


def _compile(lowered: Any, way: str) -> Any:
  from mgjax.step import compilation

  return lowered.compile(
    compiler_options={**compilation.options('cpu'), **WAYS[way].options}
  )


def _steps(
  config: ml_collections.ConfigDict,
  composed: Any,
  mesh: Any,
  grid: Any,
  compiled: dict[str, Any],
  ways: list[str],
  turns: int,
) -> dict[str, dict]:
  """Takes steps in each way; returns the 'differing' and 'steps' of each."""
  import jax
  import numpy as np

  from mgjax.hosts import parallel
  from mgjax.planning import made_up
  from mgjax.setup import augmentation
  from mgjax.step import programs

  schedule = settings.schedule(config)
  inputs = (
    made_up.batch(
      programs.batch_spec(grid, mesh), mesh, config.model.num_classes
    ),
    *programs.put_scalars(mesh, 0.001, 1),
    parallel.make_key(mesh, 0),
    augmentation.put_strengths(config, schedule, mesh, 0),
  )
  new = lambda: made_up.state(composed.abstract, mesh)
  after = {
    way: jax.device_get(jax.tree.leaves(compiled[way](new(), *inputs)[0]))
    for way in ways
  }
  taken: dict[str, dict] = {
    way: {
      'differing': sum(
        not np.array_equal(ours, theirs, equal_nan=True)
        for ours, theirs in zip(after[way], after[ways[0]], strict=True)
      ),
      'steps': [],
    }
    for way in ways
  }
  state = new()
  for turn in range(turns):
    for way in ways[:: (-1) ** turn]:
      step = functools.partial(compiled[way], state, *inputs)
      (state, _), seconds = _timed(lambda: jax.block_until_ready(step()))  # noqa: B023
      taken[way]['steps'].append(seconds)
  return taken


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('name', str, None, 'Of the record; by default the name of the model.')
  text = f'Of {", ".join(WAYS)}; the first one is compared with.'
  flags.DEFINE_list('ways', list(WAYS), text, flag_values=values)
  flag('turns', int, 7, 'Steps of each program.', 1)
  flag('records', str, str(record.RECORDS / TABLE), 'Folder of results.')


def main(values: flags.FlagValues) -> None:
  if unknown := set(values.ways) - set(WAYS):
    raise ConfigError(
      f'--ways={",".join(sorted(unknown))}: accepted are {", ".join(WAYS)}'
    )
  name = values.name or values.config.model.name
  benchmark = record.Benchmark(values.records, name, __spec__.name)
  from mgjax.cpu import allocator

  allocator.keep()  # As training does.
  import jax

  # What is on disk would not be compiled.
  jax.config.update('jax_enable_compilation_cache', False)

  def keep(programs: list[dict]) -> None:
    benchmark.write(
      environment=step_time.full_environment(),
      **grid_step_times.described(values['config']),
      options={way: WAYS[way].options for way in values.ways},
      programs=programs,
    )

  measure(values.config, ways=values.ways, turns=values.turns, keep=keep)
  print('\n\n'.join(tabulate.markdown(table) for table in make()))


def _ratio(programs: list[dict], way: str, first: str, clock: str) -> float:
  """Median over all turns of a step's time over that of the first way."""
  return statistics.median(
    ours[clock] / theirs[clock]
    for program in programs
    for ours, theirs in zip(
      program['ways'][way]['steps'],
      program['ways'][first]['steps'],
      strict=True,
    )
  )


def table(name: str, entry: dict) -> tabulate.Table:
  """A record, one row per way."""
  programs, (first, *_) = entry['programs'], entry['options']
  total = lambda way, clock: sum(
    program['ways'][way]['compile'][clock] for program in programs
  )
  rows = []
  for way in entry['options']:
    found = [program['ways'][way] for program in programs]
    rows.append(
      (
        way,
        str(len(found)),
        f'{total(way, "cpu_s"):.0f}',
        f'{total(way, "cpu_s") / total(first, "cpu_s"):.2f}',
        f'{total(way, "wall_s"):.0f}',
        f'{_ratio(programs, way, first, "cpu_s"):.2f}',
        f'{_ratio(programs, way, first, "wall_s"):.2f}',
        str(sum(one['differing'] for one in found)),
        f'{name}.json',
      )
    )
  header = (
    'way',
    'programs',
    'compiling, CPU s [measured]',
    '/ first way',
    'compiling, s [measured]',
    'step / first way, CPU s [measured]',
    'step / first way, s [measured]',
    'arrays that differ',
    'record',
  )
  return tabulate.Table(TABLE, header, rows)


def make() -> list[tabulate.Table]:
  """The table of the records there are."""
  tables = [table(*item) for item in record.load_files(TABLE).items()]
  rows = [row for one in tables for row in one.rows]
  return [tables[0]._replace(rows=rows)] if tables else []


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags))
