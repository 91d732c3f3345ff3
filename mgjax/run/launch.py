"""A launch of a run: the command mgjax.train, and what is around its loop."""

import contextlib
import json
import sys
import time
from typing import Any

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from mgjax import files, stop_signal
from mgjax.cpu import allocator
from mgjax.errors import ConfigError
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.run import (
  checkpoint,
  checkpoint_manager,
  run_lock,
  run_summary,
  writers,
)
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.run.loop import Training
from mgjax.setup import run_settings
from mgjax.setup.job import Job, make_job
from mgjax.step import step_cache


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
    # From the outside in. Signals first, so that none is missed; the lock
    # outlives all that writes into the folder; what must be closed, however the
    # run ends, goes on the stack. An error that ends all processes (`guard`)
    # has by then been put into words by the lock, if the folder was moved.
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
      # What follows writes the settings: not those of no step.
      if (summary := finished_summary(job)) is not None:
        return summary
      checkpoint_manager.check_resumable(
        workdir, job.network.abstract, job.schedule.total_steps
      )
      peers.exchange(None)  # All have looked before the first one writes.
      wandb = start_workdir(job, lock) if peers.is_first else None
      checkpoints = stack.enter_context(
        Checkpoints(
          workdir,
          Keep(config.train.keep_checkpoints, config.train.keep_best),
          peers,
        )
      )
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


def finished_summary(job: Job) -> dict | None:
  """The summary of a run that has ended; None while there are steps to take.

  The same command is safe to repeat: a scheduler may start it once more.
  """
  path = job.workdir / 'summary.json'
  if not path.exists():
    return None
  if job.schedule.total_steps not in checkpoint.steps(job.workdir):
    return None
  summary = files.read_json(path)
  if job.peers.is_first:
    said = f'{job.workdir}: this run has finished already'
    if job.changes:
      said += f' with other settings ({"; ".join(job.changes)}); give another '
      said += '--workdir to train with these'
    print(said, file=sys.stderr)
  return summary


def start_workdir(job: Job, lock: run_lock.RunLock) -> Any:
  """Writes settings and plan; returns the run in Weights & Biases, or None.

  Args:
    job: The run.
    lock: That of its folder, which is taken.

  Raises:
    ConfigError: Another run has the folder, or it cannot be written.
  """
  lock.take()
  run_settings.prepare(
    job.config, job.workdir, job.train_stream.source.label_names
  )
  lock.keep(job.workdir / 'config.json')
  files.write_text(job.workdir / 'plan.json', json.dumps(job.plan, indent=1))
  return writers.open_wandb(
    job.config.train.wandb_project, job.workdir, run_settings.flat(job.config)
  )


def main(values: flags.FlagValues) -> None:
  if not values.workdir:
    raise ConfigError('--workdir is missing; give a folder for the run.')
  allocator.keep()  # Before JAX starts, which allocates.
  settings = run_settings.of_all_processes(values.config)
  with contextlib.closing(parallel.start(values, settings)) as peers:
    try:
      summary = train(
        values.config,
        values.workdir,
        peers=peers,
        allow_config_change=values.allow_config_change,
        profile_step=values.profile,
      )
    except SystemExit as stopped:
      # XLA's threads crash where Python takes down what they work with.
      if step_cache.is_compiling():
        parallel.leave(peers, stopped.code)
      raise
    if peers.is_first:
      flag = values['config']
      overrides = config_flags.get_override_values(flag)
      print(
        run_summary.tell(
          summary,
          values.workdir,
          config_flags.get_config_filename(flag),
          overrides,
        )
      )
