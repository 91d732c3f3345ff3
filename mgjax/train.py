r"""Trains a video model under a grid schedule.

python -m mgjax.train --config=configs/moving_digits.py:grid=both \
  --workdir=runs/digits

The same command resumes an interrupted run from its newest checkpoint; the
result is the same, bit for bit, as that of an uninterrupted run. On a cluster
every process runs this command (docs/running.md).

Exit codes: 0 finished; 1 something outside failed, or the loss is not finite;
2 a setting that cannot work; 75 start again to go on: stopped by SIGTERM after
writing a checkpoint, or another process of the run has died; 130 the same for
Ctrl-C.
"""

import bisect
import contextlib
import json
import math
import os
import pathlib
import shlex
import signal
import sys
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from etils import epath
from ml_collections import config_flags

from mgjax import (
  bundle,
  checkpoint,
  cli,
  cpu_memory,
  cycles,
  environment,
  evaluate,
  files,
  memory,
  metrics,
  models,
  optim,
  parallel,
  plan,
  plan_picture,
  report,
  step_cache,
  train_step,
)
from mgjax.cli import EXIT_RESTART, ConfigError, RunError
from mgjax.data import augment, sources, stream
from mgjax.models import norm
from mgjax.peers import Peers
from mgjax.progress import Progress, duration
from mgjax.schedule import Grid, GridSchedule
from mgjax.step_cache import Program

