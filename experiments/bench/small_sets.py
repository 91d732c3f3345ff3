r"""What decoded frames in a cache save a training on a small set.

python -m experiments.bench.small_sets

trains the demo's network on the 240 videos of moving_digits/motion_tiny, with
and without multigrid, each with data.decoded_cache_gib=0 and 1. The runs take
turns, the second time in reverse order. Each has a folder of decoded frames of
its own, so that its first epoch decodes. Compiled programs are shared: the
first run of each kind of grids compiles, and does not count ('num_from_disk'
says which).

Before every turn the steps of all grids are timed alone, on random clips. Their
median times the steps of a run is its par: what its steps would take if nothing
else ran. The result goes to experiments/records/small_sets.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import collections
import functools
import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from absl import flags

from experiments import tabulate
from experiments.bench import grid_step_times
from experiments.runs import record, settings
from mgjax import cli, environment, files

TABLE = 'small_sets'
DATA = 'motion_tiny'
MODES = ('none', 'both')
CACHES_GIB = (0.0, 1.0)
# What the record keeps of a run's summary.
_KEPT = (
  *('steps', 'clips', 'num_from_disk', 'cpu_s', 'step_s', 'data_s', 'other_s'),
  *('train_s', 'compile_s', 'compile_wait_s', 'predicted_speedup'),
)


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('size', str, 'demo', "Of configs/moving_digits.py's sizes.")
  flag('epochs', int, 16, "Of the baseline; multigrid's are 1.5 times it.", 4)
  flag('turns', int, 2, 'Runs of each kind; the first compiles.', 2)
  flag('step_turns', int, 5, 'Steps of each grid, alone, before a turn.', 1)
  flag('name', str, 'result', 'Of the record: NAME.json.')
  flag('records', str, str(record.RECORDS / TABLE), 'Folder of results.')


def config_of(mode: str, size: str) -> str:
  """Value of --config."""
  return f'configs/moving_digits.py:grid={mode},size={size}'


def overrides_of(epochs: int, data_dir: pathlib.Path) -> list[str]:
  """What all runs change in it."""
  return [
    f'--config.data.name=moving_digits/{DATA}',
    f'--config.data.dir={data_dir}',
    f'--config.optim.total_epochs={epochs}',
    f'--config.optim.lr_steps=({3 * epochs / 4:g},)',
  ]


def measure(
  folder: pathlib.Path, size: str, epochs: int, turns: int, step_turns: int
) -> dict[str, Any]:
  """Makes the data set, times steps and trains.

  Args:
    folder: For all that is written.
    size: See `define_flags`, as the others.
    epochs: See there.
    turns: See there.
    step_turns: See there.

  Returns:
    'runs', and 'steps': by kind of grids, of each grid the seconds of its steps
    alone and how many steps a run has of it.
  """
  from mgjax.data import moving_digits

  moving_digits.prepare(folder / 'data', DATA, num_workers=2, progress=False)
  overrides = overrides_of(epochs, folder / 'data')
  steps = {mode: _counts(config_of(mode, size), overrides) for mode in MODES}
  runs = []
  for turn in range(turns):
    for mode in MODES:
      _time_alone(steps[mode], config_of(mode, size), overrides, step_turns)
    kinds = list(itertools.product(MODES, CACHES_GIB))
    for mode, cache_gib in kinds[:: (-1) ** turn]:
      name = f'{mode}-{cache_gib:g}-{turn}'
      summary = _train(
        folder,
        name,
        f'--config={config_of(mode, size)}',
        *overrides,
        f'--config.data.decoded_cache_gib={cache_gib}',
        f'--config.data.decoded_cache_dir={folder / "frames" / name}',
      )
      runs.append(
        {
          **{'mode': mode, 'cache_gib': cache_gib, 'turn': turn},
          **{key: summary[key] for key in _KEPT},
        }
      )
  return {'runs': runs, 'steps': steps}


def _counts(config_arg: str, overrides: list[str]) -> list[dict]:
  """The grids of a run, and its steps of each."""
  schedule = settings.schedule(cli.read_config(config_arg, overrides))
  counts = collections.Counter(map(schedule, range(schedule.total_steps)))
  return [
    {**grid._asdict(), 'count': counts[grid], 'alone_s': []}
    for grid in schedule.grids
  ]


def _time_alone(
  grids: list[dict], config_arg: str, overrides: list[str], turns: int
) -> None:
  """Adds the seconds of `turns` steps of each grid."""
  config = cli.read_config(config_arg, overrides)
  found = grid_step_times.measure(config, turns=turns)
  for entry, grid in zip(grids, settings.schedule(config).grids, strict=True):
    entry['alone_s'] += found[grid].seconds


def _train(folder: pathlib.Path, name: str, *arguments: str) -> dict:
  """Trains in a process of its own; returns the summary."""
  workdir = folder / 'runs' / name
  command = [sys.executable, '-m', 'mgjax.train', *arguments]
  print(name, file=sys.stderr, flush=True)
  with (folder / f'{name}.log').open('w') as log:
    subprocess.run(
      [*command, f'--workdir={workdir}'],
      check=True,
      cwd=pathlib.Path(__file__).parents[2],
      env={
        **os.environ,
        'JAX_COMPILATION_CACHE_DIR': str(folder / 'programs'),
      },
      stdout=log,
      stderr=log,
    )
  return files.read_json(workdir / 'summary.json')


def par_s(grids: list[dict]) -> float:
  """Seconds that all steps of a run take alone."""
  return sum(
    grid['count'] * statistics.median(grid['alone_s']) for grid in grids
  )


def tables(result: dict[str, Any]) -> list[tabulate.Table]:
  """The record as tables: the runs, and the speed-ups."""
  baseline = next(r['steps'] for r in result['runs'] if r['mode'] == 'none')
  rows, mean = [], {}
  for mode, cache_gib in itertools.product(MODES, CACHES_GIB):
    found = [
      run
      for run in result['runs']
      if (run['mode'], run['cache_gib']) == (mode, cache_gib)
      # Without a cache of frames is what runs first, and compiles.
      and run['num_from_disk'] == len(result['steps'][mode])
    ]
    of = lambda key, found=found: statistics.mean(run[key] for run in found)
    par = par_s(result['steps'][mode])
    mean[mode, cache_gib] = of('train_s')
    rows.append(
      (
        mode,
        f'{cache_gib:g}',
        str(len(found)),
        f'{found[0]["steps"]:,}',
        f'{of("data_s"):.1f}',
        f'{of("step_s"):.1f}',
        f'{of("step_s") / par:.2f}',
        f'{of("train_s"):.1f}',
        f'{of("train_s") / par:.2f}',
        f'{of("cpu_s"):.0f}',
      )
    )
  header = (
    'grids',
    'cache, GiB',
    'runs',
    'steps',
    'waiting for data, s [measured]',
    'steps, s [measured]',
    'steps / steps alone',
    'training, s [measured]',
    'training / steps alone',
    'CPU s [measured]',
  )
  none, both = (par_s(result['steps'][mode]) for mode in MODES)
  macs = next(r for r in result['runs'] if r['mode'] == 'both')
  speedups = (
    f'{baseline:,}',
    f'{macs["predicted_speedup"]["macs"]:.2f}',
    f'{none / both:.2f}',
    *(f'{mean["none", gib] / mean["both", gib]:.2f}' for gib in CACHES_GIB),
  )
  return [
    tabulate.Table(TABLE, header, rows),
    tabulate.Table(
      f'{TABLE}_speedup',
      (
        "baseline's steps",
        'speed-up by MACs [computed]',
        'by steps alone [measured]',
        'without a cache [measured]',
        'with one [measured]',
      ),
      [speedups],
    ),
  ]


def make() -> list[tabulate.Table]:
  """The tables of the records there are, the shortest runs first."""
  found = [tables(entry) for entry in record.load_files(TABLE).values()]
  found.sort(key=lambda pair: int(pair[1].rows[0][0].replace(',', '')))
  return [
    some[0]._replace(rows=[row for table in some for row in table.rows])
    for some in zip(*found, strict=True)
  ]


def main(args: flags.FlagValues) -> None:
  from mgjax.cpu import allocator

  allocator.keep()  # As training does.
  benchmark = record.Benchmark(args.records, args.name, __spec__.name)
  with tempfile.TemporaryDirectory() as scratch:
    found = measure(
      *(pathlib.Path(scratch), args.size, args.epochs),
      *(args.turns, args.step_turns),
    )
  result = benchmark.write(environment=environment.describe(), **found)
  print('\n\n'.join(tabulate.markdown(table) for table in tables(result)))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
