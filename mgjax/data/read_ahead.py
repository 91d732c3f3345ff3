"""Makes batches ahead of their use, in threads or in processes."""

import dataclasses
import gc
import re
import signal
import sys
from collections.abc import Callable, Iterator

import grain
from absl import flags

from mgjax import environment
from mgjax.data import child_process
from mgjax.errors import RunError

# Deaths without a batch in between that end a run: not the machine's fault.
_MAX_DEATHS = 3

# What Grain says of a process that has died. It has no class of its own for
# this error.
_DEATH = re.compile(r'terminated unexpectedly with exit code (-?\d+)')


@dataclasses.dataclass(frozen=True)
class Workers:
  """Who makes the batches, and how far ahead.

  Attributes:
    num_workers: Threads that decode, of all processes together; 0: one per
      core.
    worker_processes: Processes that have these threads; 0: this one alone.
    prefetch_batches: Batches that are ready or under way, in all processes
      together; at least 1.
  """

  num_workers: int
  worker_processes: int
  prefetch_batches: int

  @property
  def num_threads(self) -> int:
    """Threads that decode: as configured, else one per core."""
    return self.num_workers or environment.num_cpus()

  @property
  def num_processes(self) -> int:
    """Processes that decode, this one included where it is the only one."""
    return self.worker_processes or 1

  @property
  def num_together(self) -> int:
    """How many batches are made at the same time, while one is waited for."""
    reading = self.reading
    return self.num_processes * min(
      reading.num_threads, reading.prefetch_buffer_size + 1
    )

  @property
  def num_ahead(self) -> int:
    """How many batches can be ready or under way, at most."""
    # A process holds three more: waited for, handed over, in its queue.
    return self.num_processes * (self.reading.prefetch_buffer_size + 3)

  @property
  def reading(self) -> grain.ReadOptions:
    """Each process's share of the threads and of the batches ahead."""
    return grain.ReadOptions(
      num_threads=-(-self.num_threads // self.num_processes),
      prefetch_buffer_size=-(-self.prefetch_batches // self.num_processes),
    )


def read_ahead(
  make_batch: Callable[[int], dict],
  numbers: range,
  workers: Workers,
  *,
  name: str = 'batch',
) -> Iterator[dict]:
  """Yields make_batch(number) for all numbers, in order.

  Threads are enough on most machines: decoding, resizing and copying release
  Python's lock. With processes, the batches come through shared memory, many
  cores do not compete for that lock, and a process that dies now and then (of
  a lack of memory, by a hand) does not take the run with it.

  Args:
    make_batch: Depends on nothing but its argument; processes get a copy.
    numbers: A range.
    workers: Who makes the batches.
    name: What a number is, for errors: 'step'.

  Raises:
    RunError: Processes die again and again.
  """
  if workers.worker_processes:
    yield from _in_processes(make_batch, numbers, workers, name)
  else:
    batches = grain.MapDataset.range(numbers.start, numbers.stop).map(
      make_batch
    )
    yield from batches.to_iter_dataset(workers.reading)


def _in_processes(
  make_batch: Callable[[int], dict],
  numbers: range,
  workers: Workers,
  name: str,
) -> Iterator[dict]:
  """`read_ahead` in processes; where one has died, all are started anew."""
  if not flags.FLAGS.is_parsed():  # Grain asks for flags of its own there.
    flags.FLAGS.mark_as_parsed()
  child_process.before_start()
  done = deaths = 0
  while done < len(numbers):
    # From the first batch that has not come: a batch is a function of its
    # number, so nothing is lost or made twice in the eyes of the caller.
    batches = grain.MapDataset.range(numbers[done], numbers.stop).map(
      make_batch
    )
    iterator = iter(
      batches.to_iter_dataset(workers.reading).mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=workers.worker_processes, per_worker_buffer_size=1
        ),
        worker_init_fn=_start,
      )
    )
    try:
      for batch in iterator:
        yield batch
        done += 1
        deaths = 0
    except RuntimeError as error:
      death = _DEATH.search(str(error))
      if not death:
        raise
      deaths += 1
      cause = _cause(int(death[1]))
      if deaths < _MAX_DEATHS:
        print('\na data worker has died; replaced', file=sys.stderr)
    finally:
      iterator.close()
      # Grain's queues lie in reference cycles. Where Python frees them in the
      # middle of a call to its resource tracker, that call is re-entered and
      # warns that semaphores may leak (python/cpython issue 109629): free them
      # here, between such calls.
      del iterator
      gc.collect()
    # Out here, where no traceback keeps the iterator.
    if deaths == _MAX_DEATHS:
      ahead = numbers[done : done + workers.num_ahead]
      raise RunError(
        f'{deaths} data workers have died in a row, making batches from '
        f'{name} {ahead[0]} to {ahead[-1]}; {cause}'
      )


def _start(index: int, count: int) -> None:
  del index, count
  child_process.start()


def _cause(exit_code: int) -> str:
  """What a process has probably died of, and what helps."""
  how = f'exit code {exit_code}'
  if exit_code < 0:
    how = signal.Signals(-exit_code).name
  if how == 'SIGKILL':  # Of the kernel, which decoders do not send.
    return (
      'the last one was killed (SIGKILL), so memory has probably run out: '
      'fewer data.worker_processes or data.prefetch_batches take less memory'
    )
  return (
    f'the last one ended with {how}, so the decoder probably crashes on a '
    'video of these: leave that video out of the data set. '
    'data.worker_processes=0 does not help: the run would crash with it'
  )
