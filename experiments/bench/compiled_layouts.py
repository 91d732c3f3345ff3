"""Compares ways to compute 3-D convolutions by what a compiler makes of them.

python -m experiments.bench.compiled_layouts --target=h100x8
python -m experiments.bench.compiled_layouts --target=v5e:2x4 --only=native

compiles the training step of SlowFast-R50 8x8 in bfloat16, at the base grid of
the Kinetics schedule, in each way of experiments/bench/layouts.py that the
target has, for a device that need not be there (docs/planning.md). A record is
one file in experiments/records/compiled_layouts; a way that is in it is not
compiled again. Nothing is timed: experiments/bench/layouts.py does that.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import collections
import datetime
import functools
import json
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import tabulate
from experiments.bench import layouts
from experiments.runs import record, settings
from mgjax import cli
from mgjax.errors import ConfigError
from mgjax.planning import targets

EXPERIMENT = 'compiled_layouts'


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('target', str, None, f'One of: {targets.accepted()}.')
  text = 'Ways, separated by semicolons; by default all of the target.'
  flag('only', str, '', text)
  flag('name', str, None, "Of the record; by default the target's.")
  flag('clips', int, 8, 'Of the base grid, on each device.', 1)
  flag('small', bool, False, 'A tiny network on tiny clips, to try it.')
  flag('records', str, str(record.RECORDS / EXPERIMENT), 'Folder of results.')


def compile_way(
  args: flags.FlagValues, target: targets.Target, way: layouts.Way
) -> dict[str, Any]:
  """What the target's compiler says of the base grid's training step."""
  # They take seconds to import, and bad flags need none of them.
  from mgjax.hosts import parallel
  from mgjax.planning import compiler_facts
  from mgjax.setup import network

  mesh = parallel.mesh_of(target.devices)
  config = layouts.config_of(args, mesh.size)
  schedule = settings.schedule(config)
  start = time.perf_counter()
  executable = layouts.compile_step(
    config,
    schedule,
    network.compose(config, mesh),
    mesh,
    schedule.grids[-1],
    way,
  )
  return compiler_facts.of(executable, time.perf_counter() - start)


def table(entries: Sequence[dict]) -> tabulate.Table:
  """One row per target and way.

  Args:
    entries: Records.
  """
  rows = []
  for entry in entries:
    for way, facts in entry['ways'].items():
      shapes: collections.Counter = collections.Counter()
      for layout, count in facts['convolutions'].items():
        # Without digits it is a matrix product. Those of one layout differ in
        # types: 'b01f_01io->b01f bf16'.
        if re.search(r'\d.*->', layout):
          shapes[layout.split()[0]] += count
      layout, count = shapes.most_common(1)[0]
      copies = facts['copies']
      rows.append(
        (
          entry['target']['name'],
          way,
          f'{facts["peak_bytes"] / 2**30:.2f}',
          f'{facts["bytes_accessed"] / 1e9:.1f}',
          f'{copies["count"]}, {copies["bytes"] / 1e9:.2f} GB',
          f'{count} {layout}',
          entry['commit'][:7],
        )
      )
  return tabulate.Table(
    EXPERIMENT,
    (
      'target',
      'way',
      'memory, GiB [compiled]',
      'traffic, GB [compiled]',
      'copies above 1 MB',
      'most frequent convolutions',
      'code',
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  """The table of all records."""
  files = sorted((record.RECORDS / EXPERIMENT).glob('*.json'))
  return [table([json.loads(path.read_text()) for path in files])]


def main(args: flags.FlagValues) -> None:
  if not args.target:
    raise ConfigError(f'--target is not set; use one of {targets.accepted()}')
  targets.prepare(args.target)
  target = targets.find(args.target)
  ways = {
    name: way
    for name, way in layouts.WAYS.items()
    if target.platform in (way.platforms or (target.platform,))
  }
  chosen = args.only.split(';') if args.only else list(ways)
  if unknown := [name for name in chosen if name not in ways]:
    raise ConfigError(
      f'--only={args.only}: {unknown[0]!r} is no way of {args.target}; '
      f'accepted are {"; ".join(ways)}'
    )
  name = args.name or args.target.replace(':', '-')
  path = pathlib.Path(args.records) / f'{name}.json'
  entry = {'ways': {}}
  if path.exists():
    entry = json.loads(path.read_text())
  version = record.code_version()
  if entry['ways'] and any(entry[name] != version[name] for name in version):
    raise ConfigError(
      f'{path} is of other code: give another --name, or compile that code'
    )
  for name in chosen:
    if name in entry['ways']:
      continue
    print(f'compiling: {name}', file=sys.stderr, flush=True)
    entry |= {
      'command': record.command_line(__spec__.name),
      'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      **version,
      'small': args.small,
      'target': target.as_json(),
    }
    entry['ways'][name] = compile_way(args, target, ways[name])
    record.write_file(path, entry)
  print(tabulate.markdown(table([entry])))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
