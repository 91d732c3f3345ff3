"""The training loop: from a config to its last evaluation."""

import contextlib
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mgjax import files, stop_signal
from mgjax.evaluation import eval_picture, results, scoring
from mgjax.grids.schedule import Grid
from mgjax.hosts import parallel
from mgjax.models import statistics
from mgjax.run import (
  bad_videos,
  failure,
  measuring,
  outputs,
  report,
  run_lock,
  run_summary,
)
from mgjax.run.checkpoint_manager import Checkpoints
from mgjax.run.clock import Marks, Times
from mgjax.setup import augmentation, evaluation, grids, run_settings
from mgjax.setup import data as data_setup
from mgjax.setup import programs as programs_setup
from mgjax.setup.job import Job
from mgjax.step import compilation, programs, train_state
from mgjax.step.step_cache import Program

POLL_S = 1.0  # So often a run that waits for a program looks for a signal.
SAY_AFTER_S = 2.0  # So long a run waits for a program without a word.


class Training:
  """One launch of a run: from its newest checkpoint to its end.

  All processes call the methods in the same order: where one has noticed
  something (a signal, a damaged video), all of them act on it.

  Attributes:
    state: After `done` steps.
    done: Steps done, those of earlier launches included.
    times: Seconds of the run, those of earlier launches included.
    bad_videos: Reason by name of the videos that had to be replaced.
  """

  def __init__(
    self,
    job: Job,
    stack: contextlib.ExitStack,
    checkpoints: Checkpoints,
    stop: stop_signal.Listener,
    lock: run_lock.RunLock,
    *,
    wandb: Any = None,
    profile_step: int | None = None,
  ):
    """Restores the newest checkpoint and starts to compile.

    Args:
      job: The run.
      stack: Closes what this opens.
      checkpoints: Those of the run.
      stop: Asked for signals after every batch.
      lock: That of the run's folder; held by the first process.
      wandb: The run in Weights & Biases; None: not there.
      profile_step: First step of a trace; None: no trace.

    Raises:
      RunError: No checkpoint can be read.
    """
    self._job = job
    self._checkpoints = checkpoints
    self._stop = stop
    self._lock = lock
    # One key for the whole run: steps fold their number into it, so that a
    # resumed run draws what it would have drawn.
    self._rng = parallel.make_key(job.mesh, job.config.seed)
    restored = self._restore()
    self._first_step = self.done
    # What a signal's first answer names, in another thread: see `_waits_for`.
    self._doing = ''
    self._result = None  # Of the newest evaluation.
    # Before the state is made: the first programs compile meanwhile. Those that
    # only steps before `done` need are left out.
    self._programs, self._measured = measuring.start(
      job, stack, self.done, statistics_due=self._statistics_due
    )
    # Programs that all processes have: see `_program`. Only those are kept
    # here, since what one process has says nothing of the others.
    self._ready = set()
    self._writer, self._trace, self._bar, self._clock, self._log = (
      outputs.open_all(
        job,
        self.done,
        self.times,
        stack,
        fail=self._fail,
        wandb=wandb,
        profile_step=profile_step,
      )
    )
    # Compiles, too: a minute for a large network.
    self.state = restored or train_state.first_state(
      job.network.make_state, job.config.seed, job.initial, job.mesh
    )

  def _restore(self) -> train_state.TrainState | None:
    """Reads the newest checkpoint and takes its counters; None without one."""
    restored = self._checkpoints.restore_newest(self._job.network.abstract)
    state, saved, self.done = restored or (None, {}, 0)
    # Of the whole run: its hours do not begin anew with a launch. Checkpoints
    # of earlier versions lack some of the counters.
    self.times = Times(**saved.get('times', {}))
    self.bad_videos = saved.get('bad_videos', {})
    # Whether the batch-norm statistics of the evaluation after this step are
    # still to be taken; a signal may come between the two.
    self._statistics_due = saved.get('statistics_due', False)
    return state

  def run(self) -> float:
    """Trains to the end.

    Returns:
      time.perf_counter() when the first step of this launch began.

    Raises:
      RunError: The loss is not finite, too many videos are damaged, or
        something outside the program failed.
      SystemExit: A signal stopped the run; a checkpoint has been written.
    """
    try:
      # A run that stopped between a checkpoint and its evaluation owes that.
      # One that stopped right after it evaluates again, and gets the same
      # numbers.
      if self.done in self._job.eval_steps:
        if self._statistics_due:
          self._take_statistics()
          # The checkpoint is to hold the network that is evaluated.
          self._save(replace=True)
        self._evaluate()
      began = time.perf_counter()
      self._train()
    except stop_signal.Stopped as stopped:
      # Steps under way count: their results may say that the state is not
      # finite, and such a state must not be saved.
      self._clock.drain()
      # Without a new step the newest checkpoint is what there is to save.
      if self.done > self._first_step:
        self._save()
      self._bar.say(
        f'Stopped at step {self.done}; the same command goes on from there.'
      )
      # A compilation may take minutes, and whoever sent the signal may kill.
      self._programs.close(wait=False)
      sys.exit(stop_signal.exit_code(stopped.args[0]))
    except compilation.OutOfMemory:
      # Of a later grid, say, while an earlier one trained: its steps are kept.
      # Alone: other processes find it out at steps of their own.
      if self._job.peers.count == 1 and self.done > self._first_step:
        self._clock.drain()
        self._save()
      raise
    # No step after the last ones closes their trace.
    if said := self._trace.close():
      self._bar.say(said)
    return began

  def finish(self, startup_s: float) -> dict:
    """Draws report.png and writes and returns the summary.

    Args:
      startup_s: Seconds from the start of this launch to its first step.
    """
    job = self._job
    found = run_summary.summarize(
      job.config,
      job.schedule,
      job.plan,
      self._programs,
      self.times,
      self._result,
      self.bad_videos,
      startup_s=startup_s,
    )
    picture = report.draw(job.workdir, job.schedule)
    self._writer.picture('report', picture, job.schedule.total_steps)
    # Last: a folder with this file holds a finished run.
    files.write_text(
      job.workdir / 'summary.json', json.dumps(found, indent=1) + '\n'
    )
    return found

  def _train(self) -> None:
    """Takes all steps that are left, saves and evaluates."""
    settings, schedule = self._job.config.train, self._job.schedule
    if self._programs.device_bytes and self.done < schedule.total_steps:
      # Before data is read: what does not fit the devices ends the run.
      began = time.perf_counter()
      self._program('train', schedule(self.done))
      self.times.compile_s += time.perf_counter() - began
    # Decoded ahead by workers, from this step on: a batch depends on its step
    # alone, so that nothing of them is in the checkpoint.
    batches = self._job.train_stream.batches(self.done)
    last_save = time.monotonic()
    self._clock.restart()
    for step in range(self.done, schedule.total_steps):
      if said := self._trace.before(step, self._clock.drain):
        self._bar.say(said)
      # Watches differ: the first process's says when a checkpoint is due, or
      # else some processes would start to write one and others would not.
      late = time.monotonic() - last_save > settings.checkpoint_every_s
      late = self._step(step, batches, late)
      if every := settings.checkpoint_every_steps:
        due = self.done % every == 0
      else:
        due = late
      at_evaluation = self.done in self._job.eval_steps
      if not (at_evaluation or due):
        continue
      # A step that went wrong ends the run here, before its state is saved.
      self._clock.drain()
      # Before the checkpoint, so that it is the network that was evaluated.
      if self._statistics_due:
        self._take_statistics()
      # Before the evaluation, which takes long: a kill then costs no step.
      self._save()
      # From here and not from its beginning: where a disk is slower than
      # checkpoint_every_s, a run would do nothing but save.
      last_save = time.monotonic()
      if at_evaluation:
        self._evaluate()
      self._clock.restart()
    self._clock.drain()

  def _step(self, step: int, batches: Iterator[dict], late: bool) -> bool:
    """Hands a step to the device and tells the other processes about it.

    Args:
      step: The step.
      batches: Its batch comes next.
      late: Whether this process finds that a checkpoint is due.

    Returns:
      Whether the first process finds it.
    """
    job, schedule = self._job, self._job.schedule
    grid = schedule(step)
    # The batch first, then the program: the clock counts a wait for the program
    # from when the batch was there (`Marks`).
    asked_batch = time.perf_counter()
    batch = next(batches)
    got_batch = time.perf_counter()
    program = self._program('train', grid)
    got_program = time.perf_counter()
    # Given as arrays below: a Python number has another type, which would need
    # another program.
    lr, groups = schedule.lr(step), schedule.bn_groups(step)
    # Before `called`: the copy to the device is not part of the step's time.
    inputs = (
      programs.put_batch(job.mesh, batch),
      *programs.put_scalars(job.mesh, lr, groups),
      self._rng,
      augmentation.put_strengths(job.config, schedule, job.mesh, step),
    )
    called = time.perf_counter()
    self._doing = f'step {step + 1}'
    self._stop.defer(self._waits_for)  # Now there is something to lose.
    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      # Returns before the device is done: the next batch is put meanwhile. The
      # old state is donated, so that nothing may keep it.
      self.state, values = program(self.state, *inputs)
    # With the state, before anything can raise: they are saved together.
    self.done = step + 1
    # Noted at once, so that a checkpoint after a signal knows that the
    # evaluation of this step still lacks its statistics.
    self._statistics_due = (
      self.done in job.eval_steps
      and programs_setup.statistics_batches(job.config) > 0
    )
    seen = self._exchange(batch, late)
    self._clock.dispatched(
      values,
      Marks(asked_batch, got_batch, got_program, called),
      # A sum: the same whichever process has which clips of the batch, so that
      # runs on other numbers of hosts can be compared.
      self._measured.noting(
        *('train', grid),
        self._log.reporter(
          step, lr, groups, sum(s['ids_crc32'] for s in seen) % 2**32
        ),
      ),
    )
    # A write that failed in the background is news now, not at the next one.
    self._checkpoints.check()
    # Last, when the clock knows of the step: `run` waits for it and saves.
    if signals := [s['signal'] for s in seen if s['signal']]:
      raise stop_signal.Stopped(signals[0])
    return seen[0]['late']

  def _exchange(self, batch: dict, late: bool) -> list[dict]:
    """Tells all processes what each has noticed, and notes damaged videos.

    Args:
      batch: Of the step, as `TrainStream.batch` makes it.
      late: Whether this process finds that a checkpoint is due.

    Returns:
      Of each process, 'ids_crc32', 'skipped', 'late' and 'signal'.
    """
    job = self._job
    # What one process has noticed, all act on after the same step; a collective
    # of theirs would otherwise hang.
    seen = job.peers.exchange(
      {
        'ids_crc32': batch['ids_crc32'],
        'skipped': batch['skipped'],
        'late': late,
        'signal': self._stop.received,
      }
    )
    # Of all processes' clips, so that too many end all of them at this step.
    bad_videos.note(
      self.bad_videos,
      itertools.chain(*(s['skipped'] for s in seen)),
      num_train=len(job.train_stream.source),
      max_fraction=job.config.data.max_bad_fraction,
    )
    return seen

  def _program(self, kind: str, grid: Grid) -> Callable:
    """Returns a program once all processes have it."""
    program = Program(kind, grid)
    began = time.monotonic()
    # Not just a wait: compilations take minutes on large networks, end at other
    # times on other hosts, and must not keep a signal from being heard.
    while program not in self._ready:
      self._doing = f'{POLL_S:g} s at most (no compilation is waited for)'
      if time.monotonic() - began > SAY_AFTER_S:
        self._bar.update(self.done, self._programs.describe_wait())
      # After a signal not even a second: the others ask each other now.
      timeout_s = 0.0 if self._stop.received else POLL_S
      there = self._programs.wait(program, timeout_s)
      # A step is a collective: who runs it alone waits inside of XLA, where no
      # signal is heard. Asked until all have the program, and never again: not
      # once a step.
      if all(self._job.peers.exchange(there)):
        self._ready.add(program)
      else:
        self._stop.check(self._job.peers)
    # One that has failed ends the run now, and not when its turn comes.
    return self._programs[self._programs.failed or program]

  def _waits_for(self) -> str:
    return f'{self._doing} and the checkpoint'

  def _save(self, replace: bool = False) -> None:
    """Starts to write a checkpoint.

    Raises:
      RunError: The run's folder is gone or its settings have been changed, the
        state is not finite, or the checkpoint before could not be written.
    """
    begin = time.perf_counter()
    # The folder may have been moved, or another run may have it by now.
    self._lock.check()
    self._stop.defer(self._waits_for)
    # What the loss of the next step would show, but that comes too late: the
    # good checkpoints would be gone by then.
    # Every process has all of the state, so all of them find the same.
    if not train_state.is_finite(self.state):
      self._fail('The state', self.done - 1)
    # What the host counts; the state has what the device computes.
    progress = {
      'times': vars(self.times),
      'bad_videos': self.bad_videos,
      'statistics_due': self._statistics_due,
    }
    # Lines first: who resumes from this checkpoint writes only later ones.
    self._writer.flush()
    self._checkpoints.save(self.state, self.done, progress, replace=replace)
    # Only what holds up the loop: the disk is written to in the background.
    held_up_s = time.perf_counter() - begin
    self.times.checkpoint_s += held_up_s
    self._measured.add_checkpoint(held_up_s)

  def _fail(self, what: str, step: int) -> None:
    """Ends the run at a step that went wrong: see `failure.fail`."""
    job = self._job
    failure.fail(
      what,
      step=step,
      # A function of the step, so no step has to keep or send the names.
      ids=job.train_stream.ids(step, self.bad_videos),
      schedule=job.schedule,
      settings=run_settings.as_text(job.config),
      workdir=job.workdir,
      checkpoints=self._checkpoints,
      peers=job.peers,
    )

  def _take_statistics(self) -> None:
    """Sets the running statistics to those of fresh training batches.

    Source: Wu et al. 2020; SlowFast 287ec00, tools/train_net.py
      calculate_and_update_precise_bn.
    """
    begin = time.perf_counter()
    job = self._job
    # At the base grid of the phase just left: its clips and groups are those
    # that the evaluation's are most like.
    phase = job.schedule.phase(self.done - 1)
    program = self._program('stats', phase.base)
    waited_s = time.perf_counter() - begin
    _, groups = programs.put_scalars(job.mesh, 0.0, phase.bn_groups[-1])
    self._doing = 'a batch of the batch-norm statistics'
    batches = job.train_stream.base_batches(
      self.done, programs_setup.statistics_batches(job.config)
    )
    moments, spent = measuring.run_batches(
      lambda batch: program(self.state, batch, groups, self._rng),
      batches,
      put=functools.partial(programs.put_batch, job.mesh),
      # Nothing is lost: the checkpoint says that statistics are due.
      after=lambda: self._stop.check(job.peers),
      note=self._measured.noting('stats', phase.base),
    )
    # Of all batches together: averaged while they come, as running statistics
    # are, they would favour the last ones.
    new = statistics.replace(
      self.state.batch_stats, statistics.combine(moments)
    )
    self.state = self.state.replace(
      # Laid out as the programs were compiled for: they take nothing else.
      batch_stats=jax.device_put(new, parallel.replicated(job.mesh))
    )
    self._statistics_due = False
    total_s = time.perf_counter() - begin
    self.times.add_evaluation(total_s, waited_s, spent.data_s)
    self.times.statistics_s += total_s - waited_s - spent.data_s

  def _evaluate(self) -> None:
    """Scores the videos of the evaluation and writes what comes out."""
    begin = time.perf_counter()
    job, step = self._job, self.done
    grid = grids.eval_grid(job.config)
    program = self._program('eval', grid)
    waited_s = time.perf_counter() - begin
    partial = scoring.Partial(
      job.workdir,
      evaluation.partial_key(job.config, self.state, job.eval_stream.source),
      job.config.eval.save_every_s,
    )

    timed = measuring.TimedProgram(program, self._measured.noting('eval', grid))

    def report_batch(number, total):
      self._doing = f'batch {number + 1} of the evaluation'
      self._stop.defer(self._waits_for)
      self._bar.update(step, f'evaluation {number}/{total}')
      # After the last batch only the result is missing: it is written first.
      if number < total:
        self._stop.check(job.peers)
      timed.free()

    result = results.evaluate(
      timed,
      self.state,
      job.eval_stream,
      job.mesh,
      ensemble=job.config.eval.ensemble,
      report=report_batch,
      partial=partial,
      peers=job.peers,
    )
    self._result = result
    total_s = time.perf_counter() - begin
    self.times.add_evaluation(total_s, waited_s, timed.data_s)
    # Saved with the next checkpoint; until then a new launch evaluates again.
    self._checkpoints.scores[step] = results.score(
      result, evens_classes=data_setup.evens_classes(job.config)
    )
    self._log.write_evaluation(step, result)
    self._bar.say(
      f'step {step}, epoch {job.schedule.epoch(step):.1f}: '
      + '\n'.join([results.describe(result), *results.lost_views(result)])
    )
    if job.peers.is_first:
      results.write(job.workdir, {'step': step, **result})
      # Only now: a kill before goes on with the batches that are not scored.
      partial.remove()
      self._writer.picture('confusion', eval_picture.confusion(result), step)
