"""One process of the runs that experiments.bench.dead_process starts.

python -m experiments.bench.dead_process_worker WAY STATE ADDRESS COUNT INDEX

Answers 'ready' where all processes are in STATE; one of them is killed then.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils

from mgjax.hosts import parallel, peers

_WARM_UP, _EXCHANGES = 50, 500


def start(way: str, address: str, count: int, index: int) -> peers.Peers | None:
  """Joins the processes of a run.

  Args:
    way: 'mgjax', or 'jax' with or without the seconds of its heartbeat.
    address: 'host:port' of process 0.
    count: Number of processes.
    index: Of this one.

  Returns:
    What `mgjax` has of the processes.
  """
  if way == 'mgjax':
    values = flags.FlagValues()
    peers.define_flags(values)
    argv = [f'--coordinator_address={address}', f'--num_processes={count}']
    values(['worker', *argv, f'--process_id={index}'])
    return parallel.start(values, {})
  heartbeat = way.removeprefix('jax').strip()
  options: dict[str, Any] = {}
  if heartbeat:
    options['heartbeat_timeout_seconds'] = int(heartbeat)
  jax.distributed.initialize(address, count, index, **options)
  multihost_utils.sync_global_devices('start')
  return None


def stay(state: str) -> None:
  """Does for ever what `dead_process` says of a state."""
  print('answer ready', flush=True)
  while state == 'sums':
    multihost_utils.process_allgather(0)
  while True:
    time.sleep(1000)


def exchange_ms(exchange: Callable[[int], Any]) -> list[float]:
  """Milliseconds of every exchange after the first ones."""
  found = []
  for i in range(_WARM_UP + _EXCHANGES):
    begin = time.perf_counter()
    exchange(i)
    found.append(1e3 * (time.perf_counter() - begin))
  return found[_WARM_UP:]


def service_exchange(count: int, index: int) -> Callable[[int], Any]:
  """What `Peers.exchange` does, by JAX's coordination service."""
  # Not public; nothing public is.
  client = jax._src.distributed.global_state.client

  def exchange(i: int) -> list[str]:
    client.key_value_set(f'exchange/{i}/{index}', str(i))
    client.wait_at_barrier(f'exchange/{i}', 60_000)
    found = dict(client.key_value_dir_get(f'exchange/{i}'))
    if i and not index:  # All have read those before.
      client.key_value_delete(f'exchange/{i - 1}')
    return [found[f'exchange/{i}/{j}'] for j in range(count)]

  return exchange


def main(way: str, state: str, address: str, count: int, index: int) -> None:
  joined = start(way, address, count, index)
  if state != 'exchange':
    if not joined:
      stay(state)
    with joined.guard():
      stay(state)
  found = exchange_ms(
    joined.exchange if joined else service_exchange(count, index)
  )
  print('answer', *found, flush=True)
  if joined:
    joined.close()
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:4], *map(int, sys.argv[4:]))
