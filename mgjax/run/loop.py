"""The training loop: from a config to its last evaluation."""

import bisect
import contextlib
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import optax
from absl import flags
from etils import epath
from ml_collections import config_flags

from mgjax import files, stop_signal
from mgjax.cli import ConfigError, RunError
from mgjax.cpu import allocator
from mgjax.data import stream
from mgjax.evaluation import results, scoring
from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.models import norm
from mgjax.planning import plan_picture
from mgjax.progress import Progress
from mgjax.run import (
  checkpoint,
  disk_space,
  failure,
  metrics,
  report,
  run_folder,
  run_lock,
  run_summary,
  step_log,
)
from mgjax.setup import data as data_setup
from mgjax.setup import evaluation, grids, network, planning, run_checks
from mgjax.step import initial_state, optim, programs, step_cache, train_step
from mgjax.step.step_cache import Program

POLL_S = 1.0  # So often a run that waits for a program looks for a signal.
SAY_AFTER_S = 10.0  # So long a run waits for a program without a word.


def train(
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  *,
  peers: Peers | None = None,
  allow_config_change: bool = False,
  profile_step: int | None = None,
) -> dict:
  """Runs, or resumes, a training from its config to its last evaluation.

  Args:
    config: See mgjax/config/fields.py; not modified.
    workdir: Folder of everything that the run writes.
    peers: The processes of the run; None: this one alone.
    allow_config_change: Go on with a folder's run also where the config has
      changed since.
    profile_step: First step of a trace; None: no trace.

  Returns:
    The summary that is written to workdir/summary.json; {} in processes other
    than the first.

  Raises:
    ConfigError: The run cannot work; nothing has been trained.
    RunError: Something outside the program ended the run.
    SystemExit: A signal stopped the run; a checkpoint has been written.
  """
  started = time.perf_counter()
  peers = peers or Peers()
  workdir = epath.Path(workdir)
  lock = run_lock.RunLock(workdir)
  step_cache.use_persistent_cache()
  try:
    # What must be closed, however the run ends, goes on the stack.
    with (
      stop_signal.listening() as stop,
      stop.at_end(peers.tell_stopped),
      lock,
      contextlib.ExitStack() as stack,
      peers.guard(),
      lock.explain(),
    ):
      # Before anything that takes time; a folder is made when all is right.
      if peers.is_first and workdir.exists():
        lock.take()
      job = make_job(config, workdir, peers, allow_config_change)
      wandb = start_workdir(job, lock) if peers.is_first else None
      checkpoints = stack.enter_context(
        checkpoint.Checkpoints(workdir, config.train, peers)
      )
      finished = workdir / 'summary.json'
      if finished.exists() and job.schedule.total_steps in checkpoints.steps():
        summary = files.read_json(finished)
        print(f'{workdir}: this run has finished already', file=sys.stderr)
        return summary
      training = Training(
        job,
        stack,
        checkpoints,
        stop,
        lock,
        wandb=wandb,
        profile_step=profile_step,
      )
      startup_s = training.run() - started
      return training.finish(startup_s) if peers.is_first else {}
  except OSError as error:
    raise files.disk_error(error, workdir) or error from error


@dataclasses.dataclass(frozen=True)
class Job:
  """A run that can work: its settings and what they describe.

  Attributes:
    config: The settings.
    workdir: The run's folder.
    peers: Its processes.
    mesh: Its devices.
    schedule: Grids and learning rate of every step.
    train_stream: Its training batches.
    eval_stream: Those that it is evaluated on.
    plan: The schedule as plan.json has it.
    model: The network.
    tx: The optimizer.
    make_state: Makes the state with random weights.
    abstract: Its shapes and shardings.
    initial: Weights to start from instead, {} where there are none.
    changes: Settings that have changed since the folder's run began.
  """

  config: ml_collections.ConfigDict
  workdir: epath.Path
  peers: Peers
  mesh: jax.sharding.Mesh
  schedule: GridSchedule
  train_stream: stream.TrainStream
  eval_stream: stream.EvalStream
  plan: dict
  model: nn.Module
  tx: optax.GradientTransformation
  make_state: Callable[[], train_step.TrainState]
  abstract: train_step.TrainState
  initial: dict
  changes: list[str]


