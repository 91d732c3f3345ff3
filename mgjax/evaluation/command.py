"""The command `evaluate`: a checkpoint of a run becomes eval.json."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import ml_collections
from absl import flags
from etils import epath

from mgjax import files, stop_signal
from mgjax.cpu import allocator
from mgjax.data import sources
from mgjax.data.eval_stream import EvalStream
from mgjax.errors import ConfigError
from mgjax.evaluation import eval_picture, results, scoring
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.progress import Progress
from mgjax.run import checkpoint, run_folder
from mgjax.setup import data as data_setup
from mgjax.setup import (
  evaluation,
  grids,
  planning,
  run_checks,
  run_settings,
)
from mgjax.step import compilation
from mgjax.weights import checks


def evaluate_checkpoint(
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  step: int | None,
  peers: Peers | None = None,
  *,
  allow_config_change: bool = False,
  stop: stop_signal.Listener | None = None,
) -> dict:
  """Scores a checkpoint of a run and writes workdir/eval.json and eval.png.

  Args:
    config: The settings; those of eval and the machine's may be new.
    workdir: The run's folder.
    step: Checkpoint; None: the newest.
    peers: The processes that share the work; None: this one alone.
    allow_config_change: Whether all other settings may differ as well.
    stop: Asked for signals after every batch; None: nobody.

  Returns:
    What `results.evaluate` returns, with 'step', 'config_eval' and the settings
    that differ from the run's, by 'group.field' ('overrides').

  Raises:
    ConfigError: There is no such checkpoint, or the settings cannot work.
    Stopped: There was a signal; what has been scored is kept.
  """
  peers = peers or Peers()
  workdir = epath.Path(workdir)
  config = data_setup.with_classes(config)
  overrides = run_settings.check_evaluation(
    config, workdir, allow_config_change
  )
  mesh = parallel.make_mesh()
  source = _open_source(config, mesh.size)
  overrides |= _other_labels(workdir, source, allow_config_change)
  if peers.is_first:
    files.check_output(
      workdir / results.FILE, os.fspath(workdir / results.FILE)
    )
  path = checkpoint.find(workdir, '--workdir', step)
  model, state = evaluation.load(config, mesh, path, instead='--step={step}')
  state = state.replace(step=int(path.name))
  checks.check_features(
    model,
    {'params': state.params, 'batch_stats': state.batch_stats},
    config.data.num_frames,
    path,
  )
  # After what is cheap to refuse: a large network compiles for minutes.
  program = compilation.compile_program(
    evaluation.lower_eval_step(config, model, mesh, state),
    parallel.platform(mesh),
  )
  key = evaluation.partial_key(config, state, source)
  partial = scoring.Partial(workdir, key, config.eval.save_every_s)
  eval_stream = data_setup.eval_stream(
    config, source, shard=peers.index, num_shards=peers.count
  )
  with _shown_progress(eval_stream, partial, peers, stop) as report:
    result = results.evaluate(
      program,
      state,
      eval_stream,
      mesh,
      ensemble=config.eval.ensemble,
      report=report,
      partial=partial,
      peers=peers,
    )
  protocol = {'config_eval': config.eval.to_dict(), 'overrides': overrides}
  result = {'step': state.step, **protocol, **result}
  if peers.is_first:
    results.write(workdir, result)
    title = f'{workdir.name}, step {state.step}: {results.describe(result)}'
    eval_picture.draw(workdir / 'eval.png', result, title=title)
    partial.remove()
  return result


@contextlib.contextmanager
def _shown_progress(
  eval_stream: EvalStream,
  partial: scoring.Partial,
  peers: Peers,
  stop: stop_signal.Listener | None,
) -> Iterator[Callable[[int, int], None]]:
  """Yields the `report` of `scoring.score`: a bar; it stops at a signal."""
  begun = partial.load()
  bar = Progress(
    eval_stream.num_batches,
    begun[0] if begun else 0,
    unit='batch',
    quiet=not peers.is_first,
  )

  def report(done: int, total: int) -> None:
    bar.update(done, bar.time_left(done))
    if stop:
      stop.defer(lambda: 'the batch at hand; all scores are kept')
      if done < total:
        stop.check(peers)

  with contextlib.closing(bar):
    yield report


def _open_source(
  config: ml_collections.ConfigDict, num_devices: int
) -> sources.Source:
  """Opens the videos, once it is certain that the settings can work.

  Raises:
    ConfigError: They cannot, or the data set is not there.
  """
  described = data_setup.describe(config, (config.eval.split,))
  run_checks.check_evaluation(config, described, num_devices)
  planning.check_network(config, [grids.eval_grid(config)])
  return data_setup.source(config, config.eval.split)


def _other_labels(
  workdir: epath.Path, source: sources.Source, allow_config_change: bool
) -> dict[str, str]:
  """What `overrides` says of names of classes that are not the run's.

  Raises:
    ConfigError: There are some, and they are not allowed.
  """
  other = run_folder.other_labels(workdir, source.label_names)
  if not other:
    return {}
  if not allow_config_change:
    raise ConfigError(
      f'{source.name} has other names of the classes than the run in '
      f'{workdir}, such as {other}: prepare it as it was, or give '
      '--allow_config_change'
    )
  return {'the names of the classes': other}


def main(values: flags.FlagValues) -> None:
  """Runs the command: see mgjax/evaluate.py for its flags."""
  allocator.keep()
  settings = run_settings.of_all_processes(values.config)
  with (
    contextlib.closing(parallel.start(values, settings)) as peers,
    stop_signal.listening() as stop,
    stop.at_end(peers.tell_stopped),
    peers.guard(),
  ):
    try:
      result = evaluate_checkpoint(
        values.config,
        values.workdir,
        values.step,
        peers,
        allow_config_change=values.allow_config_change,
        stop=stop,
      )
    except stop_signal.Stopped as stopped:
      if peers.is_first:
        print(
          'Stopped; the same command goes on with the next batch.',
          file=sys.stderr,
        )
      sys.exit(stop_signal.exit_code(stopped.args[0]))
  if not peers.is_first:
    return
  print(
    f'{results.describe(result)} ({result["num_views"]} views each), '
    f'step {result["step"]}; {values.workdir}/{results.FILE}, eval.png',
    *results.lost_views(result),
    sep='\n',
  )
