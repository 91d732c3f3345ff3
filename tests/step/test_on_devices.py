"""What crosses between devices in a step, and that the step stays the same."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax import models
from mgjax.config import fields
from mgjax.grids.schedule import Grid
from mgjax.hosts import parallel
from mgjax.models import head, norm
from mgjax.setup import network
from mgjax.step import on_devices, train_state, train_step
from tests import collectives_worker
from tests.step import test_micro_batches
from tests.step.test_micro_batches import PIXELS, largest_difference, make_batch

# Its five batch norms are counted below.
SMALL = {'model.blocks': [1], 'model.width': 4}
NUM_NORMS = 5


def describe(
  *steps, target='cpu', flags='--xla_force_host_platform_device_count=8'
):
  """What `collectives_worker.describe` says of steps on 8 devices."""
  found = subprocess.run(
    [
      *(sys.executable, '-m', 'tests.collectives_worker', target),
      *map(json.dumps, steps),
    ],
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': flags,
      # Nothing asks for a TPU that is not there.
      'TPU_SKIP_MDS_QUERY': '1',
      'TPU_WORKER_HOSTNAMES': 'localhost',
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    },
    check=True,
    stdout=subprocess.PIPE,
  )
  return json.loads(found.stdout)


# 64 clips, 8 on each device.
STEPS = {
  'fits': {**SMALL, 'group_clips': 8},
  'spans': {**SMALL, 'group_clips': 16},
  'parts fit': {**SMALL, 'group_clips': 4, 'train.micro_batches': 2},
  'parts span': {**SMALL, 'group_clips': 8, 'train.micro_batches': 2},
  'statistics': {**SMALL, 'group_clips': 8, 'kind': 'stats'},
  'bfloat16': {**SMALL, 'group_clips': 8, 'model.dtype': 'bfloat16'},
}


@pytest.fixture(scope='module')
def compiled():
  return dict(zip(STEPS, describe(*STEPS.values()), strict=True))


def test_a_step_whose_groups_fit_exchanges_nothing_but_its_sums(compiled):
  """Gradients, metrics and means at once; then variances of all layers."""
  assert compiled['fits']['counts'] == {'all-reduce': 2}
  assert compiled['parts fit']['counts'] == {'all-reduce': 2}
  assert compiled['statistics']['counts'] == {'all-reduce': 2}


def test_a_group_that_spans_devices_takes_one_exchange_a_layer_each_way(
  compiled,
):
  assert compiled['spans']['counts'] == {
    'all-reduce': 2,
    'all-gather': NUM_NORMS,
    'reduce-scatter': NUM_NORMS,
  }


def test_parts_that_are_no_whole_groups_of_a_device_move_its_clips(compiled):
  """Of video, label, mirroring and number, once; then as above, each part."""
  assert compiled['parts span']['counts'] == {
    'all-reduce': 2,
    'all-gather': 4 + 2 * NUM_NORMS,
    'reduce-scatter': 2 * NUM_NORMS,
  }


def test_gradients_of_a_bfloat16_network_are_summed_in_float32(compiled):
  assert set(compiled['bfloat16']['asked']) == {'f32'}
  assert set(compiled['bfloat16']['types']) == {'f32'}


@pytest.mark.parametrize('name', ['slowfast', 'tam', 'mvit', 'timesformer'])
@pytest.mark.parametrize('reduce_dtype', ['float32', 'bfloat16'])
def test_gradients_cross_in_the_type_that_is_asked_for(name, reduce_dtype):
  """Of every parameter; XLA:CPU would sum in float32 in any case."""
  model = models.build(
    name,
    num_classes=16,
    dropout=0.5,
    dtype='bfloat16',
    **test_micro_batches.SMALL.get(name, {'blocks': (1, 1), 'width': 8}),
  )
  tx = network.optimizer(fields.base())
  state = jax.eval_shape(
    lambda: train_state.create_state(
      model, tx, jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3))
    )
  )
  step = train_step.make_train_step(
    model,
    tx,
    **PIXELS,
    layout=on_devices.Layout(parallel.make_mesh(2), lambda grid: 2),
    reduce_dtype=reduce_dtype,
  )
  batch = make_batch() | {'video': np.zeros((8, 8, 32, 32, 3), np.uint8)}
  lowered = jax.jit(step).lower(
    *(state, batch, jnp.float32(0.1), jnp.int32(4), jax.random.key(7))
  )
  found = collectives_worker.asked(lowered.as_text())
  assert found.pop('bf16' if reduce_dtype == 'bfloat16' else 'f32') >= len(
    jax.tree.leaves(state.params)
  )
  assert found in ({}, {'f32': 2})  # Loss and accuracy.


# Of a compiler: its package, what installs it, flags of XLA.
TARGETS = {
  'cpu': ('jax', 'jax', '--xla_force_host_platform_device_count=8'),
  'v5e:2x4': ('libtpu', 'libtpu', ''),
  'h100x8': (
    'jax_cuda12_plugin',
    "'jax[cuda12]'",
    # No kernel can be timed without a GPU, and Triton's products need times.
    '--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false',
  ),
}


def check_installed(target):
  """Skips a test whose compiler is not there; returns XLA's flags."""
  package, pip, flags = TARGETS[target]
  if importlib.util.find_spec(package) is None:
    pytest.skip(f'its compiler is not installed: pip install {pip}')
  return flags