def make_job(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  peers: Peers,
  allow_config_change: bool,
) -> Job:
  """Checks everything that can be refused; writes nothing.

  Args:
    config: The settings.
    workdir: The run's folder, which need not exist.
    peers: The processes of the run.
    allow_config_change: See `train`.

  Raises:
    ConfigError: The run cannot work.
  """
  mesh = parallel.make_mesh()
  # Batches before data is opened: its size is enough for them.
  planned = grids.schedule(
    config, grids.dataset_size(config)[0], num_devices=mesh.size
  )
  if peers.is_first:
    planning.warn_of_memory(config, planned, num_devices=mesh.size)
  run_checks.check(config, data_setup.describe(config), mesh.size)
  planning.check_network(config, planned.grids, planned.phases)
  planning.check_network(config, [grids.eval_grid(config)])
  source = data_setup.source(config, 'train')
  eval_source = data_setup.source(config, config.eval.split)
  schedule = grids.schedule(config, len(source), num_devices=mesh.size)
  if (workdir / 'import.txt').exists():
    raise ConfigError(
      f'--workdir={workdir} holds imported weights, not a run; use another '
      f'folder, and --config.init_from={workdir} to start from them'
    )
  shard = {'shard': peers.index, 'num_shards': peers.count}
  train_stream = data_setup.train_stream(config, schedule, source, **shard)
  eval_stream = data_setup.eval_stream(config, eval_source, **shard)
  model = network.model(config)
  # Refused now, or else at its first use.
  evaluation.head_window(config, model)
  tx = optim.make_optimizer(config.optim, config.norm.frozen)
  make_state = initial_state.state_maker(config, model, tx)
  abstract = checkpoint.abstract_state(make_state, parallel.replicated(mesh))
  if peers.is_first:
    disk_space.check(
      workdir,
      config.train,
      abstract,
      num_steps=schedule.total_steps,
      num_evaluations=len(evaluation_steps(schedule, config.eval.every)),
    )
  # A run that has checkpoints goes on from those.
  initial = {}
  if config.init_from and not any((workdir / 'checkpoints').glob('[0-9]*')):
    initial = initial_state.initial_variables(config, abstract)
  changes = run_folder.check(
    config, workdir, allow_config_change, source.label_names
  )
  peers.exchange(None)  # All have looked before the first one writes.
  return Job(
    config=config,
    workdir=workdir,
    peers=peers,
    mesh=mesh,
    schedule=schedule,
    train_stream=train_stream,
    eval_stream=eval_stream,
    plan=planning.make_plan(config, schedule, num_devices=mesh.size),
    model=model,
    tx=tx,
    make_state=make_state,
    abstract=abstract,
    initial=initial,
    changes=changes,
  )


