"""Programs are compiled once, ahead of their use."""

import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mgjax.grids.schedule import Grid
from mgjax.step import step_cache
from mgjax.step.step_cache import Program, StepCache, abstract

GRIDS = [Grid(2, 8, 8, 4), Grid(4, 8, 8, 2)]
PROGRAMS = [Program('train', grid) for grid in GRIDS]


def lowering(grid, function=lambda x: x * 2):
  spec = jax.ShapeDtypeStruct((grid.batch, grid.T), jnp.float32)
  return lambda: jax.jit(function).lower(spec)


@pytest.fixture
def cache():
  cache = StepCache({p: lowering(p.grid) for p in PROGRAMS})
  yield cache
  cache.close()


def test_a_program_runs_on_its_grid(cache):
  assert cache[PROGRAMS[1]](jnp.ones((2, 4))).tolist() == [[2.0] * 4] * 2


def test_a_grid_that_was_not_planned_is_an_error_that_names_it(cache):
  unplanned = Program('train', Grid(16, 9, 9, 1))
  with pytest.raises(KeyError, match='16x9x9 b1 was not planned'):
    cache[unplanned]


def test_a_batch_of_another_shape_is_an_error_not_a_recompilation(cache):
  with pytest.raises(TypeError):
    cache[PROGRAMS[0]](jnp.ones((3, 2)))


def test_the_second_program_compiles_while_the_first_is_used():
  release = threading.Event()

  def slow_lowering():
    release.wait(10)
    return lowering(GRIDS[1])()

  cache = StepCache(
    {PROGRAMS[0]: lowering(GRIDS[0]), PROGRAMS[1]: slow_lowering}
  )
  cache[PROGRAMS[0]](jnp.ones((4, 2)))
  assert PROGRAMS[1] not in cache.compile_s
  release.set()
  cache[PROGRAMS[1]](jnp.ones((2, 4)))
  assert cache.compiled('train') == 2
  cache.close()


def test_a_failed_compilation_is_raised_where_the_program_is_needed():
  def fail():
    raise RuntimeError('no memory')

  cache = StepCache({PROGRAMS[0]: fail, PROGRAMS[1]: lowering(GRIDS[1])})
  cache[PROGRAMS[1]]
  with pytest.raises(RuntimeError, match='no memory'):
    cache[PROGRAMS[0]]
  cache.close()


def test_a_wait_says_which_compilation_it_is_and_since_when(monkeypatch):
  ask, answer = threading.Event(), threading.Event()

  def lower_slowly():
    ask.set()
    answer.wait(60)
    return lowering(GRIDS[1])()

  cache = StepCache(
    {PROGRAMS[0]: lowering(GRIDS[0]), PROGRAMS[1]: lower_slowly}
  )
  assert ask.wait(60)
  assert cache.describe_wait() == 'compiling 2 of 2, 0 s'
  monkeypatch.setattr(cache, '_current_since', time.perf_counter() - 12)
  assert cache.describe_wait() == 'compiling 2 of 2, 12 s'
  answer.set()
  cache[PROGRAMS[1]]
  assert cache.describe_wait().startswith('compiling 2 of 2')
  cache.close()


@pytest.mark.parametrize(
  'events,from_disk',
  [
    (['hits'], True),
    (['hits', 'hits'], True),
    (['misses'], False),
    # A part of it was there, from a run with other grids.
    (['misses', 'hits'], False),
    (['hits', 'misses'], False),
    ([], False),
  ],
)
def test_a_program_comes_from_the_disk_where_all_of_it_does(events, from_disk):
  class Lowered:
    def compile(self, compiler_options=None):
      for event in events:
        jax.monitoring.record_event(f'/jax/compilation_cache/cache_{event}')
      return abs

  # The one after it does not inherit what it has counted.
  with StepCache({PROGRAMS[0]: Lowered, PROGRAMS[1]: Lowered}) as cache:
    cache[PROGRAMS[0]], cache[PROGRAMS[1]]
  assert cache.from_disk == (set(PROGRAMS[:2]) if from_disk else set())


