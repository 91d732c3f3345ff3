"""Runs the failing step of a run again, from the bundle that the run wrote."""

import ml_collections
import numpy as np
from absl import flags
from etils import epath

from mgjax.hosts import parallel
from mgjax.run import checkpoint, failure, run_folder
from mgjax.setup import augmentation, data, grids, job, planning, run_checks
from mgjax.setup import programs as programs_setup
from mgjax.setup.initial_weights import initial_variables
from mgjax.step import compilation, programs, train_state
from mgjax.step.step_cache import Program

_SHOWN = 8  # Names in a list.


def replay(config: ml_collections.ConfigDict, folder: epath.PathLike) -> dict:
  """Takes the steps from a bundle's checkpoint to the failing one.

  On the backend and number of devices of the run, with its settings, they are
  the run's own, bit for bit.

  Args:
    config: The settings, those of the bundle or with changes.
    folder: The bundle.

  Returns:
    'steps': a list of {'step', 'loss', 'grad_norm', ...}; 'bad_before' and
    'bad_after': names of the arrays of the state that are not finite before
    and after the last of them; 'same_clips': whether that one had the clips
    of the run.
  """
  failed = failure.read_failure(epath.Path(folder))
  config = data.with_classes(config)
  run_checks.check_norm(config)
  planning.check_network(config, [grids.full_grid(config)])
  planning.check_parameters(config)
  parts = job.compose(config, parallel.make_mesh())
  mesh, schedule = parts.mesh, parts.schedule
  state, first_step = _first_state(parts, folder)
  lowered = programs_setup.lower_programs(
    *(config, schedule, parts.network, mesh, first_step, ()),
    class_weights=parts.class_weights,
  )
  compiled = {}
  rng = parallel.make_key(mesh, config.seed)
  result = {'steps': []}
  for step in range(first_step, failed['step'] + 1):
    program = Program('train', schedule(step))
    if program not in compiled:
      compiled[program] = compilation.compile_program(
        lowered[program](), parallel.platform(mesh)
      )
    batch = parts.train_stream.batch(step)
    if step == failed['step']:
      result['bad_before'] = not_finite(state)
      result['same_clips'] = batch['ids'] == failed['ids']
    state, metrics = compiled[program](
      state,
      programs.put_batch(mesh, batch),
      *programs.put_scalars(mesh, schedule.lr(step), schedule.bn_groups(step)),
      rng,
      augmentation.put_strengths(config, schedule, mesh, step),
    )
    values = {name: float(value) for name, value in metrics.items()}
    result['steps'].append({'step': step, **values})
  result['bad_after'] = not_finite(state)
  return result


def _first_state(
  parts: job.Composition, folder: epath.PathLike
) -> tuple[train_state.TrainState, int]:
  """The state of a bundle's checkpoint, or that before the run's first step."""
  made = parts.network
  if steps := checkpoint.steps(folder):
    path = checkpoint.find(folder, '--bundle')
    return checkpoint.restore(path, made.abstract)[0], steps[-1]
  initial = initial_variables(parts.config, made.abstract)
  seed = parts.config.seed
  return train_state.first_state(made.make_state, seed, initial, parts.mesh), 0


def not_finite(state: train_state.TrainState) -> list[str]:
  """Names of the arrays of a state that hold a NaN or an infinity."""
  return [
    path
    for path, array in checkpoint.by_path(state).items()
    if not np.isfinite(np.asarray(array)).all()
  ]


def main(values: flags.FlagValues) -> None:
  folder = run_folder.bundle_of_flags(values)
  parallel.find_devices()
  result = replay(values.config, folder)
  for line in result['steps'][-_SHOWN:]:
    print(
      f'step {line["step"]}: loss {line["loss"]:g}, gradient norm '
      f'{line["grad_norm"]:g}'
    )
  if not result['same_clips']:
    print('the clips of the last step are not those of the run')
  for when in ('before', 'after'):
    names = result[f'bad_{when}']
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    print(
      f'not finite {when} the last step: '
      f'{", ".join(names[:_SHOWN]) or "nothing"}{more}'
    )
