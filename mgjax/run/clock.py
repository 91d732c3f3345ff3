"""Times the steps of a run, which the host hands to the device ahead."""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax


@dataclasses.dataclass
class Times:
  """Seconds of a run by what the device did.

  All but those "of eval_s" add up to the run's time.

  Attributes:
    step_s: It computed training steps.
    data_s: It waited for a batch.
    compile_s: It waited for a program.
    other_s: It waited for anything else in the loop (Python, logging).
    eval_s: Evaluation, batch-norm statistics included.
    checkpoint_s: The loop was held up by checkpoints.
    statistics_s: Of eval_s, batch-norm statistics were computed.
    eval_data_s: Of eval_s, a batch was waited for.
    eval_compile_s: Of eval_s, a program was waited for.
  """

  step_s: float = 0.0
  data_s: float = 0.0
  compile_s: float = 0.0
  other_s: float = 0.0
  eval_s: float = 0.0
  checkpoint_s: float = 0.0
  statistics_s: float = 0.0
  eval_data_s: float = 0.0
  eval_compile_s: float = 0.0

  def add_evaluation(
    self, total_s: float, compile_s: float, data_s: float
  ) -> None:
    """Adds an evaluation, or its statistics, and what of it was waiting."""
    self.eval_s += total_s
    self.eval_compile_s += compile_s
    self.eval_data_s += data_s

  @property
  def breakdown(self) -> dict[str, float]:
    """The run's time by what it was for: parts, and 'total_s', their sum.

    The parts are those of `planning.wall_time.PARTS`, waits for data, and
    'other_s'.
    """
    evaluation_s = (
      self.eval_s - self.statistics_s - self.eval_data_s - self.eval_compile_s
    )
    parts = {
      'steps_s': self.step_s,
      'compilation_s': self.compile_s + self.eval_compile_s,
      'statistics_s': self.statistics_s,
      'evaluation_s': evaluation_s,
      'checkpoints_s': self.checkpoint_s,
      'data_s': self.data_s + self.eval_data_s,
      'other_s': self.other_s,
    }
    return parts | {'total_s': sum(parts.values())}

  @property
  def train_s(self) -> float:
    """Training time: without compilation, evaluation and checkpoints."""
    return self.step_s + self.data_s + self.other_s

  @property
  def wait_fraction(self) -> float:
    """Share of the training time in which the device waited for data."""
    return self.data_s / self.train_s if self.train_s else 0.0

  def __sub__(self, other: 'Times') -> 'Times':
    return Times(
      *(
        getattr(self, f.name) - getattr(other, f.name)
        for f in dataclasses.fields(self)
      )
    )


class Marks(NamedTuple):
  """When the loop came how far with a step: readings of time.perf_counter()."""

  asked_batch: float
  got_batch: float
  got_program: float
  called: float  # When the program was called.


class StepClock:
  """Times steps that may run asynchronously.

  On accelerators the loop hands steps to the device before earlier ones have
  finished, so the host's own waiting says little. A thread notes when each
  step's result is there; a wait for data counts only from the end of the step
  before.
  """

  MAX_IN_FLIGHT = 2  # The device works at one while it is handed the next.

  def __init__(self, times: Times):
    self.times = times
    self._queue = collections.deque()
    self._watcher = concurrent.futures.ThreadPoolExecutor(1, 'step-clock')
    self._free_since = time.perf_counter()

  def dispatched(
    self,
    metrics: dict,
    marks: Marks,
    report: Callable[[dict, float], None],
  ) -> None:
    """Registers a step just handed to the device.

    Args:
      metrics: Its results, possibly still being computed.
      marks: Of the step.
      report: Called with the results as Python floats and the step's seconds
        on the device, once it has finished.
    """
    finished = self._watcher.submit(_finish_time, metrics)
    self._queue.append((finished, metrics, marks, report))
    # Results are read late, when they are there: reading those of the newest
    # step would keep the device waiting for Python after every step.
    while len(self._queue) > self.MAX_IN_FLIGHT:
      self._harvest()

  def drain(self) -> None:
    """Waits for all steps."""
    while self._queue:
      self._harvest()

  def restart(self) -> None:
    """Marks the device as free from now: what came before was not a step."""
    self._free_since = time.perf_counter()

  def close(self) -> None:
    self._watcher.shutdown()

  def _harvest(self) -> None:
    future, metrics, step, report = self._queue.popleft()
    finished = future.result()
    free = self._free_since
    # What the host waited for while the device was still busy cost nothing.
    data_s = max(0.0, step.got_batch - max(step.asked_batch, free))
    compile_s = max(0.0, step.got_program - max(step.got_batch, free))
    step_s = finished - max(step.called, free)
    self.times.data_s += data_s
    self.times.compile_s += compile_s
    self.times.step_s += step_s
    # The rest, so that the times add up to the run's, whatever was forgotten.
    self.times.other_s += finished - free - step_s - data_s - compile_s
    self._free_since = finished
    report({k: float(v) for k, v in metrics.items()}, step_s)


def _finish_time(metrics: dict) -> float:
  jax.block_until_ready(metrics)
  return time.perf_counter()