def start_workdir(job: Job, lock: run_lock.RunLock) -> Any:
  """Writes settings and plan; returns the run in Weights & Biases, or None.

  Args:
    job: The run.
    lock: That of its folder, which is taken.

  Raises:
    ConfigError: Another run has the folder, or it cannot be written.
  """
  lock.take()
  run_folder.prepare(
    job.config, job.workdir, job.train_stream.source.label_names
  )
  lock.keep(job.workdir / 'config.json')
  files.write_text(job.workdir / 'plan.json', json.dumps(job.plan, indent=1))
  return metrics.open_wandb(job.config, job.workdir)


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
    checkpoints: checkpoint.Checkpoints,
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
      ConfigError: The run has gone further than the settings let it.
      RunError: No checkpoint can be read.
    """
    config, schedule, workdir = job.config, job.schedule, job.workdir
    self._job = job
    self._checkpoints = checkpoints
    self._stop = stop
    self._lock = lock
    self._rng = parallel.make_key(job.mesh, config.seed)
    restored = checkpoints.restore_newest(job.abstract)
    first_step = restored[2] if restored else 0
    if first_step > schedule.total_steps:
      raise ConfigError(
        f'{checkpoints.directory} has a checkpoint of step {first_step}, but '
        f'with these settings the run ends at step {schedule.total_steps}'
      )
    progress = {'times': {}, 'bad_videos': {}, 'statistics_due': False}
    if restored:
      progress |= restored[1]
    self.times = metrics.Times(**progress['times'])
    self.bad_videos = progress['bad_videos']
    # What a signal's first answer names; see `_waits_for`.
    self._doing = ''
    # Whether the batch-norm statistics of the evaluation after this step are
    # still to be taken; a signal may come between the two.
    self._statistics_due = progress['statistics_due']
    self._first_step = self.done = first_step
    self._eval_steps = evaluation_steps(schedule, config.eval.every)
    self._result = None  # Of the newest evaluation.

    self._programs = step_cache.StepCache(
      programs.lower_programs(
        config,
        schedule,
        job.model,
        job.tx,
        job.mesh,
        job.abstract,
        first_step,
        self._eval_steps,
        statistics_due=self._statistics_due,
      )
    )
    stack.callback(self._programs.close)
    self._ready = set()  # Programs that all processes have.

    self._writer = metrics.NoWriter()
    if job.peers.is_first:
      self._writer = metrics.Writer(workdir, first_step, wandb=wandb)
      if not first_step:
        picture = plan_picture.draw(job.plan, schedule, workdir / 'plan.png')
        self._writer.picture('schedule', picture, 0)
        self._writer.settings(config, metric='eval_top1')
    stack.callback(self._writer.close)
    self._trace = metrics.Trace(
      workdir, profile_step, record=job.peers.is_first
    )
    stack.callback(self._trace.close)
    self._bar = Progress(
      schedule.total_steps,
      first_step,
      unit='step',
      quiet=not job.peers.is_first,
    )
    stack.callback(self._bar.close)
    self._clock = metrics.StepClock(self.times)
    stack.callback(self._clock.close)
    self._log = step_log.StepLog(
      schedule,
      self._writer,
      self._bar,
      self.times,
      every=config.train.log_every_steps,
      step_gflop=step_log.step_gflop(job.plan, schedule),
      peak_gflops=1e3 * config.train.peak_tflops * job.mesh.size,
      fail=self._fail,
    )
    self._say_start()
    # Compiles, too: a minute for a large network.
    self.state = (
      restored[0]
      if restored
      else initial_state.first_state(job.make_state, job.initial, job.mesh)
    )

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
      if self.done in self._eval_steps:
        # The run stopped between this checkpoint and its evaluation.
        if self._statistics_due:
          self._take_statistics()
          self._save(replace=True)
        self._evaluate()
      began = time.perf_counter()
      self._train()
    except stop_signal.Stopped as stopped:
      self._clock.drain()
      if self.done > self._first_step:
        self._save()
      self._bar.say(
        f'Stopped at step {self.done}; the same command goes on from there.'
      )
      self._programs.close(wait=False)
      sys.exit(stop_signal.exit_code(stopped.args[0]))
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

  def _say_start(self) -> None:
    job, schedule = self._job, self._job.schedule
    self._bar.say(
      f'{len(schedule.grids)} grids, {schedule.total_steps} steps, '
      f'{schedule.total_epochs} epochs of {schedule.num_train} videos; '
      f'{optim.num_parameters(job.abstract.params):,} parameters; '
      f'{job.mesh.size} {jax.default_backend()} device(s)'
      + (f' in {job.peers.count} processes' if job.peers.count > 1 else '')
      + (f'; resuming at step {self.done}' if self.done else '')
    )
    if job.changes:
      self._bar.say(f'Settings changed since: {"; ".join(job.changes)}')

  def _train(self) -> None:
    """All steps that are left, with their checkpoints and evaluations."""
    settings = self._job.config.train
    batches = self._job.train_stream.batches(self.done)
    last_save = time.monotonic()
    self._clock.restart()
    for step in range(self.done, self._job.schedule.total_steps):
      if said := self._trace.before(step, self._clock.drain):
        self._bar.say(said)
      # The first process's watch says when a checkpoint is due.
      late = time.monotonic() - last_save > settings.checkpoint_every_s
      late = self._step(step, batches, late)
      if every := settings.checkpoint_every_steps:
        due = self.done % every == 0
      else:
        due = late
      at_evaluation = self.done in self._eval_steps
      if not (at_evaluation or due):
        continue
      self._clock.drain()
      if self._statistics_due:
        self._take_statistics()
      self._save()
      last_save = time.monotonic()
      if at_evaluation:
        self._evaluate()
      self._clock.restart()
    self._clock.drain()

  def _step(self, step: int, batches, late: bool) -> bool:
    """Hands a step to the device and tells the other processes about it.

    Args:
      step: The step.
      batches: Its batch comes next.
      late: Whether this process finds that a checkpoint is due.

    Returns:
      Whether the first process finds it.
    """
    job, schedule = self._job, self._job.schedule
    asked_batch = time.perf_counter()
    batch = next(batches)
    got_batch = time.perf_counter()
    grid = schedule(step)
    program = self._program('train', grid)
    got_program = time.perf_counter()
    lr, groups = schedule.lr(step), schedule.bn_groups(step)
    inputs = (
      parallel.put_batch(job.mesh, programs.on_device(batch)),
      *programs.put_scalars(job.mesh, lr, groups),
    )
    called = time.perf_counter()
    self._doing = f'step {step + 1}'
    self._stop.defer(self._waits_for)  # Now there is something to lose.
    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      self.state, values = program(self.state, *inputs, self._rng)
    self.done = step + 1
    self._statistics_due = (
      self.done in self._eval_steps
      and programs.statistics_batches(job.config) > 0
    )
    seen = job.peers.exchange(
      {
        'ids_crc32': batch['ids_crc32'],
        'skipped': batch['skipped'],
        'late': late,
        'signal': self._stop.received,
      }
    )
    ids_crc32 = sum(s['ids_crc32'] for s in seen) % 2**32
    note_bad_videos(
      self.bad_videos,
      [video for s in seen for video in s['skipped']],
      len(job.train_stream.source),
      job.config,
    )
    self._clock.dispatched(
      values,
      asked_batch=asked_batch,
      got_batch=got_batch,
      got_program=got_program,
      called=called,
      report=self._log.reporter(step, lr, groups, ids_crc32),
    )
    self._checkpoints.check()
    if signals := [s['signal'] for s in seen if s['signal']]:
      raise stop_signal.Stopped(signals[0])
    return seen[0]['late']

  def _program(self, kind: str, grid: Grid) -> Callable:
    """Returns a program once all processes have it."""
    program = Program(kind, grid)
    began = time.monotonic()
    said = False
    while program not in self._ready:
      self._doing = f'{POLL_S:g} s at most (no compilation is waited for)'
      if not said and time.monotonic() - began > SAY_AFTER_S:
        said = True
        self._bar.say(self._programs.describe_wait(program))
      there = self._programs.wait(
        program, 0.0 if self._stop.received else POLL_S
      )
      if all(self._job.peers.exchange(there)):
        self._ready.add(program)
      else:
        self._stop_if_asked()
    return self._programs[program]

  def _waits_for(self) -> str:
    return f'{self._doing} and the checkpoint'

  def _stop_if_asked(self) -> None:
    # All processes call this after the same batch, and stop together.
    self._stop.check(self._job.peers)

  def _save(self, replace: bool = False) -> None:
    """Starts to write a checkpoint.

    Raises:
      RunError: The run's folder is gone or its settings have been changed, the
        state is not finite, or the checkpoint before could not be written.
    """
    begin = time.perf_counter()
    self._lock.check()
    self._stop.defer(self._waits_for)
    # What the loss of the next step would show, but that comes too late.
    if not train_step.is_finite(self.state):
      self._fail('The state', self.done - 1)
    progress = {
      'times': vars(self.times),
      'bad_videos': self.bad_videos,
      'statistics_due': self._statistics_due,
    }
    self._writer.flush()
    self._checkpoints.save(self.state, self.done, progress, replace=replace)
    self.times.checkpoint_s += time.perf_counter() - begin

  def _fail(self, what: str, step: int) -> None:
    """Ends the run at a step that went wrong: see `failure.fail`."""
    job = self._job
    # A function of the step, so no step has to keep or send the names.
    ids = job.peers.exchange(job.train_stream.batch(step)['ids'])
    failure.fail(
      what,
      step=step,
      ids=list(itertools.chain(*ids)),
      schedule=job.schedule,
      config=job.config,
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
    mesh = self._job.mesh
    # At the base grid of the phase just left.
    phase = self._job.schedule.phase(self.done - 1)
    program = self._program('stats', phase.base)
    _, groups = programs.put_scalars(mesh, 0.0, phase.bn_groups[-1])
    moments = []
    self._doing = 'a batch of the batch-norm statistics'
    for batch in self._job.train_stream.base_batches(
      self.done, programs.statistics_batches(self._job.config)
    ):
      batch = parallel.put_batch(mesh, programs.on_device(batch))
      jax.block_until_ready(moments[-2:-1])  # Few batches wait in its memory.
      moments.append(program(self.state, batch, groups, self._rng))
      self._stop_if_asked()
    statistics = jax.device_put(
      norm.replace_statistics(
        self.state.batch_stats, norm.combine_statistics(moments)
      ),
      parallel.replicated(mesh),
    )
    self.state = self.state.replace(batch_stats=statistics)
    self._statistics_due = False
    self.times.eval_s += time.perf_counter() - begin

  def _evaluate(self) -> None:
    """Scores the videos of the evaluation and writes what comes out."""
    begin = time.perf_counter()
    job, step = self._job, self.done
    partial = scoring.Partial(
      job.workdir,
      evaluation.partial_key(job.config, self.state, job.eval_stream.source),
      job.config.eval.save_every_s,
    )

    def report_batch(number, total):
      self._doing = f'batch {number + 1} of the evaluation'
      self._stop.defer(self._waits_for)
      self._bar.update(step, f'evaluation {number}/{total}')
      if number < total:
        self._stop_if_asked()

    result = results.evaluate(
      self._program('eval', grids.eval_grid(job.config)),
      self.state,
      job.eval_stream,
      job.mesh,
      ensemble=job.config.eval.ensemble,
      report=report_batch,
      partial=partial,
      peers=job.peers,
    )
    self._result = result
    self.times.eval_s += time.perf_counter() - begin
    self._checkpoints.scores[step] = result.get('map', result['top1'])
    self._log.write_evaluation(step, result)
    self._bar.say(
      f'step {step}, epoch {job.schedule.epoch(step):.1f}: '
      + '\n'.join([results.describe(result), *results.losses(result)])
    )
    if job.peers.is_first:
      results.write(job.workdir, {'step': step, **result})
      partial.remove()
      self._writer.picture('confusion', report.confusion(result), step)


def evaluation_steps(schedule: GridSchedule, every: float) -> set[int]:
  """Steps after which the model is evaluated: every so many epochs, and last.

  Args:
    schedule: The run's schedule.
    every: Epochs; 0: only after the last step.
  """
  steps = {schedule.total_steps}
  if every:
    for i in range(1, math.ceil(schedule.total_epochs / every)):
      steps.add(
        bisect.bisect_left(
          range(schedule.total_steps),
          i * every * schedule.num_train,
          key=schedule.clips_before,
        )
      )
  return steps - {0}


def note_bad_videos(
  bad: dict[str, str],
  skipped: Sequence[Sequence[str]],
  num_train: int,
  config: ml_collections.ConfigDict,
) -> None:
  """Counts replaced videos, (id, reason); too many stop the run."""
  for name, reason in skipped:
    if name not in bad:
      bad[name] = reason
      print(f'\ncannot decode {name}: {reason}; replaced', file=sys.stderr)
  if len(bad) > config.data.max_bad_fraction * num_train:
    name, reason = list(bad.items())[-1]
    raise RunError(
      f'{len(bad)} of {num_train} training videos cannot be decoded, more than '
      f'data.max_bad_fraction={config.data.max_bad_fraction} allows; the last '
      f'is {name}: {reason}'
    )


def main(values: flags.FlagValues) -> None:
  if not values.workdir:
    raise ConfigError('--workdir is missing; give a folder for the run.')
  allocator.keep()
  with contextlib.closing(parallel.start(values)) as peers:
    try:
      summary = train(
        values.config,
        values.workdir,
        peers=peers,
        allow_config_change=values.allow_config_change,
        profile_step=values.profile,
      )
    except SystemExit as stopped:
      if step_cache.is_compiling():
        parallel.leave(peers, stopped.code)
      raise
    if peers.is_first:
      flag = values['config']
      overrides = config_flags.get_override_values(flag)
      print(
        run_summary.tell(
          summary, values.workdir, flag.config_filename, overrides
        )
      )
