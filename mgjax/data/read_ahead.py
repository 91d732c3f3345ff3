"""Makes batches ahead of their use, in threads or in processes."""

import sys
from collections.abc import Callable, Iterator

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


def read_ahead(
  make_batch: Callable[[int], dict], count: int, data: ml_collections.ConfigDict
) -> Iterator[dict]:
  """Yields make_batch(0), ..., make_batch(count - 1).

  Threads are enough on most machines: decoding, resizing and copying release
  Python's lock. With processes, the batches come through shared memory, many
  cores do not compete for that lock, and a decoder that crashes does not take
  the run with it.

  Args:
    make_batch: Depends on nothing but its argument; processes get a copy.
    count: How many batches.
    data: config.data. num_workers are the threads of all processes together,
      prefetch_batches the batches ready or under way in all of them.

  Raises:
    RunError: Processes die again and again.
  """
  if data.worker_processes:
    yield from _in_processes(make_batch, count, data)
  else:
    options = grain.ReadOptions(
      num_threads=num_workers(data), prefetch_buffer_size=data.prefetch_batches
    )
    batches = grain.MapDataset.range(count).map(make_batch)
    yield from batches.to_iter_dataset(options)


def _in_processes(
  make_batch: Callable[[int], dict], count: int, data: ml_collections.ConfigDict
) -> Iterator[dict]:
  """`read_ahead` in processes; where one has died, all are started anew."""
  if not flags.FLAGS.is_parsed():  # Grain asks for flags of its own there.
    flags.FLAGS.mark_as_parsed()
  processes = data.worker_processes
  in_each = lambda number: -(-number // processes)
  reading = grain.ReadOptions(
    num_threads=in_each(num_workers(data)),
    prefetch_buffer_size=in_each(data.prefetch_batches),
  )
  done = deaths = 0
  while done < count:
    batches = grain.MapDataset.range(done, count).map(make_batch)
    iterator = iter(
      batches.to_iter_dataset(reading).mp_prefetch(
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
      if deaths == _MAX_DEATHS:
        raise RunError(
          f'{deaths} data workers have died in a row: out of memory, or of a '
          'video that the decoder crashes on; fewer data.worker_processes or '
          'data.prefetch_batches take less memory'
        ) from error
      print('\na data worker has died; replaced', file=sys.stderr)
    finally:
      iterator.close()


def _start(index: int, count: int) -> None:
  del index, count
  child_process.start()
