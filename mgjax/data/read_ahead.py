"""Makes batches ahead of their use, in threads or in processes."""

import contextlib
import gc
import multiprocessing
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import cloudpickle
import grain
import ml_collections
from absl import flags

from mgjax import environment
from mgjax.cli import RunError
from mgjax.data import child_process

# Deaths without a batch in between that end a run: not the machine's fault.
_MAX_DEATHS = 3


def num_workers(data: ml_collections.ConfigDict) -> int:
  """Threads that decode: as configured, else one per core."""
  return data.num_workers or environment.num_cpus()


def num_together(data: ml_collections.ConfigDict) -> int:
  """How many batches are made at the same time, while one is waited for."""
  processes = data.worker_processes or 1
  reading = _reading(data, processes)
  return processes * min(reading.num_threads, reading.prefetch_buffer_size + 1)


def num_ahead(data: ml_collections.ConfigDict) -> int:
  """How many batches can be ready or under way, at most."""
  processes = data.worker_processes or 1
  # A process holds three more: waited for, handed over, in its queue.
  return processes * (_reading(data, processes).prefetch_buffer_size + 3)


def read_ahead(
  make_batch: Callable[[int], dict],
  numbers: range,
  data: ml_collections.ConfigDict,
  *,
  name: str = 'batch',
) -> Iterator[dict]:
  """Yields make_batch(number) for all numbers, in order.

  Threads are enough on most machines: decoding, resizing and copying release
  Python's lock. With processes, the batches come through shared memory, many
  cores do not compete for that lock, and a decoder that crashes does not take
  the run with it.

  Args:
    make_batch: Depends on nothing but its argument; processes get a copy.
    numbers: A range.
    data: config.data. num_workers are the threads of all processes together,
      prefetch_batches the batches ready or under way in all of them.
    name: What a number is, for errors: 'step'.

  Raises:
    RunError: Processes die again and again.
  """
  if data.worker_processes:
    yield from _in_processes(make_batch, numbers, data, name)
  else:
    batches = grain.MapDataset.range(numbers.start, numbers.stop).map(
      make_batch
    )
    yield from batches.to_iter_dataset(_reading(data, 1))


def _reading(
  data: ml_collections.ConfigDict, processes: int
) -> grain.ReadOptions:
  """Each process's share of the threads and of the batches ahead."""
  return grain.ReadOptions(
    num_threads=-(-num_workers(data) // processes),
    prefetch_buffer_size=-(-data.prefetch_batches // processes),
  )


def _in_processes(
  make_batch: Callable[[int], dict],
  numbers: range,
  data: ml_collections.ConfigDict,
  name: str,
) -> Iterator[dict]:
  """`read_ahead` in processes; where one has died, all are started anew."""
  if not flags.FLAGS.is_parsed():  # Grain asks for flags of its own there.
    flags.FLAGS.mark_as_parsed()
  child_process.before_start()
  processes = data.worker_processes
  done = deaths = 0
  while done < len(numbers):
    batches = grain.MapDataset.range(numbers[done], numbers.stop).map(
      make_batch
    )
    iterator = iter(
      batches.to_iter_dataset(_reading(data, processes)).mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=processes, per_worker_buffer_size=1
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
      # Grain has no class of its own for this.
      if 'terminated unexpectedly' not in str(error):
        raise
      deaths += 1
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
    if deaths == _MAX_DEATHS:
      ahead = numbers[done : done + num_ahead(data)]
      raise RunError(
        f'{deaths} data workers have died in a row, making batches from '
        f'{name} {ahead[0]} to {ahead[-1]}. '
        + _explain(_find_crash(make_batch, ahead), name)
      )


def _start(index: int, count: int) -> None:
  del index, count
  child_process.start()


class _Crash(NamedTuple):
  """What a process died of."""

  number: int  # Of the batch.
  video: str  # Id of its newest video; '': it had not come to one.
  how: str


# Where a crash is looked for, this tells the parent of every video.
_tell: Callable[[str], None] | None = None


def decoding(video: str) -> None:
  """To be called with a video's id before it is decoded."""
  if _tell:
    _tell(video)


def _find_crash(
  make_batch: Callable[[int], dict], numbers: range
) -> _Crash | None:
  """Makes batches once more, in one process and thread: what does it die of?

  Returns:
    What was made when it died; None: it did not die.
  """
  print('\ndata workers die; looking for the reason', file=sys.stderr)
  context = multiprocessing.get_context('spawn')
  receiver, sender = context.Pipe(duplex=False)
  # Schedules hold functions, which pickle alone refuses.
  task = cloudpickle.dumps(make_batch)
  child_process.before_start()
  process = context.Process(
    target=_make_and_tell, args=(task, numbers, sender), daemon=True
  )
  process.start()
  sender.close()  # So that the child's end is the end.
  number, video = numbers[0], ''
  try:
    with contextlib.suppress(EOFError):
      while True:
        number, video = receiver.recv()
    process.join()
  finally:
    process.kill()
  code = process.exitcode
  if not code:
    return None
  how = signal.Signals(-code).name if code < 0 else f'exit code {code}'
  return _Crash(number, video, how)


def _make_and_tell(task: bytes, numbers: range, sender: Connection) -> None:
  """Makes batches and tells what comes next before it can go wrong."""
  global _tell
  child_process.start()
  make_batch = pickle.loads(task)
  for number in numbers:
    sender.send((number, ''))
    _tell = lambda video, number=number: sender.send((number, video))
    # An exception is no crash: the run would have ended with it.
    with contextlib.suppress(Exception):
      make_batch(number)


def _explain(crash: _Crash | None, name: str) -> str:
  """What is known of the deaths, and what helps."""
  memory = (
    'fewer data.worker_processes or data.prefetch_batches take less memory'
  )
  if not crash:
    return (
      'A process that makes them one after the other lives, so that memory has '
      f'probably run out: {memory}'
    )
  video = f', at video {crash.video!r}' if crash.video else ''
  text = (
    f'A process that makes nothing else dies too ({crash.how}) in '
    f'{name} {crash.number}{video}. If the decoder crashes, leave that video '
    'out of the data set; data.worker_processes=0 does not help: the run would '
    'crash with it'
  )
  if crash.how == 'SIGKILL':  # Of the kernel, which decoders do not send.
    text += f'. If memory has run out, {memory}'
  return text
