"""The memory of a device: what programs take, and runs that do not fit."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import moving_digits
from mgjax import models
from mgjax.data import stream
from mgjax.errors import ConfigError
from mgjax.grids.schedule import Grid
from mgjax.planning import plan
from mgjax.run import checkpoint, launch, loop
from mgjax.setup import network
from mgjax.step import compilation, step_cache, train_state, train_step

GRIDS = [Grid(4, 32, 32, 16), Grid(8, 32, 32, 8)]


def row(kind, grid, peak_bytes):
  return {'kind': kind, **grid._asdict(), 'peak_bytes': peak_bytes}


def test_a_plan_knows_memory_once_all_grids_are_compiled():
  assert plan.memory(GRIDS, 2, 0) == {'num_devices': 2, 'device_bytes': 0}
  rows = [row('train', GRIDS[1], 20), row('eval', GRIDS[0], 99)]
  assert 'compiled_bytes' not in plan.memory(GRIDS, 2, 50, rows)
  rows.append(row('train', GRIDS[0], 10))
  found = plan.memory(GRIDS, 2, 50, rows)
  assert found['compiled_bytes'] == [10, 20]
  assert [grid['total'] for grid in found['grids']] == [10, 20]


def compile_step(**options):
  """A small training step."""
  model = models.build(
    'slow', num_classes=16, dropout=0.5, blocks=(1,), width=4
  )
  tx = network.optimizer(moving_digits.get_config())
  state = jax.eval_shape(
    lambda: train_state.create_state(
      model, tx, jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3))
    )
  )
  step = train_step.make_train_step(
    model, tx, mean=(0.45,) * 3, std=(0.2,) * 3, **options
  )
  spec = lambda *shape, dtype: jax.ShapeDtypeStruct(shape, dtype)
  lowered = jax.jit(step, donate_argnums=0).lower(
    state,
    {
      'video': spec(32, 4, 32, 32, 3, dtype=np.uint8),
      'label': spec(32, dtype=np.int32),
      'flip': spec(32, dtype=bool),
    },
    spec(dtype=np.float32),
    spec(dtype=np.int32),
    jax.eval_shape(lambda: jax.random.key(0)),
  )
  return compilation.compile_program(lowered, 'cpu')


def test_micro_batches_are_computed_one_after_the_other():
  temporary = lambda step: step.memory_analysis().temp_size_in_bytes
  parts = temporary(compile_step(micro_batches=4))
  assert parts < 0.4 * temporary(compile_step())


def test_what_a_program_needs_is_all_that_is_allocated_for_it():
  """Arguments, results and temporary arrays; what is donated counts once."""
  x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)

  def num_arrays(step, **options):
    compiled = jax.jit(step, **options).lower(x).compile()
    return compilation.needed_bytes(compiled) / (4 * 1000 * 1000)

  assert num_arrays(lambda x: x + 1) == pytest.approx(2, abs=0.01)
  donated = num_arrays(lambda x: x + 1, donate_argnums=0)
  assert donated == pytest.approx(1, abs=0.01)
  assert num_arrays(lambda x: (x @ x) @ x) >= 3  # One product is temporary.


def test_a_program_that_does_not_fit_says_so_where_it_is_needed():
  lower = lambda: jax.jit(lambda x: x + 1).lower(jnp.zeros(1000))
  for device_bytes, fits in ((8000, True), (7999, False)):
    with step_cache.StepCache(
      {GRIDS[0]: lower}, platform='cpu', device_bytes=device_bytes
    ) as programs:
      if fits:
        assert programs[GRIDS[0]](jnp.zeros(1000))[0] == 1
        assert programs.failed is None
        continue
      with pytest.raises(
        compilation.OutOfMemory, match='4x32x32 b16 needs 0.0'
      ):
        programs[GRIDS[0]]
      assert programs.failed == GRIDS[0]


class Refused:
  """A program that a compiler has refused, as XLA:TPU does it."""

  def compile(self, compiler_options=None):
    raise jax.errors.JaxRuntimeError(
      'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, '
      'the total memory required for HLO temporaries (60.12G) exceeds '
      'available HBM (15.75G). HLO module: jit_f.\nSee https://openxla.org'
    )


def test_a_program_that_the_compiler_refuses_does_not_fit_either():
  with pytest.raises(compilation.OutOfMemory) as error:
    compilation.compile_program(Refused(), 'tpu')
  assert error.value.needed == int(60.12 * 2**30)
  assert 'needs 60.1 GiB of each device, which has 15.8 GiB' in str(error.value)


def test_a_training_that_does_not_fit_ends_before_it_reads_data(
  tiny_config, tmp_path, monkeypatch
):
  fail = lambda *arguments: pytest.fail('data is read')
  monkeypatch.setattr(stream.TrainStream, 'batches', fail)
  tiny_config.train.device_memory_gib = 1e-3
  words = 'train .* needs .* MiB of each device, which has 1.0 MiB; train.micro'
  with pytest.raises(ConfigError, match=words):
    launch.train(tiny_config, tmp_path / 'run')


def test_a_later_program_that_does_not_fit_costs_no_step(
  tiny_config, tmp_path, monkeypatch
):
  original = loop.Training._program
  tiny_config.train.device_memory_gib = 64.0
  waits_s = [0.7]  # Of the first program.

  def program(self, kind, grid):
    if waits_s:
      time.sleep(waits_s.pop())
    if self.done == 3:
      raise compilation.OutOfMemory(2**30, 2**20, grid)
    return original(self, kind, grid)

  monkeypatch.setattr(loop.Training, '_program', program)
  with pytest.raises(compilation.OutOfMemory, match='needs 1.0 GiB'):
    launch.train(tiny_config, tmp_path / 'run')
  assert checkpoint.steps(tmp_path / 'run') == [3]
  # The wait before the first batch is one for a program, too.
  path = checkpoint.find(tmp_path / 'run', 'workdir')
  assert checkpoint.read_record(path)['times']['compile_s'] >= 0.7
