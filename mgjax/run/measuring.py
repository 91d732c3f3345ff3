"""Starts the programs of a run, and times them apart from what they wait for.

What a launch has measured is kept for later plans, however it ends.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax

from mgjax.grids import Grid
from mgjax.hosts import parallel
from mgjax.planning import measured
from mgjax.run.clock import Marks, StepClock, Times
from mgjax.setup import programs, wall_time
from mgjax.setup.job import Job
from mgjax.step import step_cache


class Measuring(measured.Collected):
  """Seconds of the programs of a launch."""

  def __init__(self, programs: step_cache.StepCache):
    super().__init__()
    self._programs = programs

  def noting(
    self,
    kind: str,
    grid: Grid,
    report: Callable[[dict, float], None] | None = None,
  ) -> Callable[[dict, float], None]:
    """What a clock calls after a run of a program, with results and seconds.

    Args:
      kind: Of the program: see `step_cache.Program`.
      grid: Its grid.
      report: Called with the same; None: nobody else wants them.
    """
    contended = not self._programs.is_done  # Now, when the run begins.

    def note(values: dict, seconds: float) -> None:
      self.add((kind, grid), seconds, contended=contended)
      if report:
        report(values, seconds)

    return note


def start(
  job: Job,
  stack: contextlib.ExitStack,
  first_step: int,
  *,
  statistics_due: bool,
) -> tuple[step_cache.StepCache, Measuring]:
  """Starts to compile the programs of a launch.

  Args:
    job: The run.
    stack: Closes them, and keeps what was measured.
    first_step: Steps done.
    statistics_due: See `programs.lower_programs`.
  """
  found = step_cache.StepCache(
    programs.lower_programs(
      job.config,
      job.schedule,
      job.network,
      job.mesh,
      first_step,
      job.eval_steps,
      statistics_due=statistics_due,
      class_weights=job.class_weights,
    ),
    platform=parallel.platform(job.mesh),
    device_bytes=parallel.device_bytes(job.config.train.device_memory_gib),
  )
  stack.callback(found.close)
  collected = Measuring(found)
  if job.peers.is_first:
    stack.callback(
      wall_time.remember, job.config, job.schedule, job.mesh, collected, found
    )
  return found, collected


def run_batches(
  run: Callable[[Any], Any],
  batches: Iterable[Any],
  *,
  put: Callable[[Any], Any],
  after: Callable[[], None],
  note: Callable[[dict, float], None],
) -> tuple[list[Any], Times]:
  """Runs a program on batches; results stay on the device.

  Args:
    run: Starts the program on a batch.
    batches: Of the host.
    put: Moves one to the devices.
    after: Called after each; it may raise.
    note: Called with a number of the result and the seconds of each.

  Returns:
    The results, and `step_s` and `data_s` of all batches.
  """
  results: list[Any] = []
  spent = Times()
  with contextlib.closing(StepClock(spent)) as clock:
    asked = time.perf_counter()
    for batch in batches:
      got = time.perf_counter()
      batch = put(batch)
      # The host runs ahead of the device, whose memory holds every batch that
      # waits: so it waits for the result before the last.
      jax.block_until_ready(results[-2:-1])
      called = time.perf_counter()
      results.append(run(batch))
      # A number of the result is there when all of it is.
      numbers = [x for x in jax.tree.leaves(results[-1]) if not x.ndim]
      clock.dispatched(
        dict(enumerate(numbers[:1])),
        Marks(asked, got, got, called),
        note,
      )
      after()
      asked = time.perf_counter()
    clock.drain()
  return results, spent


class TimedProgram:
  """A program whose result is waited for at once.

  Attributes:
    data_s: Seconds from `free` to the next call: waits for batches.
  """

  def __init__(self, program: Callable, note: Callable[[dict, float], None]):
    """Starts to wait.

    Args:
      program: The program.
      note: Called with {} and the seconds of every run.
    """
    self.data_s = 0.0
    self._program = program
    self._note = note
    self.free()

  def __call__(self, *arguments: Any) -> Any:
    called = time.perf_counter()
    self.data_s += called - self._free_since
    result = jax.block_until_ready(self._program(*arguments))
    self._note({}, time.perf_counter() - called)
    return result

  def free(self) -> None:
    """Says that the next batch is waited for from now."""
    self._free_since = time.perf_counter()
