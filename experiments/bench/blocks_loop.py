"""What a loop over a transformer's blocks costs and saves: model.scan_blocks.

python -m experiments.bench.blocks_loop

compiles the training step of each network with its blocks unrolled and as a
loop, and lets the two take turns. Compilation is given in CPU seconds, which
other work on the machine disturbs little. The result goes to
experiments/records/blocks_loop.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import statistics
import sys
import time

from absl import flags

from experiments import tabulate
from experiments.runs import record
from mgjax import cli, environment
from mgjax.recipes import transformers

EXPERIMENT = 'blocks_loop'
_WAYS = {'unrolled': False, 'loop': True}
_LEARNING_RATE = 0.01


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  names = ['videomae_s', 'videomae_b', 'videomae_l']
  text = f'Some of {",".join(transformers.NETWORKS)}.'
  flags.DEFINE_list('models', names, text, flag_values=values)
  flag('batch', int, 2, 'Clips.', 1)
  flag('frames', int, 8, 'Of a clip.', 1)
  flag('crop_px', int, 112, 'Height and width.', 1)
  flag('turns', int, 8, 'Timed turns of each way.', 1)
  flag('turn_steps', int, 2, 'Steps of a turn.', 1)
  flag('dtype', ('float32', 'bfloat16'), 'float32', 'Type of the computation.')
  flag('name', str, 'result', 'Of the record: NAME.json.')
  flag('records', str, str(record.RECORDS / EXPERIMENT), 'Folder of results.')


def measure(name: str, args: flags.FlagValues) -> dict:
  """Times a network in both ways; returns its entry."""
  from experiments.bench import jax_side

  sides, compile_cpu_s = {}, {}
  for way, loop in _WAYS.items():
    start = time.process_time()
    sides[way] = jax_side.JaxSide(
      name,
      args,
      frames=args.frames,
      num_classes=400,
      learning_rate=_LEARNING_RATE,
      options={'scan_blocks': loop},
    )
    # What else it does, such as random weights, is the same for both.
    compile_cpu_s[way] = sides[way].compile_cpu_s
    print(f'{name}, {way}: made in {time.process_time() - start:.0f} CPU s')
  first = {way: side.run(4)['losses'][0] for way, side in sides.items()}
  if abs(first['loop'] - first['unrolled']) > 1e-3 * first['unrolled']:
    raise RuntimeError(f'{name}: the first losses differ: {first}.')
  turns = {way: [] for way in sides}
  for _ in range(args.turns):
    for way, side in sides.items():
      turns[way].append(side.run(args.turn_steps))
  return {
    'model': name,
    'compile_cpu_s': compile_cpu_s,
    'compile_s': {way: side.compile_s for way, side in sides.items()},
    'peak_bytes': {way: side.peak_bytes for way, side in sides.items()},
    **{
      unit: {
        way: [turn[unit] / args.turn_steps for turn in found]
        for way, found in turns.items()
      }
      for unit in ('wall_s', 'cpu_s')
    },
  }


def table(entries: list[dict]) -> str:
  """Medians and ratios as Markdown."""
  header = ('network', 'compile, CPU s: unrolled', 'loop')
  header += ('step, ms: unrolled', 'loop', 'loop / unrolled', 'GiB', 'loop')
  rows = []
  for entry in entries:
    step = {w: statistics.median(t) for w, t in entry['wall_s'].items()}
    rows.append(
      (
        entry['model'],
        *(f'{entry["compile_cpu_s"][way]:.1f}' for way in _WAYS),
        *(f'{1e3 * step[way]:.0f}' for way in _WAYS),
        f'{step["loop"] / step["unrolled"]:.2f}',
        *(f'{entry["peak_bytes"][way] / 2**30:.2f}' for way in _WAYS),
      )
    )
  return tabulate.markdown(tabulate.Table(EXPERIMENT, header, rows))


def main(args: flags.FlagValues) -> None:
  from mgjax.cpu import allocator

  allocator.keep()  # As training does.
  benchmark = record.Benchmark(args.records, args.name, __spec__.name)
  entries = [measure(name, args) for name in args.models]
  benchmark.write(
    **{
      field: getattr(args, field)
      for field in ('batch', 'frames', 'crop_px', 'dtype', 'turns')
    },
    environment=environment.describe(),
    entries=entries,
  )
  print(table(entries))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
