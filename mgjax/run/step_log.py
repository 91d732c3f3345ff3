"""Writes the metrics lines of a run and the text of its progress bar."""

import dataclasses
import math
from collections.abc import Callable

from mgjax.evaluation import results
from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.progress import Progress, duration
from mgjax.run.clock import Times
from mgjax.run.writers import NoWriter, Writer

# Share of the time without data from which on the progress names it.
_WAITS = 0.1


def position(schedule: GridSchedule, step: int) -> dict:
  """Where a run is after `step` steps: the start of every metrics line.

  Args:
    schedule: The run's schedule.
    step: Steps done, 1 or more.

  Returns:
    'step', 'epoch', 'clips', and 'T', 'H', 'W', 'batch' of the newest step.
  """
  grid = schedule(step - 1)
  return {
    'step': step,
    'epoch': schedule.epoch(step),
    'clips': schedule.clips_before(step),
    **grid._asdict(),
  }


def step_gflop(
  run_plan: dict, schedule: GridSchedule, train: str
) -> dict[Grid, float]:
  """Floating-point operations of a training step of each grid, in 1e9.

  Two for each multiply-add of the forward pass, and twice as many again in
  the backward pass: for the gradients of inputs and of parameters.

  Args:
    run_plan: The run's plan.json, with 'gmacs_per_clip' of every grid.
    schedule: Its schedule.
    train: config.optim.train.

  Returns:
    The number of each grid; {} where only a part of the network is trained: how
    much of the backward pass remains is not counted.
  """
  if train != 'all':
    return {}
  gmacs = run_plan['gmacs_per_clip']
  return {
    grid: 6 * gmacs_per_clip * grid.batch
    for grid, gmacs_per_clip in zip(schedule.grids, gmacs, strict=True)
  }


def progress_text(
  left_s: float,
  grid: Grid,
  loss: float,
  clips_per_s: float,
  wait_fraction: float,
) -> str:
  """What stands beside the number of a step, in what is left of 80 columns.

  Args:
    left_s: Seconds to the end of the run.
    grid: Of the step.
    loss: Of the step.
    clips_per_s: Clips per second of training.
    wait_fraction: Share of the time without data, 0 to 1. From a tenth on it
      stands in place of the clips.
  """
  pace = f'{clips_per_s:.0f} clips/s'
  if wait_fraction >= _WAITS:
    pace = f'no data {100 * wait_fraction:.0f} %'
  # The time first: a narrow terminal cuts the end off.
  return f'left {duration(left_s)}  {grid}  loss {loss:.3f}  {pace}'


@dataclasses.dataclass
class StepLog:
  """Turns finished steps into metrics lines and the progress text.

  Attributes:
    schedule: The run's schedule.
    writer: Gets a line for every window and every evaluation.
    bar: Shows the newest step.
    times: The run's, which others count on.
    every: Steps of a window.
    step_gflop: Of `step_gflop`; {}: not known.
    peak_gflops: Of all devices; 0: not known.
    fail: Called with what is not finite and the step.
  """

  schedule: GridSchedule
  writer: Writer | NoWriter
  bar: Progress
  times: Times
  every: int
  step_gflop: dict[Grid, float]
  peak_gflops: float
  fail: Callable[[str, int], None]

  def __post_init__(self):
    self._begin_window()

  def _begin_window(self) -> None:
    self._start = dataclasses.replace(self.times)
    self._clips = self._steps = 0

  def write_evaluation(self, step: int, result: dict) -> None:
    """Writes the line of an evaluation after `step` steps."""
    self.writer.write(
      {
        **position(self.schedule, step),
        'train_s': self.times.train_s,
        'wait_fraction': self.times.wait_fraction,
        **{
          f'eval_{k}': result[k]
          for k in (*results.METRICS, 'num_scored')
          if k in result
        },
      }
    )

  def reporter(
    self, step: int, lr: float, groups: int, ids_crc32: int
  ) -> Callable[[dict, float], None]:
    """Returns what the clock calls once `step` has finished."""
    grid = self.schedule(step)
    done, total = step + 1, self.schedule.total_steps

    def report_step(values: dict, step_s: float) -> None:
      self._clips += grid.batch
      self._steps += 1
      recent = self.times - self._start
      # Read up to two steps late (StepClock), so that the device never waits
      # for it; checkpoints wait for all steps before them.
      for name, text in (('loss', 'loss'), ('grad_norm', 'gradient norm')):
        if not math.isfinite(values[name]):
          self.fail(f'The {text}', step)
      clips_per_s = self._clips / max(recent.train_s, 1e-9)
      left = self.times.train_s * (total - done) / done
      self.bar.update(
        done,
        progress_text(
          left, grid, values['loss'], clips_per_s, recent.wait_fraction
        ),
      )
      if done % self.every and done != total:
        return
      rate = {}
      if self.step_gflop:  # Of this step alone, hence of its grid.
        rate['gflops'] = self.step_gflop[grid] / max(step_s, 1e-9)
        if self.peak_gflops:
          rate['mfu'] = rate['gflops'] / self.peak_gflops
      self.writer.write(
        {
          **position(self.schedule, done),
          'train_s': self.times.train_s,
          'wait_fraction': recent.wait_fraction,
          'compile_wait_s': self.times.compile_s,
          'step_s': step_s,
          'steps_per_s': self._steps / max(recent.train_s, 1e-9),
          'clips_per_s': clips_per_s,
          **rate,
          'lr': lr,
          'bn_groups': groups,
          # Two runs that show the same number saw the same videos.
          'ids_crc32': ids_crc32,
          **values,
        }
      )
      self._begin_window()

    return report_step