@pytest.mark.slow
@pytest.mark.parametrize('target', ['v5e:2x4', 'h100x8'])
def test_compiled_for_accelerators_a_step_is_as_it_is_on_cpus(target):
  """And in bfloat16 it writes no feature of the clips in float32."""
  flags = check_installed(target)
  wide = {'model.blocks': [1], 'model.width': 16, 'model.dtype': 'bfloat16'}
  grid = (8, 64, 64, 64)
  fits, spans = describe(
    *({**wide, 'grid': grid, 'group_clips': clips} for clips in (8, 16)),
    target=target,
    flags=flags,
  )
  assert set(fits['counts']) == {'all-reduce'}
  assert fits['counts']['all-reduce'] <= 4
  assert set(fits['types']) == {'f32'}
  others = sum(spans['counts'].values()) - spans['counts']['all-reduce']
  assert others <= 2 * NUM_NORMS
  # The smallest of a device's features has 8 x 8 x 16 x 16 x 16 numbers, its
  # pixels have 8 x 8 x 64 x 64 x 3, all parameters together have 14,000.
  assert fits['float32'] < 2**16


@pytest.mark.slow
@pytest.mark.parametrize('target', ['cpu', 'h100x8'])
def test_slowfast_r50_exchanges_nothing_but_its_sums(target):
  """At the base grid and the coarsest, 8 and 64 clips on each device."""
  flags = check_installed(target)
  slowfast = {'recipe': 'grid=both,model=slowfast', 'model.dtype': 'bfloat16'}
  for found in describe(
    {**slowfast, 'grid': (32, 224, 224, 64)},
    {**slowfast, 'grid': (8, 158, 158, 512)},
    target=target,
    flags=flags,
  ):
    assert set(found['asked']) == set(found['types']) == {'f32'}
    # XLA puts most gradients, and all statistics of the layers, into a few.
    assert set(found['counts']) == {'all-reduce'}
    assert found['counts']['all-reduce'] < 50


def make_steps():
  config = fields.base()
  model = models.build(
    'slow', num_classes=16, dropout=0.5, dtype='float64', blocks=(1,), width=4
  )
  tx = network.optimizer(config)
  rng = np.random.default_rng(1)
  state = jax.tree.map(
    lambda x: (
      jnp.asarray(rng.uniform(0.5, 1.5, x.shape), float)
      if jnp.issubdtype(x.dtype, jnp.floating)
      else x
    ),
    train_state.create_state(
      model, tx, jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3))
    ),
  )
  # The momentum after the step is the gradient then.
  state = state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))

  def run(group_clips, layout=None, micro_batches=1):
    step = train_step.make_train_step(
      model, tx, **PIXELS, layout=layout, micro_batches=micro_batches
    )
    batch = make_batch()
    if layout:
      batch = parallel.put_batch(layout.mesh, batch)
    groups = jnp.int32(len(batch['label']) // group_clips)
    return jax.jit(step)(
      state, batch, jnp.float32(0.1), groups, jax.random.key(7)
    )

  return run


# Of 8 clips, 4 on each device.
@pytest.mark.parametrize(
  'group_clips,micro_batches,by_clip',
  [
    (2, 1, True),
    (8, 1, True),
    (4, 2, True),
    pytest.param(2, 2, True, marks=pytest.mark.slow),
    pytest.param(2, 2, False, marks=pytest.mark.slow),
  ],
)
def test_a_step_on_two_devices_is_the_step_on_one(
  group_clips, micro_batches, by_clip, monkeypatch
):
  """Whether groups fit or span devices: gradients, statistics and masks.

  And where XLA itself divides the work, as that of a network of one's own.
  """
  monkeypatch.setattr(head.VideoNetwork, 'computes_by_clip', by_clip)
  layout = on_devices.Layout(parallel.make_mesh(2), lambda grid: group_clips)
  with jax.enable_x64(True):
    run = make_steps()
    one = run(group_clips)
    two = run(group_clips, layout, micro_batches)
    assert largest_difference(one, two) < 1e-12


@pytest.mark.parametrize(
  'group_clips,parts,sharing',
  [(8, 1, 1), (4, 1, 1), (16, 1, 2), (64, 1, 8), (8, 2, 2), (12, 1, 2)],
)
def test_neighbours_share_a_group_that_is_larger_than_their_clips(
  group_clips, parts, sharing
):
  class Mesh:
    size = 8

  layout = on_devices.Layout(Mesh, lambda grid: group_clips)
  # Of 18 clips, 12 are no part; of 36, they are.
  batch = 144 if group_clips == 12 else 64
  assert layout.sharing(Grid(4, 16, 16, batch), parts) == sharing


def test_a_larger_matrix_outside_of_devices_is_refused():
  x = jnp.zeros((4, 1, 2, 2, 3))
  with pytest.raises(ValueError, match='batch of 8, x is one of 4'):
    norm.BatchNorm().init(jax.random.key(0), x, norm.group_matrix(8, 2))
