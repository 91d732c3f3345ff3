r"""Every run behind a table: what it is, how long it takes, how to start it.

python -m experiments.runs.launch --table=kinetics400_accuracy
python -m experiments.runs.launch --table=moving_digits --seeds=3 --run=local
python -m experiments.runs.launch --table=epoch_factors --seeds=3 --run=local \
  --jobs=2
python -m experiments.runs.launch --table=ssv2_accuracy --run=slurm \
  --gmacs_per_s=40000 --device='8 x H100'

Runs that have a record in experiments/records are skipped. Hours are those of
training steps: 3 x the plan's multiply-adds (a backward pass takes twice the
forward pass's) over a rate, which is yours (--gmacs_per_s) or that of a record
(--record). The published results on SSv2 and Charades, and those of
models on segments, start from other weights: --init_from names them.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import argparse
import concurrent.futures
import contextlib
import functools
import itertools
import os
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

from etils import epath

from experiments import costs, tabulate
from experiments.runs import record, settings
from experiments.tables import (
  epoch_factors,
  frames_accuracy,
  frames_ladder,
  multigrid_accuracy,
  multigrid_choices,
)
from experiments.tables.measured import Run
from mgjax import cli, environment, files
from mgjax.cli import ArgumentParser, ConfigError
from mgjax.planning import plan
from mgjax.recipes import segments
from mgjax.setup import planning


def _both_modes(file: str, model: str, row: str) -> list[Run]:
  words = {'none': 'baseline', 'both': 'multigrid'}
  return [
    Run(
      f'{file}_accuracy/{model}-{mode}',
      f'{row}, {words[mode]}',
      f'configs/{file}.py:model={model},grid={mode}',
      model=model,
    )
    for mode in words
  ]


def network_of(row: str) -> tuple[str, int] | None:
  """The network that a row of a table is about, where it is one on segments.

  Args:
    row: Such as 'TSN-R50 8' or 'bLVNet-TAM-101 16x2, SSv2'.

  Returns:
    Its name, as costs.py knows it, and its frames.
  """
  found = re.match(r'(TSN|TSM|TAM|bLVNet-TAM)-(R?\d+) (\d+)(x2)?\b', row)
  if not found:
    return None
  name, depth, frames, pairs = found.groups()
  model = f'{name}_{depth}'.lower().replace('-', '_')
  return model, int(frames) * (2 if pairs else 1)


def _on_segments(
  table: str, file: str, data: str, rows: list[str]
) -> list[Run]:
  """Runs of networks on segments.

  Args:
    table: Theirs.
    file: Of the config.
    data: In words.
    rows: That `network_of` knows.
  """
  runs = []
  for row in rows:
    model, frames = network_of(row)
    config, grid, overrides = model, 'none', ()
    if model.startswith('blvnet'):
      grid = 'ladder'
      if frames != 32:
        lr = 0.005 if file == 'kinetics400' else 0.01
        overrides = (
          f'--config.data.num_frames={frames}',
          f'--config.grid.ladder={segments.ladder(frames // 2, lr)}',
        )
    elif frames != 8:
      overrides = (f'--config.data.num_frames={frames}',)
    runs.append(
      Run(
        f'{table}/{file}-{row.replace(" ", "-").lower()}',
        f'{row}, {data}',
        f'configs/{file}.py:model={config},grid={grid}',
        overrides,
        model=model,
      )
    )
  return runs


_BLVNET_50 = [f'bLVNet-TAM-50 {pairs}x2' for pairs in (8, 16, 24)]
_SOMETHING_SOMETHING = [
  *('TSN-R50 8', 'TSN-R50 16', 'TSM-R50 8', 'TSM-R50 16', 'TSM-R101 8'),
  *('TAM-R50 8', *_BLVNET_50[:2]),
  *(f'bLVNet-TAM-101 {pairs}x2' for pairs in (8, 16, 24, 32)),
]

RUNS = {
  **{
    script.TABLE: script.RUNS
    for script in (
      multigrid_accuracy,
      epoch_factors,
      frames_accuracy,
      frames_ladder,
      multigrid_choices,
    )
  },
  'kinetics400_accuracy': [
    *_both_modes('kinetics400', 'slowfast', 'SlowFast-R50 8x8'),
    *_both_modes('kinetics400', 'slowfast_r101_8x8', 'SlowFast-R101 8x8'),
    *_both_modes('kinetics400', 'i3d', 'I3D-R50 8x8'),
    *_both_modes('kinetics400', 'i3d_nln', 'I3D-R50-NL 8x8'),
  ],
  'ssv2_accuracy': _both_modes('ssv2', 'slowfast', 'SlowFast-R50 16x8'),
  'charades_accuracy': _both_modes('charades', 'slowfast', 'SlowFast-R50 16x8'),
  'something_something_blvnet': [
    *_on_segments(
      'something_something_blvnet', 'ssv1', 'SSv1', _SOMETHING_SOMETHING
    ),
    *_on_segments(
      'something_something_blvnet', 'ssv2', 'SSv2', _SOMETHING_SOMETHING
    ),
  ],
  'kinetics_moments_blvnet': [
    *_on_segments(
      'kinetics_moments_blvnet',
      'kinetics400',
      'Kinetics-400',
      ['TSN-R50 8', 'TSM-R50 8', 'TSM-R50 16', 'TAM-R50 8', *_BLVNET_50],
    ),
    *_on_segments(
      'kinetics_moments_blvnet', 'mit', 'Moments in Time', _BLVNET_50
    ),
  ],
}


class _Planned(NamedTuple):
  run: Run
  seed: int
  record: str  # Its name.
  config: str  # Value of --config.
  gmacs: float  # 1e9 multiply-adds of all forward and backward passes.

  def hours(self, rate: float | None) -> float | None:
    """Returns hours, given 1e9 multiply-adds per second of training."""
    return self.gmacs / rate / 3600 if rate else None


def planned(
  table: str, seeds: int, overrides: tuple[str, ...] = ()
) -> list[_Planned]:
  """The runs of a table that have no record yet, with more overrides.

  Seed by seed, so that a drift of the machine's speed touches all rows alike.
  """
  found = []
  for seed in range(seeds):
    for run in RUNS[table]:
      name = f'{run.name}-seed{seed}'
      if not record.exists(name):
        config = f'{run.config},seed={seed}'
        gmacs = _training_gmacs(run)
        run = run._replace(overrides=(*run.overrides, *overrides))
        found.append(_Planned(run, seed, name, config, gmacs))
  return found


def mismatches() -> list[str]:
  """Says which records are not of the run whose name they have; [] if all are.

  A run whose settings have changed needs another name, or its records to go.
  What the weights start from (--init_from) may differ.
  """
  found = []
  for table, runs in RUNS.items():
    for entry in record.load(table):
      name, _, seed = entry['name'].rpartition('-seed')
      run = next((run for run in runs if run.name == name), None)
      if run is None:
        found.append(f'{entry["name"]}: {table} has no run of this name')
        continue
      make = lambda file, overrides: settings.as_json(
        cli.read_config(
          file,
          [o for o in overrides if not o.startswith('--config.init_')],
        )
      )
      ours = make(f'{run.config},seed={seed}', run.overrides)
      if make(entry['config'], entry['overrides']) != ours:
        found.append(f'{entry["name"]}: its config is not that of its run')
  return found


@functools.cache
def _training_gmacs(run: Run) -> float:
  config = cli.read_config(run.config, run.overrides)
  schedule = settings.schedule(config)
  if not run.model:
    gmacs = planning.gmacs_per_clip(config, schedule.grids, schedule.phases)
    return 3 * plan.total_gmacs(schedule, gmacs)
  cost = costs.run_cost(schedule, run.model, config.model.num_classes)
  return 3 * cost.macs / 1e9


def rate_of(name: str) -> tuple[float, str]:
  """1e9 multiply-adds per second of a record, and the hardware it ran on.

  Raises:
    ConfigError: There is no such record.
  """
  if not record.exists(name):
    known = ', '.join(entry['name'] for entry in record.load('*'))
    raise ConfigError(
      f'--record={name} is not in {record.RECORDS}; there are: '
      f'{known or "none yet"}.'
    )
  (entry,) = record.load(name)
  machine = entry['summary']['environment']
  return (
    3 * record.plan_of(entry)['total_gmacs'] / entry['summary']['train_s'],
    f'{machine["num_devices"]} x {machine["device"]}',
  )


def listing(
  table: str, runs: list[_Planned], rate: float | None, device: str
) -> tabulate.Table:
  """The runs, as a table."""
  rows = [
    (
      item.run.row,
      ' '.join([item.config, *item.run.overrides]),
      str(item.seed),
      f'{item.gmacs / 1e6:,.3g}',
      f'{item.hours(rate):.2f}' if rate else '',
    )
    for item in runs
  ]
  hours = f'hours on {device}' if device else 'hours'
  return tabulate.Table(
    table,
    ('row', '--config', 'seed', 'training MACs, 1e15 [computed]', hours),
    rows,
  )


def total(runs: list[_Planned], rate: float | None, device: str) -> str:
  """How many runs there are, and how long they take together."""
  gmacs = sum(item.gmacs for item in runs)
  text = f'all {len(runs)}: {1e9 * gmacs:.3g} multiply-adds'
  if rate:
    text += f', {sum(item.hours(rate) for item in runs):,.2f} hours'
    text += f' on {device}' if device else ''
  return text


def command(table: str, item: _Planned, args: argparse.Namespace) -> str:
  """The command line that makes one record, on the machine that runs it."""
  name = item.record.split('/')[-1]
  return shlex.join(
    [
      # The README's installation; all hosts have it at one place.
      *('.venv/bin/python', '-m', 'experiments.runs.launch', '--run=local'),
      f'--table={table}',
      f'--seeds={args.seeds}',
      f'--only={name}',
      f'--workdir={args.workdir}',
      *([f'--init_from={args.init_from}'] if args.init_from else []),
    ]
  )


def submit_line(
  table: str, item: _Planned, args: argparse.Namespace, rate: float | None
) -> str:
  """The command line that has a cluster run `command`."""
  line = command(table, item, args)
  if args.run == 'tpu':
    return shlex.join(
      [
        *('gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', args.tpu),
        *([f'--zone={args.zone}'] if args.zone else []),
        '--worker=all',
        f'--command=cd mgjax && {line}',
      ]
    )
  limit = []
  if rate:
    # Half as much again, for compilation, evaluation and bad luck.
    minutes = max(1, round(1.5 * 60 * item.hours(rate)))
    limit = [f'--time={minutes}']
  return shlex.join(
    [
      'sbatch',
      f'--job-name={item.record.replace("/", "-")}',
      # Without a number of CPUs a job has one.
      *(f'--gpus={args.gpus}', f'--cpus-per-task={8 * args.gpus}'),
      *('--requeue', *limit, f'--wrap={line}'),
    ]
  )


def run_here(runs: list[_Planned], workdir: epath.Path, num_jobs: int) -> int:
  """Makes records on this machine; a failure ends it after the runs under way.

  Args:
    runs: In the order in which they start.
    workdir: Folder of all runs.
    num_jobs: Runs at a time, each on CPUs of its own, so that they disturb each
      other little; each prints into WORKDIR/EXPERIMENT/NAME.log then.

  Returns:
    The exit code of the first that failed, else 0.
  """
  cpus = sorted(os.sched_getaffinity(0)) if num_jobs > 1 else []
  slots = itertools.count()

  def pin() -> None:
    # Of this thread, and so of the processes that it starts.
    os.sched_setaffinity(0, cpus[next(slots) :: num_jobs])

  def make(item: _Planned) -> None:
    log = contextlib.nullcontext()
    if num_jobs > 1:
      path = workdir / f'{item.record}.log'
      path.parent.mkdir(parents=True, exist_ok=True)
      log = path.open('a')
    with log as file:
      record.run(
        item.record,
        item.config,
        workdir=workdir / item.record,
        overrides=item.run.overrides,
        log=file,
      )

  with concurrent.futures.ThreadPoolExecutor(
    num_jobs, initializer=pin if num_jobs > 1 else None
  ) as pool:
    made = {pool.submit(make, item): item for item in runs}
    try:
      for future in concurrent.futures.as_completed(made):
        future.result()
    except subprocess.CalledProcessError as error:
      # The training has said why.
      print(
        f'error: {made[future].record} ended with {error.returncode}',
        file=sys.stderr,
      )
      return error.returncode
    finally:
      # Whatever the reason, no further run starts.
      pool.shutdown(wait=True, cancel_futures=True)
  return 0


def _parser() -> ArgumentParser:
  parser = ArgumentParser(
    prog='python -m experiments.runs.launch',
    description=__doc__,
  )
  add = parser.add_argument
  add('--table', required=True, choices=RUNS, help='whose runs')
  add('--seeds', type=int, default=1, help='seeds 0 to this - 1 (default 1)')
  add('--only', help='of these, the run of this name: NAME-seedN')
  add(
    '--run',
    choices=('list', 'local', 'slurm', 'tpu'),
    default='list',
    help='list them, run them here, or print submit commands',
  )
  add('--workdir', type=epath.Path, default=epath.Path('runs'))
  add(
    '--jobs',
    type=int,
    default=1,
    help='local: runs at a time, each on a share of the CPUs (default 1)',
  )
  add('--init_from', help='config.init_from of all runs, with a new classifier')
  rate = parser.add_mutually_exclusive_group()
  rate.add_argument(
    '--gmacs_per_s',
    type=float,
    help='1e9 multiply-adds per second in training, of all devices together',
  )
  rate.add_argument('--record', help='a record whose speed is taken')
  add(
    '--device',
    default='',
    help='hardware that --gmacs_per_s is about',
  )
  add(
    '--gpus',
    type=int,
    default=8,
    help='slurm: GPUs of a run, with 8 CPUs each (default 8)',
  )
  add('--tpu', default='mgjax', help='tpu: name of the slice (default mgjax)')
  add('--zone', help="tpu: its zone (default: gcloud's)")
  return parser


def main(argv: list[str] | None = None) -> int:
  parser = _parser()
  args = parser.parse_args(argv)
  if args.seeds < 1:
    parser.error(f'--seeds={args.seeds}; give 1 or more')
  num_cpus = environment.num_cpus()
  if not 1 <= args.jobs <= num_cpus:
    parser.error(
      f'--jobs={args.jobs}; give 1 to {num_cpus}, the CPUs there are'
    )
  if args.run == 'tpu' and not files.is_remote(args.workdir):
    parser.error(
      f'--workdir={args.workdir}: the workers of a slice have disks of their '
      'own; give a bucket, gs://...'
    )
  if args.device and args.record:
    parser.error('--record names its own hardware; leave --device out')
  rate, device = args.gmacs_per_s, args.device
  if rate is not None and not rate > 0:
    parser.error(f'--gmacs_per_s={rate:g}; give a positive rate')
  if device and rate is None:
    parser.error(f'--device={device}: give its speed too, --gmacs_per_s')
  try:
    if args.record:
      rate, device = rate_of(args.record)
    overrides = ()
    if args.init_from:
      overrides = (
        f'--config.init_from={args.init_from}',
        '--config.init_head=new',
      )
    runs = planned(args.table, args.seeds, overrides)
    if args.only:
      names = [
        f'{r.name.split("/")[1]}-seed{s}'
        for r in RUNS[args.table]
        for s in range(args.seeds)
      ]
      if args.only not in names:
        raise ConfigError(f'--only={args.only} is none of {", ".join(names)}.')
      runs = [r for r in runs if r.record.split('/')[1] == args.only]
    if args.run == 'local':
      files.make_folder(args.workdir, f'--workdir={args.workdir}')
      return run_here(runs, args.workdir, args.jobs)
  except ConfigError as error:
    parser.error(str(error))
  if args.run == 'list':
    print(tabulate.markdown(listing(args.table, runs, rate, device)))
    print(f'\n{total(runs, rate, device)}')
  else:
    for item in runs:
      print(submit_line(args.table, item, args, rate))
  return 0


if __name__ == '__main__':
  sys.exit(cli.guard(main))