EXIT_INTERRUPTED = 130
POLL_S = 1.0  # So often a run that waits for a program looks for a signal.


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
    config: See configs/default.py; not modified.
    workdir: Folder of everything that the run writes.
    peers: The processes of the run; None: this one alone.
    allow_config_change: Go on with a folder's run also where the config has
      changed since.
    profile_step: First step of a trace; None: no trace.

  Returns:
    The summary that is written to workdir/summary.json.

  Raises:
    ConfigError: The run cannot work; nothing has been trained.
    RunError: Something outside the program ended the run.
    SystemExit: A signal stopped the run; a checkpoint has been written.
  """
  peers = peers or Peers()
  workdir = epath.Path(workdir)
  try:
    with contextlib.ExitStack() as stack, peers.guard():
      return _train(
        config, workdir, stack, peers, allow_config_change, profile_step
      )
  except OSError as error:
    raise files.disk_error(error, workdir) or error from error


def _train(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  stack: contextlib.ExitStack,
  peers: Peers,
  allow_config_change: bool,
  profile_step: int | None,
) -> dict:
  """`train`; what must be closed, however the run ends, goes on the stack."""
  started = time.perf_counter()
  step_cache.use_persistent_cache()
  mesh = parallel.make_mesh()

  # Everything that can be refused is refused here. Batches and memory before
  # data is opened: the size of the data set is enough.
  planned = cycles.make_schedule(
    config, plan.dataset_size(config)[0], num_devices=mesh.size
  )
  plan.check_memory(
    config,
    planned,
    num_devices=mesh.size,
    device_bytes=memory.device_bytes(config),
  )
  evaluate.check_batch(config, mesh.size)
  source = sources.open_source(config, 'train')
  eval_source = sources.open_source(config, config.eval.split)
  evaluate.check_classes(config, source)
  if config.data.num_train not in (None, len(source)):
    raise ConfigError(
      f'data.num_train={config.data.num_train}, but {source.name} has '
      f'{len(source)} training videos; leave it at None to use them all'
    )
  schedule = cycles.make_schedule(config, len(source), num_devices=mesh.size)
  if (workdir / 'import.txt').exists():
    raise ConfigError(
      f'--workdir={workdir} holds imported weights, not a run; use another '
      f'folder, and --config.init_from={workdir} to start from them'
    )
  model = models.from_config(config)
  evaluate.head_window(config, model)  # Refused now, or else at its first use.
  tx = optim.make_optimizer(config.optim)
  rng = parallel.make_key(mesh, config.seed)

  make_state = state_maker(config, model, tx)
  abstract = checkpoint.abstract_state(make_state, parallel.replicated(mesh))
  # A run that has checkpoints goes on from those.
  initial = {}
  if config.init_from and not any((workdir / 'checkpoints').glob('[0-9]*')):
    initial = initial_variables(config, abstract)
  changes = check_workdir(config, workdir, allow_config_change)
  peers.exchange(None)  # All have looked before the first one writes.
  run_plan = plan.make_plan(config, schedule, num_devices=mesh.size)
  wandb = None
  if peers.is_first:
    prepare_workdir(config, workdir)
    files.write_text(workdir / 'plan.json', json.dumps(run_plan, indent=1))
    wandb = metrics.open_wandb(config, workdir)

  train_stream = stream.TrainStream(
    config,
    schedule,
    source,
    shard=peers.index,
    num_shards=peers.count,
  )
  eval_stream = stream.EvalStream(
    config,
    eval_source,
    config.eval.batch_size,
    shard=peers.index,
    num_shards=peers.count,
  )

  # The state, new or from the newest checkpoint.
  stop = StopSignal()
  checkpoints = stack.enter_context(
    checkpoint.Checkpoints(workdir, config.train, peers)
  )
  finished = workdir / 'summary.json'
  if finished.exists() and schedule.total_steps in checkpoints.steps():
    print(f'{workdir}: this run has finished already', file=sys.stderr)
    return json.loads(finished.read_text())
  eval_steps = evaluation_steps(schedule, config.eval.every)
  restored = checkpoints.restore_newest(abstract)
  first_step = restored[2] if restored else 0
  if first_step > schedule.total_steps:
    raise ConfigError(
      f'{checkpoints.directory} has a checkpoint of step {first_step}, but '
      f'with these settings the run ends at step {schedule.total_steps}'
    )
  progress = {'times': {}, 'bad_videos': {}, 'statistics_due': False}
  if restored:
    progress |= restored[1]
  times = metrics.Times(**progress['times'])
  bad_videos = progress['bad_videos']
  # Whether a signal has kept the run from taking the batch-norm statistics of
  # the evaluation after its last step.
  statistics_due = progress['statistics_due']
  programs = step_cache.StepCache(
    lower_programs(
      config,
      schedule,
      model,
      tx,
      mesh,
      abstract,
      first_step,
      eval_steps,
      statistics_due=statistics_due,
    )
  )
  stack.callback(programs.close)
  state = restored[0] if restored else first_state(make_state, initial, mesh)

  # The loop.
  writer = metrics.NoWriter()
  if peers.is_first:
    writer = metrics.Writer(workdir, first_step, wandb=wandb)
    draw_start(writer, workdir, config, run_plan, schedule, first_step)
  stack.callback(writer.close)
  trace = metrics.Trace(workdir, profile_step, record=peers.is_first)
  stack.callback(trace.close)
  bar = Progress(
    schedule.total_steps, first_step, unit='step', quiet=not peers.is_first
  )
  stack.callback(bar.close)
  clock = metrics.StepClock(times)
  stack.callback(clock.close)
  bar.say(
    f'{len(schedule.grids)} grids, {schedule.total_steps} steps, '
    f'{schedule.total_epochs} epochs of {len(source)} videos; '
    f'{optim.num_parameters(state.params):,} parameters; '
    f'{mesh.size} {jax.default_backend()} device(s)'
    + (f' in {peers.count} processes' if peers.count > 1 else '')
    + (f'; resuming at step {first_step}' if first_step else '')
  )
  if changes:
    bar.say(f'Settings changed since: {"; ".join(changes)}')

  def fail(what, step, ids):
    raise_not_finite(
      what,
      step=step,
      ids=ids,
      schedule=schedule,
      config=config,
      workdir=workdir,
      checkpoints=checkpoints,
      peers=peers,
    )

  def stop_if_asked():
    # All processes call this after the same batch, and stop together.
    signals = [s for s in peers.exchange(stop.received) if s]
    if signals:
      raise evaluate.Stopped(signals[0])

  def program_for(*name):
    program = Program(*name)
    # Until all processes have it: then none need ask again.
    while program not in ready:
      there = programs.wait(program, 0.0 if stop.received else POLL_S)
      if all(peers.exchange(there)):
        ready.add(program)
      else:
        stop_if_asked()
    return programs[program]

  def take_statistics(step):
    begin = time.perf_counter()
    new = precise_statistics(
      state,
      train_stream,
      step,
      program_for('stats', schedule.phase(step - 1).base),
      config,
      mesh,
      rng,
      report=stop_if_asked,
    )
    times.eval_s += time.perf_counter() - begin
    return state.replace(batch_stats=new)

  def save(step, replace=False):
    begin = time.perf_counter()
    # What the loss of the next step would show, but that comes too late.
    if not train_step.is_finite(state):
      fail('The state', step - 1, [n for s in seen for n in s['ids']])
    record = {
      'times': vars(times),
      'bad_videos': bad_videos,
      'statistics_due': statistics_due,
    }
    writer.flush()
    checkpoints.save(state, step, record, replace=replace)
    times.checkpoint_s += time.perf_counter() - begin

  def run_evaluation(step):
    begin = time.perf_counter()
    partial = evaluate.Partial(
      workdir,
      evaluate.partial_key(config, state, eval_source),
      config.eval.save_every_s,
    )

    def report_batch(number, total):
      bar.update(step, f'evaluation {number}/{total}')
      if number < total:
        stop_if_asked()

    result = evaluate.evaluate(
      program_for('eval', evaluate.eval_grid(config)),
      state,
      eval_stream,
      mesh,
      report=report_batch,
      partial=partial,
    )
    times.eval_s += time.perf_counter() - begin
    checkpoints.scores[step] = result.get('map', result['top1'])
    writer.write(
      {
        **position(schedule, step),
        'train_s': times.train_s,
        'wait_fraction': times.wait_fraction,
        **{
          f'eval_{k}': result[k]
          for k in (*evaluate.METRICS, 'num_scored')
          if k in result
        },
      }
    )
    bar.say(
      f'step {step}, epoch {schedule.epoch(step):.1f}: '
      + evaluate.describe(result)
    )
    if peers.is_first:
      evaluate.write_result(workdir, {'step': step, **result})
      partial.remove()
      writer.picture('confusion', report.confusion(result), step)
    return result

  result = None
  ready = set()  # Programs that all processes have.
  seen = []
  done = first_step
  window = LogWindow(
    schedule,
    writer,
    bar,
    clock,
    every=config.train.log_every_steps,
    step_gflop=step_gflop(run_plan, schedule),
    peak_gflops=1e3 * config.train.peak_tflops * mesh.size,
    fail=fail,
  )
  batches = train_stream.batches(first_step)
  try:
    if first_step in eval_steps:
      # The run stopped between this checkpoint and its evaluation.
      if statistics_due:
        state = take_statistics(first_step)
        statistics_due = False
        save(first_step, replace=True)
      result = run_evaluation(first_step)
    last_save = time.monotonic()
    training_began = time.perf_counter()
    clock.restart()
    for step in range(first_step, schedule.total_steps):
      grid = schedule(step)
      if said := trace.before(step, clock.drain):
        bar.say(said)
      asked_batch = time.perf_counter()
      batch = next(batches)
      got_batch = time.perf_counter()
      program = program_for('train', grid)
      got_program = time.perf_counter()
      phase = schedule.phase(step)
      groups = phase.bn_groups[schedule.cycle_index(step)]
      lr = schedule.lr(step)
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        state, step_metrics = program(
          state,
          parallel.put_batch(mesh, on_device(batch)),
          *put_scalars(mesh, lr, groups),
          rng,
        )
      done = step + 1
      at_evaluation = done in eval_steps
      statistics_due = at_evaluation and config.norm.precise_batches > 0
      # All processes must do the same: what one has noticed, all act on. The
      # first one's watch says when a checkpoint is due.
      late = time.monotonic() - last_save > config.train.checkpoint_every_s
      seen = peers.exchange(
        {
          'ids': batch['ids'],
          'skipped': batch['skipped'],
          'late': late,
          'signal': stop.received,
        }
      )
      note_bad_videos(
        bad_videos,
        [text for s in seen for text in s['skipped']],
        len(source),
        config,
      )
      clock.dispatched(
        step_metrics,
        asked_batch=asked_batch,
        got_batch=got_batch,
        got_program=got_program,
        report=window.reporter(
          step, grid, lr, groups, [name for s in seen for name in s['ids']]
        ),
      )
      checkpoints.check()
      if signals := [s['signal'] for s in seen if s['signal']]:
        raise evaluate.Stopped(signals[0])

      due = seen[0]['late']
      if every := config.train.checkpoint_every_steps:
        due = done % every == 0
      if not (at_evaluation or due):
        continue
      clock.drain()
      if statistics_due:
        state = take_statistics(done)
        statistics_due = False
      save(done)
      last_save = time.monotonic()
      if at_evaluation:
        result = run_evaluation(done)
      clock.restart()
    clock.drain()
  except evaluate.Stopped as stopped:
    clock.drain()
    if done > first_step:
      save(done)
    bar.say(f'Stopped at step {done}; the same command goes on from there.')
    programs.close(wait=False)
    sys.exit(exit_code(stopped.args[0]))
  if said := trace.close():
    bar.say(said)

  if not peers.is_first:
    return {}
  summary = summarize(
    config,
    schedule,
    run_plan,
    programs,
    times,
    result,
    bad_videos,
    startup_s=training_began - started,
  )
  picture = report.draw(workdir, schedule)
  writer.picture('report', picture, schedule.total_steps)
  # Last: a folder with this file holds a finished run.
  files.write_text(finished, json.dumps(summary, indent=1) + '\n')
  return summary


def draw_start(writer, workdir, config, run_plan, schedule, first_step) -> None:
  """Writes what is known before the first step to the places to watch a run."""
  if first_step:
    return
  picture = plan_picture.draw(run_plan, schedule, workdir / 'plan.png')
  writer.picture('schedule', picture, 0)
  writer.settings(config, metric='eval_top1')


def step_gflop(run_plan: dict, schedule: GridSchedule) -> dict[Grid, float]:
  """Floating-point operations of a training step of each grid, in 1e9.

  Two for each multiply-add of the forward pass, and twice as many again in
  the backward pass: for the gradients of inputs and of parameters.
  """
  gmacs = run_plan['gmacs_per_clip']
  return {
    grid: 6 * gmacs_per_clip * grid.batch
    for grid, gmacs_per_clip in zip(schedule.grids, gmacs, strict=True)
  }


def initial_variables(
  config: ml_collections.ConfigDict, abstract: train_step.TrainState
) -> dict:
  """Reads the weights of config.init_from.

  Args:
    config: The run's configuration.
    abstract: Shapes and shardings of the run's state.

  Returns:
    {'params', 'batch_stats'}; without the classifier where config.init_head
    is 'new'.

  Raises:
    ConfigError: There are none, or of another network.
  """
  path = checkpoint.find(config.init_from, 'init_from')
  wanted = {name: getattr(abstract, name) for name in checkpoint.VARIABLES}
  try:
    return checkpoint.load_variables(
      path, wanted, head=config.init_head == 'load'
    )
  except ConfigError as error:
    hint = ''
    if f'/{models.HEAD}/' in str(error):
      hint = "; init_head='new' starts with a new classifier"
    raise ConfigError(f'init_from: {error}{hint}') from error


def state_maker(config: ml_collections.ConfigDict, model, tx):
  """Returns a function without arguments that makes the initial state."""

  def make_state():
    return train_step.create_state(
      model,
      tx,
      jax.random.key(config.seed),
      evaluate.example_video(config),
      average=config.optim.ema_decay > 0,
    )

  return make_state


def first_state(make_state, initial: dict, mesh) -> train_step.TrainState:
  """Makes the state before the first step.

  Args:
    make_state: Of `state_maker`.
    initial: Of `initial_variables`; {} for random weights.
    mesh: Devices.
  """
  state = jax.jit(make_state, out_shardings=parallel.replicated(mesh))()
  if not initial:
    return state
  params = state.params | initial['params']
  return state.replace(
    params=params,
    batch_stats=initial['batch_stats'],
    # A copy: the step donates both.
    ema=jax.tree.map(jnp.copy, params) if state.ema else {},
  )


def raise_not_finite(
  what: str, *, step: int, ids, schedule, config, workdir, checkpoints, peers
):
  """Writes what replays a step that is not finite, and stops the run.

  Args:
    what: What is not finite: the first words of the message.
    step: The step.
    ids: Of its clips.
    schedule: The run's schedule.
    config: The run's configuration.
    workdir: The bundle becomes its folder failure-STEP.
    checkpoints: Of the run; all of them are from before the step.
    peers: Its processes, all of which must come here.

  Raises:
    RunError: Always.
  """
  grid, lr = schedule(step), schedule.lr(step)
  folder = workdir / f'failure-{step}'
  bundle.write(
    folder,
    config,
    checkpoints,
    {
      'step': step,
      'what': what,
      'lr': lr,
      'grid': grid._asdict(),
      'ids': ids,
    },
    peers,
  )
  last = max(checkpoints.steps(), default=0)
  raise RunError(
    f'{what} of step {step} is not finite (grid {grid}, learning rate {lr:g}). '
    f'The newest checkpoint is of step {last}; lower optim.base_lr, raise '
    'optim.warmup_epochs or set optim.clip_norm. '
    f'{interpreter()} -m mgjax.replay --bundle={folder} runs the step again.'
  )


def lower_programs(
  config,
  schedule,
  model,
  tx,
  mesh,
  abstract,
  first_step,
  eval_steps,
  *,
  statistics_due=False,
) -> dict:
  """Functions that lower each program still needed, in order of first use.

  With `statistics_due`, the evaluation after `first_step` needs statistics.
  """
  data = config.data
  replicated, sharded = parallel.replicated(mesh), parallel.sharded(mesh)
  pixels = {'mean': data.mean, 'std': data.std}
  run_train_step = jax.jit(
    train_step.make_train_step(
      model,
      tx,
      **pixels,
      label_smoothing=config.optim.label_smoothing,
      ema_decay=config.optim.ema_decay,
      micro_batches=config.train.micro_batches,
      loss=config.optim.loss,
      augment=augment.make_augment(config),
    ),
    donate_argnums=0,
    out_shardings=replicated,
  )
  run_stats_step = jax.jit(
    train_step.make_stats_step(model, **pixels), out_shardings=replicated
  )
  scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=replicated)
  key = scalar(jax.random.key(0).dtype)

  def batch_spec(grid: Grid) -> dict:
    spec = lambda shape, dtype: jax.ShapeDtypeStruct(
      (grid.batch, *shape), dtype, sharding=sharded
    )
    label = spec((), np.int32)
    if config.optim.loss == 'sigmoid':
      label = spec((config.model.num_classes,), np.float32)
    return {
      'video': spec((grid.T, grid.H, grid.W, 3), np.uint8),
      'label': label,
      'flip': spec((), np.bool_),
    }

  needed = {}  # First step of use by program, in whatever order.
  start = 0
  for phase in schedule.phases:
    for i, grid in enumerate(phase.cycle):
      # The first step at or after first_step that has this grid.
      step = start + i
      if step < first_step:
        step += -(-(first_step - step) // len(phase.cycle)) * len(phase.cycle)
      if step < phase.end_step:
        needed.setdefault(Program('train', grid), step)
    start = phase.end_step
  for step in eval_steps:
    if step >= first_step:
      needed.setdefault(Program('eval', evaluate.eval_grid(config)), step - 0.5)
      needs_statistics = step > first_step or statistics_due
      if config.norm.precise_batches and needs_statistics:
        base = schedule.phase(step - 1).base
        needed.setdefault(Program('stats', base), step - 0.5)

  def lower(program: Program):
    batch = batch_spec(program.grid)
    if program.kind == 'train':
      return run_train_step.lower(
        abstract, batch, scalar(jnp.float32), scalar(jnp.int32), key
      )
    if program.kind == 'stats':
      return run_stats_step.lower(abstract, batch, scalar(jnp.int32), key)
    return evaluate.lower_eval_step(config, model, mesh, abstract)

  return {
    program: lambda program=program: lower(program)
    for program in sorted(needed, key=needed.get)
  }


def precise_statistics(
  state, train_stream, step, program, config, mesh, rng, report
) -> dict:
  """Running statistics from fresh training batches.

  Args:
    state: After `step` steps.
    train_stream: Gives the batches, at the base grid of the phase just left.
    step: Steps done.
    program: The statistics program of that grid.
    config: norm.precise_batches says how many.
    mesh: Devices.
    rng: The run's key.
    report: Called after each batch.

  Source: Wu et al. 2020; SlowFast 287ec00, tools/train_net.py
    calculate_and_update_precise_bn.
  """
  phase = train_stream.schedule.phase(step - 1)
  _, groups = put_scalars(mesh, 0.0, phase.bn_groups[-1])
  moments = []
  for batch in train_stream.base_batches(step, config.norm.precise_batches):
    batch = parallel.put_batch(mesh, on_device(batch))
    jax.block_until_ready(moments[-2:-1])  # Few batches wait in its memory.
    moments.append(program(state, batch, groups, rng))
    report()
  return jax.device_put(
    norm.combine_statistics(moments), parallel.replicated(mesh)
  )


def on_device(batch: dict) -> dict:
  """The part of a batch that a program takes."""
  return {name: batch[name] for name in ('video', 'label', 'flip')}


def put_scalars(mesh, lr: float, groups: int) -> tuple[jax.Array, jax.Array]:
  """Moves the learning rate (float32) and batch-norm groups (int32)."""
  return parallel.put_replicated(mesh, (np.float32(lr), np.int32(groups)))


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


def position(schedule: GridSchedule, step: int) -> dict:
  """Where a run is after `step` steps: the start of every metrics line."""
  grid = schedule(step - 1)
  return {
    'step': step,
    'epoch': schedule.epoch(step),
    'clips': schedule.clips_before(step),
    **grid._asdict(),
  }


class LogWindow:
  """Turns finished steps into metrics lines and the progress text."""

  def __init__(
    self,
    schedule,
    writer,
    bar,
    clock,
    *,
    every: int,
    step_gflop: dict[Grid, float],
    peak_gflops: float,
    fail,
  ):
    self._schedule = schedule
    self._writer = writer
    self._bar = bar
    self._times = clock.times
    self._every = every
    self._step_gflop = step_gflop
    self._peak_gflops = peak_gflops
    self._fail = fail  # Called where a step went wrong.
    self._start = metrics.Times(**vars(clock.times))
    self._clips = 0
    self._steps = 0

  def reporter(
    self, step: int, grid: Grid, lr: float, groups: int, ids: list[str]
  ):
    """Returns what the clock calls once `step` has finished."""

    def report_step(values: dict, step_s: float) -> None:
      done = step + 1
      self._clips += grid.batch
      self._steps += 1
      schedule = self._schedule
      recent = self._times - self._start
      # Read up to two steps late (StepClock), so that the device never waits
      # for it; checkpoints wait for all steps before them.
      for name, text in (('loss', 'loss'), ('grad_norm', 'gradient norm')):
        if not math.isfinite(values[name]):
          self._fail(f'The {text}', step, ids)
      clips_per_s = self._clips / max(recent.train_s, 1e-9)
      left = self._times.train_s * (schedule.total_steps - done) / done
      self._bar.update(
        done,
        f'grid {grid}  loss {values["loss"]:.3f}  {clips_per_s:.0f} clips/s  '
        f'waiting for data {100 * recent.wait_fraction:.0f} %  '
        f'left {duration(left)}',
      )
      if done % self._every == 0 or done == schedule.total_steps:
        # Of this step alone, hence of its grid.
        gflops = self._step_gflop[grid] / max(step_s, 1e-9)
        usage = {'gflops': gflops}
        if self._peak_gflops:
          usage['mfu'] = gflops / self._peak_gflops
        self._writer.write(
          {
            **position(schedule, done),
            'train_s': self._times.train_s,
            'wait_fraction': recent.wait_fraction,
            'compile_wait_s': self._times.compile_s,
            'step_s': step_s,
            'steps_per_s': self._steps / max(recent.train_s, 1e-9),
            'clips_per_s': clips_per_s,
            **usage,
            'lr': lr,
            'bn_groups': groups,
            # Two runs that show the same number saw the same videos.
            'ids_crc32': zlib.crc32(' '.join(ids).encode()),
            **values,
          }
        )
        self._start = metrics.Times(**vars(self._times))
        self._clips = self._steps = 0

    return report_step


class StopSignal:
  """Notes SIGTERM and SIGINT; a run stops after the batch that it computes.

  A second signal acts at once, as if this were not here.
  """

  def __init__(self):
    self.received = None
    for number in (signal.SIGTERM, signal.SIGINT):
      try:
        signal.signal(number, self._note)
      except ValueError:  # Not the main thread, as in some tests.
        return

  def _note(self, number, frame) -> None:
    del frame
    self.received = number
    signal.signal(number, signal.SIG_DFL)


def exit_code(number: int) -> int:
  """Exit code of a run that a signal has stopped."""
  return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_RESTART


def note_bad_videos(
  bad: dict, skipped: list[str], num_train: int, config
) -> None:
  """Counts replaced videos; too many stop the run."""
  for text in skipped:
    name, reason = text.split(': ', 1)
    if name not in bad:
      bad[name] = reason
      print(f'\ncannot decode {text}; replaced', file=sys.stderr)
  if len(bad) > config.data.max_bad_fraction * num_train:
    name, reason = list(bad.items())[-1]
    raise RunError(
      f'{len(bad)} of {num_train} training videos cannot be decoded, more than '
      f'data.max_bad_fraction={config.data.max_bad_fraction} allows; the last '
      f'is {name}: {reason}'
    )


def check_workdir(
  config: ml_collections.ConfigDict, workdir: epath.Path, allow_change: bool
) -> list[str]:
  """Looks for the run of a folder.

  Args:
    config: The new run's.
    workdir: The folder, which need not exist.
    allow_change: Whether the config may differ from that of the old run.

  Returns:
    What has changed since then, 'field: old -> new'.

  Raises:
    ConfigError: Settings have changed; the message names the fields.
  """
  path = workdir / 'config.json'
  if not path.exists():
    return []
  new = json.loads(config.to_json_best_effort())
  changed = changed_fields(json.loads(path.read_text()), new)
  if changed and not allow_change:
    raise ConfigError(
      f'--workdir={workdir} holds a run with other settings: '
      f'{"; ".join(changed)}. Use another folder, or the old settings, or '
      '--allow_config_change to go on with the new ones'
    )
  return changed


def prepare_workdir(
  config: ml_collections.ConfigDict, workdir: epath.Path
) -> None:
  """Makes the folder and writes config.json.

  Raises:
    ConfigError: The folder cannot be written.
  """
  text = json.dumps(json.loads(config.to_json_best_effort()), indent=1)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_text(workdir / 'config.json', text + '\n')
  except OSError as error:
    raise ConfigError(
      f'--workdir={workdir} cannot be written: {error.strerror}'
    ) from error


def changed_fields(old: dict, new: dict, prefix: str = '') -> list[str]:
  """Differences of two nested dicts as 'group.field: old -> new'.

  The fields that only say how a machine runs the training are left out.
  """
  free = ('train.', 'data.dir', 'data.num_workers', 'data.prefetch_batches')
  changes = []
  for name in sorted(old.keys() | new.keys()):
    path = prefix + name
    a, b = old.get(name), new.get(name)
    if isinstance(a, dict) and isinstance(b, dict):
      changes += changed_fields(a, b, path + '.')
    elif a != b and not path.startswith(free):
      changes.append(f'{path}: {a} -> {b}')
  return changes


def summarize(
  config, schedule, run_plan, programs, times, result, bad_videos, *, startup_s
) -> dict:
  """What a record keeps of a finished run."""
  return {
    'mode': config.grid.mode,
    'seed': config.seed,
    **{k: result[k] for k in evaluate.METRICS if k in result},
    'num_videos': result['num_videos'],
    'num_scored': result['num_scored'],
    'steps': schedule.total_steps,
    'epochs': schedule.total_epochs,
    'clips': schedule.total_clips,
    'num_grids': len(schedule.grids),
    'num_compiled': programs.compiled('train'),
    'num_from_disk': sum(p.kind == 'train' for p in programs.from_disk),
    'baseline_steps': run_plan['baseline']['steps'],
    'predicted_speedup': run_plan['speedup'],
    'startup_s': startup_s,
    # Of all threads of this launch, evaluation and compilation included; less
    # sensitive than the other times to what else the machine does.
    'cpu_s': time.process_time(),
    'compile_s': sum(programs.compile_s.values()),
    'compile_wait_s': times.compile_s,
    'train_s': times.train_s,
    **{
      name: getattr(times, name)
      for name in ('step_s', 'data_s', 'other_s', 'eval_s', 'checkpoint_s')
    },
    'wait_fraction': times.wait_fraction,
    'bad_videos': bad_videos,
    'environment': environment.describe(),
  }


def tell(
  summary: dict,
  workdir: epath.PathLike,
  config_arg: str,
  overrides: Mapping[str, Any] | None = None,
) -> str:
  """The closing words of a run.

  Args:
    summary: What `train` returns.
    workdir: The run's folder.
    config_arg: Value of --config.
    overrides: Fields of the config that the command line set, by dotted name.
  """
  s = summary
  programs = f'{s["num_compiled"]} compilations'
  if s['num_compiled'] < s['num_grids']:  # The launch went on with a run.
    programs = f'{s["num_compiled"]} of them compiled by this launch'
  file, _, arguments = config_arg.partition(':')
  other = 'both' if s['mode'] == 'none' else 'none'
  kept = [a for a in arguments.split(',') if a and not a.startswith('grid=')]
  other_config = f'{file}:{",".join([f"grid={other}", *kept])}'

  def command(name: str, config_arg: str, *flags: str) -> str:
    words = [f'--config={config_arg}', *flags]
    return f'{interpreter()} -m mgjax.{name} {shlex.join(words)}'

  fields = {f'--config.{k}': v for k, v in (overrides or {}).items()}
  given = [f'{name}={value}' for name, value in fields.items()]
  other_given = [g for g in given if not g.startswith('--config.grid.mode=')]
  to = f'--workdir={workdir}'
  return f"""
{evaluate.describe(s)}
{s['num_grids']} distinct grids, {programs} \
({s['num_from_disk']} of them read from the cache on disk)
{s['compile_s']:.0f} s compiling in the background ({s['compile_wait_s']:.0f} s\
 waited for), {s['data_s']:.0f} s waiting for data, {s['step_s']:.0f} s\
 stepping, {s['eval_s']:.0f} s evaluating
{s['steps']} steps ({s['baseline_steps']} without multigrid), {s['clips']} clips

