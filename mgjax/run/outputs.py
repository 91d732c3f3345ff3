"""Opens what a run writes and shows: files, profile, progress bar, clock."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from mgjax.hosts import parallel
from mgjax.planning import plan_picture, wall_time_text
from mgjax.progress import Progress
from mgjax.run import step_log, writers
from mgjax.run.clock import StepClock, Times
from mgjax.run.trace import Trace
from mgjax.setup import planning, run_settings
from mgjax.setup.job import Job
from mgjax.step import train_state


class Outputs(NamedTuple):
  """What the loop writes to; the first process's alone leaves a trace."""

  writer: writers.Writer | writers.NoWriter
  trace: Trace
  bar: Progress
  clock: StepClock
  log: step_log.StepLog


def open_all(
  job: Job,
  done: int,
  times: Times,
  stack: contextlib.ExitStack,
  *,
  fail: Callable[[str, int], None],
  wandb: Any,
  profile_step: int | None,
) -> Outputs:
  """Opens the outputs of a launch, and says on stderr what will run.

  Args:
    job: The run.
    done: Steps done.
    times: Seconds of the run so far; the clock adds to them.
    stack: Closes what this opens.
    fail: Called with what is not finite and the step.
    wandb: The run in Weights & Biases; None: not there.
    profile_step: First step of a trace; None: no trace.
  """
  schedule, config, is_first = job.schedule, job.config, job.peers.is_first
  writer: writers.Writer | writers.NoWriter = writers.NoWriter()
  # One process writes: all have the same numbers, and one folder.
  if is_first:
    writer = writers.Writer(job.workdir, done, wandb=wandb)
    if not done:
      picture = plan_picture.draw(job.plan, schedule, job.workdir / 'plan.png')
      writer.picture('schedule', picture, 0)
      writer.settings(run_settings.flat(config), metric='eval_top1')
  stack.callback(writer.close)
  trace = Trace(job.workdir, profile_step, record=is_first)
  stack.callback(trace.close)
  bar = Progress(schedule.total_steps, done, unit='step', quiet=not is_first)
  stack.callback(bar.close)
  clock = StepClock(times)
  stack.callback(clock.close)
  log = step_log.StepLog(
    schedule=schedule,
    writer=writer,
    bar=bar,
    times=times,
    every=config.train.log_every_steps,
    step_gflop=step_log.step_gflop(job.plan, schedule, config.optim.train),
    peak_gflops=1e3 * config.train.peak_tflops * job.mesh.size,
    fail=fail,
  )
  if is_first:  # Only now: what is refused is refused in one line.
    if not done and job.plan.get('wall_time'):
      bar.say(wall_time_text.line(job.plan['wall_time']))
    for line in planning.warnings_of_schedule(config, schedule):
      bar.say(line)
  num_parameters = train_state.num_parameters(job.network.abstract.params)
  num_videos, samples = (
    len(job.train_stream.source),
    config.data.samples_per_video,
  )
  bar.say(
    f'{len(schedule.grids)} grids, {schedule.total_steps} steps, '
    f'{schedule.total_epochs} epochs of {num_videos} videos'
    f'{f", {samples} clips of each" if samples > 1 else ""}; '
    f'{num_parameters:,} parameters; '
    f'{job.mesh.size} {parallel.platform(job.mesh)} device(s)'
    + (f' in {job.peers.count} processes' if job.peers.count > 1 else '')
    + (f'; resuming at step {done}' if done else '')
  )
  if job.changes:
    bar.say(f'Settings changed since: {"; ".join(job.changes)}')
  return Outputs(writer, trace, bar, clock, log)
