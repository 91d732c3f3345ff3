"""How long the other processes of a run live on after one has died.

python -m experiments.bench.dead_process

starts processes on this machine, kills one with SIGKILL and waits until all
others have ended, in three ways:

  mgjax   mgjax.hosts: connections between the processes, beside JAX's service
  jax 10  JAX's coordination service alone, with a time-out of 10 s
  jax     the same with JAX's default time-out

The others are at one of two things:

  sums    They add numbers over all devices, one sum after the other. On CPUs a
          sum fails where a process of it is gone.
  waits   They wait for something that never ends, as a sum on GPUs and TPUs
          does that has lost a process.

Beside that it times the exchange of a value between all processes: ours, and by
the service's `key_value_set`, `wait_at_barrier` and `key_value_dir_get`.

The result goes to experiments/records/dead_process/, or to that of --name: no
record is replaced.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import concurrent.futures
import functools
import itertools
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from experiments import tabulate
from experiments.runs import record
from mgjax import cli, environment

TABLE = 'dead_process'
WAYS = ('mgjax', 'jax 10', 'jax')
STATES = ('sums', 'waits')

_SETTLE_S = 1.0  # From the last 'ready' to the kill.
_ALONE_S = 3.0  # So long after it nothing else is started.
_SAID_CHARS = 400


class Run:
  """The processes of one run; what they say goes into files."""

  def __init__(self, folder: pathlib.Path, way: str, state: str, count: int):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    self._errors = [folder / f'{i}.txt' for i in range(count)]
    self.processes = []
    for i, path in enumerate(self._errors):
      arguments = [way, state, address, str(count), str(i)]
      with path.open('w') as errors:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, '-m', f'{__spec__.name}_worker', *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {'JAX_PLATFORMS': 'cpu'},
          )
        )

  def answers(self) -> list[list[str]]:
    """The words that each process prints; none: it has ended."""
    return [
      next((s.split()[1:] for s in p.stdout if s.startswith('answer ')), [])
      for p in self.processes
    ]

  def said(self, index: int) -> str:
    return self._errors[index].read_text(errors='replace')

  def close(self) -> None:
    for process in self.processes:
      process.kill()
      process.wait()
      process.stdout.close()


def kill(
  way: str, state: str, count: int, victim: int, limit_s: float, alone: Any
) -> dict[str, Any]:
  """Kills a process and waits for the ends of the others.

  Args:
    way: One of `WAYS`.
    state: One of `STATES`.
    count: Number of processes.
    victim: Number of the one that is killed.
    limit_s: Seconds after which the others are killed, too.
    alone: A lock, held from the start until `_ALONE_S` after the kill.

  Returns:
    The seconds until the last of the others had ended (None: not in time), and
    what each of them said and ended with.
  """
  with tempfile.TemporaryDirectory() as folder:
    with alone:
      run = Run(pathlib.Path(folder), way, state, count)
      try:
        if not all(run.answers()):
          raise cli.RunError(f'{way}: {run.said(0)[-_SAID_CHARS:]}')
        time.sleep(_SETTLE_S)
        begin = time.monotonic()
        run.processes[victim].kill()
        ended = dict(_ends(run, victim, begin, _ALONE_S))
      except BaseException:
        run.close()
        raise
    ended |= _ends(run, victim, begin, limit_s)
    run.close()
    return {
      'way': way,
      'state': state,
      'count': count,
      'victim': victim,
      'seconds': max(ended.values()) if len(ended) == count - 1 else None,
      'survivors': [
        {
          'index': i,
          'seconds': ended.get(i),
          'code': run.processes[i].returncode if i in ended else None,
          'names': names(run.said(i), victim),
          'said': run.said(i)[:_SAID_CHARS],
        }
        for i in range(count)
        if i != victim
      ],
    }


def _ends(
  run: Run, victim: int, begin: float, limit_s: float
) -> Iterator[tuple[int, float]]:
  """Numbers of the processes that end, and after how many seconds."""
  left = {i: p for i, p in enumerate(run.processes) if i != victim}
  while left and time.monotonic() - begin < limit_s:
    for i, process in list(left.items()):
      if process.poll() is not None:
        del left[i]
        yield i, time.monotonic() - begin
    time.sleep(0.005)


def names(said: str, victim: int) -> bool:
  """Whether somebody says which process it was that died."""
  ours = rf'process {victim} of \d+ \(.*\) has died'
  # JAX: 'The following tasks are unhealthy (stopped sending heartbeats):', and
  # their numbers, one a line.
  service = rf'heartbeats\):\n(?:\d+\n)*?{victim}\n'
  return bool(re.search(f'{ours}|{service}', said))


def exchange(way: str, count: int) -> dict[str, Any]:
  """Times exchanges of a value between all processes."""
  with tempfile.TemporaryDirectory() as folder:
    run = Run(pathlib.Path(folder), way, 'exchange', count)
    try:
      times = [float(ms) for ms in run.answers()[0]]
      for process in run.processes:
        process.wait(60)
    finally:
      run.close()
  return {'way': way, 'count': count, 'median_ms': statistics.median(times)}


def measure(repeats: int, limit_s: float, jobs: int) -> dict[str, list]:
  """Runs everything; ways take turns, so that load meets all of them alike."""
  alone = threading.Lock()
  cases: list[Any] = [
    (way, state, count, victim)
    for _, state, count in itertools.product(range(repeats), STATES, (2, 3))
    for victim in (0, count - 1)
    for way in WAYS
  ]
  exchanges = [
    exchange(way, count)
    for _, count, way in itertools.product(range(repeats), (2, 3, 8), WAYS[::2])
  ]
  print(f'{len(exchanges)} exchanges timed', file=sys.stderr, flush=True)
  deaths = []
  # Most of their time they wait, see `alone`.
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    for death in pool.map(
      lambda c: kill(*c, limit_s=limit_s, alone=alone), cases
    ):
      deaths.append(death)
      print(
        f'{len(deaths)} of {len(cases)}: {death["way"]}, {death["state"]}: '
        f'{death["seconds"]}',
        file=sys.stderr,
        flush=True,
      )
  return {'deaths': deaths, 'exchanges': exchanges}


def format_report(result: dict[str, Any]) -> str:
  """README.md of a record."""
  machine = result['machine']
  return (
    '# After the death of a process\n\n'
    f'`{result["command"]}`, commit {result["commit"][:12]}: '
    f'{result["repeats"]} times each. Seconds from SIGKILL to the end of the '
    'last other process: median (least to most). Then in how many of these '
    'runs all others said which process had died, and what they ended with. '
    '*jax* has a time-out of 100 s by default.\n\n'
    f'{machine["cpu"]}, {machine["num_cpus"]} cores, Python '
    f'{machine["python"]}, JAX {machine["jax"]}; load average '
    f'{record.load_average_of(result)[0]:.1f}.\n\n'
    f'{tabulate.markdown(deaths_table(result))}\n\n'
    'An exchange of a value between all processes, in ms: median (least to '
    f'most) of the medians of {result["repeats"]} runs.\n\n'
    f'{tabulate.markdown(exchange_table(result))}\n'
  )


def deaths_table(result: dict[str, Any]) -> tabulate.Table:
  def cells(found: list[dict]) -> tuple[str, ...]:
    others = [other for death in found for other in death['survivors']]
    named = sum(all(o['names'] for o in d['survivors']) for d in found)
    codes = sorted({_ending(o['code']) for o in others})
    seconds = [d['seconds'] for d in found]
    return (_range(seconds), f'{named} of {len(found)}', ', '.join(codes))

  return tabulate.Table(
    TABLE,
    ('the others', 'processes', 'killed', 'way', 'seconds', 'named', 'end'),
    _rows(result['deaths'], ('state', 'count', 'victim', 'way'), cells),
  )


def exchange_table(result: dict[str, Any]) -> tabulate.Table:
  return tabulate.Table(
    'exchange',
    ('processes', 'way', 'ms'),
    _rows(
      result['exchanges'],
      ('count', 'way'),
      lambda found: (_range([e['median_ms'] for e in found]),),
    ),
  )


def _rows(
  entries: list[dict], keys: tuple[str, ...], cells: Callable
) -> list[tuple[str, ...]]:
  """A row for all entries that have the same values of `keys`."""
  groups: dict[tuple, list[dict]] = {}
  for entry in entries:
    groups.setdefault(tuple(entry[key] for key in keys), []).append(entry)
  return [(*map(str, group), *cells(found)) for group, found in groups.items()]


def _range(values: list[float | None]) -> str:
  if None in values:
    return f'{values.count(None)} of {len(values)} did not end'
  middle, least, most = statistics.median(values), min(values), max(values)
  return f'{middle:.2f} ({least:.2f} to {most:.2f})'


def _ending(code: int | None) -> str:
  if code is None:
    return 'none'
  return signal.Signals(-code).name if code < 0 else f'code {code}'


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('repeats', int, 5, 'Kills of each kind.', 1)
  flag('limit_s', int, 400, 'Seconds to wait for the others.', 1)
  flag('jobs', int, 8, 'Runs at a time.', 1)
  flag('name', str, TABLE, 'The folder of the record; it is not there yet.')
  flag('records', str, str(record.RECORDS), 'Folder of records.')


def main(args: flags.FlagValues) -> None:
  """Measures, and writes the record."""
  out = pathlib.Path(args.records) / args.name
  benchmark = record.Benchmark(str(out), 'result', __spec__.name)
  found = measure(args.repeats, args.limit_s, args.jobs)
  result = benchmark.write(
    repeats=args.repeats, machine=environment.describe(), **found
  )
  (out / 'README.md').write_text(format_report(result), encoding='utf-8')


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags, takes_config=False))
