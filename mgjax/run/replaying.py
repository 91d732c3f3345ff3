"""Runs the failing step of a run again, from the bundle that the run wrote."""

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from mgjax.cpu import compilation
from mgjax.hosts import parallel
from mgjax.run import checkpoint, run_folder
from mgjax.run import failure as bundle
from mgjax.setup import data as data_setup
from mgjax.setup import grids, network, planning, run_checks
from mgjax.step import initial_state, optim, programs, train_step
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
  failure = bundle.read_failure(epath.Path(folder))
  run_checks.check_norm(config)
  planning.check_network(config, [grids.full_grid(config)])
  source = data_setup.source(config, 'train')
  mesh = parallel.make_mesh()
  schedule = grids.schedule(config, len(source), num_devices=mesh.size)
  train_stream = data_setup.train_stream(config, schedule, source)
  model = network.model(config)
  tx = optim.make_optimizer(config.optim, config.norm.frozen)
  make_state = initial_state.state_maker(config, model, tx)
  replicated = parallel.replicated(mesh)
  abstract = checkpoint.abstract_state(make_state, replicated)
  checkpoints = checkpoint.Checkpoints(folder)
  first_step = max(checkpoints.steps(), default=0)
  if first_step:
    state, _ = checkpoints.restore(abstract, first_step)
  else:
    initial = {}
    if config.init_from:
      initial = initial_state.initial_variables(config, abstract)
    state = initial_state.first_state(make_state, initial, mesh)
  checkpoints.close()
  lowered = programs.lower_programs(
    config, schedule, model, tx, mesh, abstract, first_step, set()
  )
  compiled = {}
  rng = jax.device_put(jax.random.key(config.seed), replicated)
  result = {'steps': []}
  for step in range(first_step, failure['step'] + 1):
    program = Program('train', schedule(step))
    if program not in compiled:
      compiled[program] = compilation.compile_program(lowered[program]())
    batch = train_stream.batch(step)
    if step == failure['step']:
      result['bad_before'] = not_finite(state)
      result['same_clips'] = batch['ids'] == failure['ids']
    state, metrics = compiled[program](
      state,
      parallel.put_batch(mesh, programs.on_device(batch)),
      *programs.put_scalars(mesh, schedule.lr(step), schedule.bn_groups(step)),
      rng,
    )
    values = {name: float(value) for name, value in metrics.items()}
    result['steps'].append({'step': step, **values})
  result['bad_after'] = not_finite(state)
  return result


def not_finite(state: train_step.TrainState) -> list[str]:
  """Names of the arrays of a state that hold a NaN or an infinity."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in leaves
    if not np.isfinite(np.asarray(leaf)).all()
  ]


def main(values: flags.FlagValues) -> None:
  folder = run_folder.bundle(values)
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
