"""A step as two programs is the step in one, and its second part is shared."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import moving_digits
from mgjax.grids.schedule import Grid
from mgjax.hosts import parallel
from mgjax.planning import made_up, program_text
from mgjax.setup import grids, network, programs
from mgjax.step import compilation, split_step
from mgjax.step import programs as step_programs
from mgjax.step.train_state import TrainState
from mgjax.step.train_step import Parts


def settings() -> ml_collections.ConfigDict:
  config = moving_digits.get_config('grid=both,size=tiny,model=slow')
  config.model.num_classes = 4
  config.optim.ema_decay = 0.9
  config.norm.group_clips = 4
  return config


@pytest.fixture(scope='module')
def made():
  """Settings, devices, network and functions that lower the programs."""
  config, mesh = settings(), parallel.make_mesh()
  parts = network.compose(config, mesh)
  schedule = grids.schedule(config, 240)
  lowered = programs.lower_programs(config, schedule, parts, mesh, 0, set())
  return config, mesh, parts, schedule, lowered


def arguments(made, grid: Grid) -> tuple:
  config, mesh, *_ = made
  spec = step_programs.batch_spec(grid, mesh)
  return (
    made_up.batch(spec, mesh, config.model.num_classes),
    *step_programs.put_scalars(mesh, 0.1, 1),
    parallel.make_key(mesh, 0),
    {},
  )


def test_a_step_in_two_programs_is_the_step_in_one(made):
  config, mesh, parts, schedule, lowered = made
  whole = jax.jit(
    programs.make_train_step(config, parts, schedule, mesh),
    out_shardings=parallel.replicated(mesh),
  )
  for program, lower in list(lowered.items())[:1]:
    inputs = arguments(made, program.grid)
    want, values = whole(made_up.state(parts.abstract, mesh), *inputs)
    found, told = lower().compile()(
      made_up.state(parts.abstract, mesh), *inputs
    )
    assert told.keys() == values.keys() == {'loss', 'top1', 'grad_norm'}
    assert jax.tree.structure(found) == jax.tree.structure(want)
    assert found.ema and found.step == 1
    # What the compiler fuses is rounded otherwise.
    for ours, theirs in zip(
      jax.tree.leaves((found, told)),
      jax.tree.leaves((want, values)),
      strict=True,
    ):
      assert ours.dtype == theirs.dtype and ours.sharding == theirs.sharding
      np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def test_the_memory_of_the_old_state_is_given_back(made):
  _, mesh, parts, _, lowered = made
  program, lower = next(iter(lowered.items()))
  old = made_up.state(parts.abstract, mesh)
  lower().compile()(old, *arguments(made, program.grid))
  for gone in jax.tree.leaves((old.params, old.opt_state, old.ema)):
    assert gone.is_deleted()


def test_all_grids_share_the_second_program():
  sharding = parallel.replicated(parallel.make_mesh())
  # Of a batch's length the first part knows, and the second does not.
  step = split_step.SplitStep(
    Parts(
      gradients=lambda state, batch, groups, rng, strengths: (
        {'w': batch.sum() * state.params['w']},
        {'mean': batch.mean()},
        {'loss': batch[0]},
      ),
      update=lambda state, grads, lr: (
        state.replace(params={'w': state.params['w'] - lr * grads['w']}),
        abs(grads['w'][0]),
      ),
    ),
    sharding,
  )
  state = lambda: TrainState(
    jnp.zeros((), int), {'w': jnp.ones(2)}, {'mean': jnp.zeros(())}, {}
  )
  compiled = []
  listener = lambda event, *_, **__: (
    event == '/jax/core/compile/backend_compile_duration'
    and compiled.append(event)
  )
  batches = [jnp.ones(3), jnp.ones(5)]
  lr = jnp.float32(0.1)
  lowered = [step.lower(state(), batch, lr, 1, 0, {}) for batch in batches]
  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    for options in (None, {'xla_backend_optimization_level': 1}):
      programs = [each.compile(options) for each in lowered]
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  # Two programs of gradients and one update; other options make others.
  assert len(compiled) == 2 * (2 + 1)
  for program, batch, want in zip(programs, batches, (0.7, 0.5), strict=True):
    new, metrics = program(state(), batch, lr, 1, 0, {})
    np.testing.assert_allclose(new.params['w'], want)
    assert new.batch_stats == {'mean': 1}
    assert metrics == {'loss': 1, 'grad_norm': batch.size}


def test_what_the_compiler_says_is_that_of_both_programs(made):
  *_, lowered = made
  low = next(iter(lowered.values()))()
  assert low.as_text().count('module @jit_') == 2
  found = low.compile()
  parts = [found._gradients, found._update]
  text = program_text.read(found.as_text())
  alone = [program_text.read(part.as_text()) for part in parts]
  assert text.convolutions == alone[0].convolutions and text.convolutions
  assert text.collectives == alone[0].collectives and text.collectives
  assert text.accessed_bytes == sum(part.accessed_bytes for part in alone)
  flops = [part.cost_analysis()['flops'] for part in parts]
  assert found.cost_analysis()['flops'] == sum(flops) > max(flops)
  needed = [compilation.needed_bytes(part) for part in parts]
  assert compilation.needed_bytes(found) == max(needed) == needed[0]


def test_memory_counts_what_the_gradients_do_not_read(made):
  *_, parts, _, lowered = made
  found = next(iter(lowered.values()))().compile()
  held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts.abstract))
  assert found.memory_analysis().argument_size_in_bytes > held