def test_an_access_waits_for_the_compilation():
  release = threading.Event()

  def slow_lowering():
    release.wait(10)
    return lowering(GRIDS[0])()

  cache = StepCache({PROGRAMS[0]: slow_lowering})
  threading.Timer(0.2, release.set).start()
  cache[PROGRAMS[0]]
  assert release.is_set()
  assert cache.compiled('train') == 1
  cache.close()


@pytest.mark.parametrize('transform', [jax.jit, nnx.jit])
def test_a_step_of_ones_own_is_compiled_for_every_grid(transform):
  traced = []

  @transform
  def step(state, x):
    traced.append(x.shape)
    return {'sum': state['sum'] + x.sum()}

  state = {'sum': jnp.zeros(())}
  arguments = lambda grid: (
    abstract(state),
    jax.ShapeDtypeStruct((grid.batch, grid.T), jnp.float32),
  )
  with StepCache.of_step(step, GRIDS, arguments) as steps:
    for grid in GRIDS * 2:
      state = steps[grid](state, np.ones((grid.batch, grid.T), np.float32))
    with pytest.raises(KeyError, match='9x9x9 b9 was not planned'):
      steps[Grid(9, 9, 9, 9)]
  assert state['sum'] == 2 * (4 * 2 + 2 * 4)
  assert traced == [(4, 2), (2, 4)]
  assert not step_cache.is_compiling()


def test_abstract_arguments_have_the_shapes_types_and_shardings_of_arrays():
  mesh = jax.make_mesh((2,), ('clips',))
  spec = jax.sharding.PartitionSpec
  sharding = jax.sharding.NamedSharding(mesh, spec('clips'))
  tree = {
    'x': jax.device_put(jnp.ones((4, 3), jnp.bfloat16), sharding),
    'y': np.ones(2, np.int32),
    'key': jax.random.key(0),
    'function': abs,
  }
  found = abstract(tree)
  assert found['x'] == jax.ShapeDtypeStruct(
    (4, 3), jnp.bfloat16, sharding=sharding
  )
  assert found['y'] == jax.ShapeDtypeStruct((2,), np.int32)
  assert found['key'].dtype == tree['key'].dtype
  assert found['function'] is abs


_LAUNCH = """
import sys
from mgjax.step import step_cache
from tests.step.test_step_cache import PROGRAMS, lowering
step_cache.use_persistent_cache()
factor = int(sys.argv[1])
function = lambda x: x * factor
cache = step_cache.StepCache(
  {p: lowering(p.grid, function) for p in PROGRAMS[: int(sys.argv[2])]}
)
for program in PROGRAMS[: int(sys.argv[2])]:
  cache[program]
print(len(cache.from_disk))
"""


def test_only_programs_of_an_earlier_launch_count_as_read_from_disk(tmp_path):
  def launch(factor, num_programs):
    ended = subprocess.run(
      [sys.executable, '-c', _LAUNCH, str(factor), str(num_programs)],
      env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(tmp_path)},
      capture_output=True,
      text=True,
      check=True,
    )
    return int(ended.stdout)

  assert launch(3, 1) == 0
  assert launch(5, 1) == 0  # Other programs are there, such as trials.
  assert launch(5, 2) == 1


PROGRAM_OF_ONES_OWN = """
import sys, threading, time
from mgjax.step.step_cache import StepCache
begun = threading.Event()
def slowly(name):
  begun.set()
  time.sleep(1)
  print(name, flush=True)
  raise ValueError
cache = StepCache({n: lambda n=n: slowly(n) for n in ('first', 'second')})
begun.wait()
cache.close(wait=False)
sys.exit(75)
"""


@pytest.mark.parametrize('closes', [True, False], ids=['closed', 'left open'])
def test_a_program_that_ends_waits_for_the_compilation_under_way(closes):
  # XLA crashes in it where Python takes down what it works with.
  program = PROGRAM_OF_ONES_OWN
  if not closes:
    program = program.replace('cache.close(wait=False)', '')
  ended = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True
  )
  assert (ended.returncode, ended.stdout) == (75, 'first\n'), ended.stderr
