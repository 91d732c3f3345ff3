r"""Every run behind a table: what it is, how long it takes, how to start it.

python -m experiments.runs.launch --table=kinetics400_accuracy
python -m experiments.runs.launch --table=moving_digits --seeds=3 --run=local
python -m experiments.runs.launch --table=epoch_factors --seeds=3 --run=local \
  --jobs=2
python -m experiments.runs.launch --table=ssv2_accuracy --run=slurm \
  --gmacs_per_s=40000 --device='8 x H100'

Runs that have a record in experiments/records are skipped; --records names
another folder, whose records `experiments.runs.compare` compares with those.
Hours are those of training steps: 3 x the plan's multiply-adds (a backward pass
takes twice the forward pass's) over a rate, which is yours (--gmacs_per_s) or
that of a record
(--record). The published results on SSv2 and Charades, and those of
models on segments, start from other weights: --init_from names them.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import concurrent.futures
import contextlib
import functools
import itertools
import os
import pathlib
import shlex
import subprocess
import sys
import threading

from absl import flags
from etils import epath

from experiments import tabulate
from experiments.runs import catalogue, planned, record
from experiments.runs.planned import Planned
from mgjax import cli, environment, files
from mgjax.cli import ConfigError


def listing(
  table: str, runs: list[Planned], rate: float | None, device: str
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


def total(runs: list[Planned], rate: float | None, device: str) -> str:
  """How many runs there are, and how long they take together."""
  gmacs = sum(item.gmacs for item in runs)
  text = f'all {len(runs)}: {1e9 * gmacs:.3g} multiply-adds'
  if rate:
    text += f', {sum(item.hours(rate) for item in runs):,.2f} hours'
    text += f' on {device}' if device else ''
  return text


def command(table: str, item: Planned, args: flags.FlagValues) -> str:
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
      *([f'--records={args.records}'] if args.records else []),
      *([f'--init_from={args.init_from}'] if args.init_from else []),
    ]
  )


def submit_line(
  table: str, item: Planned, args: flags.FlagValues, rate: float | None
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


def _make_record(
  item: Planned,
  folder: epath.Path,
  log: bool,
  records: pathlib.Path | None,
) -> None:
  """Makes a record; with `log`, the training prints into FOLDER.log."""
  out = contextlib.nullcontext()
  if log:
    path = folder.with_name(f'{folder.name}.log')
    path.parent.mkdir(parents=True, exist_ok=True)
    out = path.open('a')
  with out as file:
    record.run(
      item.record,
      item.config,
      workdir=folder,
      overrides=item.run.overrides,
      test_split=item.run.test_split,
      is_cold=item.run.is_cold,
      records=records,
      log=file,
    )


def run_here(
  runs: list[Planned],
  workdir: epath.Path,
  num_jobs: int,
  records: pathlib.Path | None = None,
) -> int:
  """Makes records on this machine; a failure ends it after the runs under way.

  Args:
    runs: In the order in which they start.
    workdir: Folder of all runs.
    num_jobs: Runs at a time, each on CPUs of its own (macOS cannot do that), so
      that they disturb each other little; each prints into
      WORKDIR/EXPERIMENT/NAME.log then.
    records: Folder of the records; None: the repository's.

  Returns:
    The exit code of the first that failed, else 0.
  """
  cpus = environment.cpus()
  slots = itertools.count()
  failed = threading.Event()

  def pin() -> None:
    # Of this thread, and so of the processes that it starts.
    if hasattr(os, 'sched_setaffinity'):  # Not on macOS.
      os.sched_setaffinity(0, cpus[next(slots) :: num_jobs])

  def make(item: Planned) -> None:
    # A thread may take the next run before the main one sees that its last
    # run has failed.
    if failed.is_set():
      return
    try:
      _make_record(item, workdir / item.record, num_jobs > 1, records)
    except BaseException:
      failed.set()
      raise

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


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('table', tuple(catalogue.RUNS), None, 'Whose runs.')
  flags.mark_flag_as_required('table', flag_values=values)
  flag('seeds', int, 1, "How many, from 0 or the run's first.", 1)
  flag('only', str, None, 'Of these, the run of this name: NAME-seedN.')
  text = 'List them, run them here, or print submit commands.'
  flag('run', ('list', 'local', 'slurm', 'tpu'), 'list', text)
  flag('workdir', str, 'runs', 'Folder of all runs.')
  text = "Folder of records; by default the repository's."
  flag('records', str, None, text)
  text = 'local: runs at a time, each on a share of the CPUs.'
  flag('jobs', int, 1, text, 1, environment.num_cpus())
  text = 'config.init_from of all runs, with a new classifier.'
  flag('init_from', str, None, text)
  text = '1e9 multiply-adds per second in training, of all devices together.'
  flag('gmacs_per_s', float, None, text, 1e-9)
  flag('record', str, None, 'A record whose speed is taken instead.')
  flag('device', str, '', 'Hardware that --gmacs_per_s is about.')
  text = 'slurm: GPUs of a run, with 8 CPUs each.'
  flag('gpus', int, 8, text, 1)
  flag('tpu', str, 'mgjax', 'tpu: name of the slice.')
  flag('zone', str, None, "tpu: its zone; by default gcloud's.")


def _check(args: flags.FlagValues) -> None:
  """Refuses flags that contradict each other.

  Raises:
    ConfigError: Some do.
  """
  if args.run == 'tpu' and not files.is_remote(epath.Path(args.workdir)):
    raise ConfigError(
      f'--workdir={args.workdir}: the workers of a slice have disks of their '
      'own; give a bucket, gs://...'
    )
  if args.gmacs_per_s is not None and args.record:
    raise ConfigError('give one of --gmacs_per_s and --record')
  if args.device and args.record:
    raise ConfigError('--record names its own hardware; leave --device out')
  if args.device and args.gmacs_per_s is None:
    raise ConfigError(
      f'--device={args.device}: give its speed too, --gmacs_per_s'
    )


def _rate(args: flags.FlagValues) -> tuple[float | None, str]:
  """1e9 multiply-adds per second of training, and the hardware it is about.

  Raises:
    ConfigError: The record is not known.
  """
  if args.record:
    return planned.rate_of(args.record)
  return args.gmacs_per_s, args.device


def _records(args: flags.FlagValues) -> pathlib.Path | None:
  """Folder of records; None: the repository's."""
  return pathlib.Path(args.records) if args.records else None