checkpoint   {workdir}/checkpoints/{s['steps']}
metrics      {workdir}/metrics.jsonl
TensorBoard  {workdir}/events.out.tfevents.*
picture      {workdir}/report.png

Next:
  {command('plan', config_arg, *given)}
  {command('evaluate', config_arg, to, *given, '--config.eval.num_views=3')}
  {command('train', other_config, f'{to}-{other}', *other_given)}"""


def interpreter() -> str:
  """What starts this Python in the user's shell.

  A virtual environment that is not activated, as in `make demo`, by its path.
  """
  path = pathlib.Path(sys.executable)
  if not os.environ.get('VIRTUAL_ENV') and path.is_relative_to(os.getcwd()):
    return str(path.relative_to(os.getcwd()))
  return 'python'


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of everything the run writes; may be a gs:// path.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'allow_config_change',
    False,
    'Go on with the run in --workdir though settings have changed.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'profile',
    None,
    f'Trace {metrics.Trace.NUM_STEPS} steps, from this one on, into '
    'WORKDIR/plugins/profile.',
    lower_bound=0,
    flag_values=values,
  )
  parallel.define_flags(values)


def main(values: flags.FlagValues) -> None:
  if not values.workdir:
    raise ConfigError('--workdir is missing; give a folder for the run.')
  cpu_memory.keep()
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
      print(tell(summary, values.workdir, flag.config_filename, overrides))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags))