def _chosen(args: flags.FlagValues) -> list[Planned]:
  """The runs that the flags ask for and that have no record.

  Raises:
    ConfigError: --only names none.
  """
  overrides: tuple[str, ...] = ()
  if args.init_from:
    overrides = (
      f'--config.init_from={args.init_from}',
      '--config.init_head=new',
    )
  runs = planned.runs_to_make(args.table, args.seeds, overrides, _records(args))
  if not args.only:
    return runs
  names = [
    f'{run.name.split("/")[1]}-seed{run.first_seed + number}'
    for run in catalogue.RUNS[args.table]
    for number in range(args.seeds)
  ]
  if args.only not in names:
    raise ConfigError(f'--only={args.only} is none of {", ".join(names)}.')
  return [run for run in runs if run.record.split('/')[1] == args.only]


def main(args: flags.FlagValues) -> None:
  """Lists, submits or makes the runs that the flags ask for.

  Raises:
    ConfigError: The flags cannot work.
    SystemExit: A run failed; it has the run's exit code.
  """
  _check(args)
  rate, device = _rate(args)
  runs = _chosen(args)
  if args.run == 'local':
    workdir = epath.Path(args.workdir)
    files.make_folder(workdir, f'--workdir={workdir}')
    if args.records:
      files.make_folder(args.records, f'--records={args.records}')
    if code := run_here(runs, workdir, args.jobs, _records(args)):
      sys.exit(code)  # The code of a run: 75 asks to start this again.
  elif args.run == 'list':
    print(tabulate.markdown(listing(args.table, runs, rate, device)))
    print(f'\n{total(runs, rate, device)}')
  else:
    for item in runs:
      print(submit_line(args.table, item, args, rate))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
