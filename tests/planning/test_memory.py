"""The memory of a step: estimated, and compared with XLA's."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import kinetics400, moving_digits
from mgjax import cli, models
from mgjax import plan as plan_flags
from mgjax.grids.schedule import Grid
from mgjax.hosts.peers import Peers
from mgjax.models import conv
from mgjax.planning import command, memory
from mgjax.run import launch
from mgjax.setup import grids, network, planning
from mgjax.step import compilation, train_state, train_step

DIGITS = 'configs/moving_digits.py:grid=both'


def estimate(config, model, grid, num_devices=1):
  """What a plan says of a grid."""
  tx = network.optimizer(config)
  return memory.estimate(
    model,
    grid,
    num_devices=num_devices,
    micro_batches=config.train.micro_batches,
    copies=memory.state_copies(tx, averaged=config.optim.ema_decay > 0),
  )


@pytest.mark.parametrize(
  'name', ['slowfast', 'tam', 'blvnet_tam', 'i3d_resnet']
)
@pytest.mark.parametrize('optimizer,copies', [('sgd', 2), ('adamw', 3)])
def test_the_state_is_counted_without_making_it(name, optimizer, copies):
  config = moving_digits.get_config()
  config.model.choose(name)
  config.model.width = 32
  config.optim.name = optimizer
  model, tx = network.model(config), network.optimizer(config)
  state = jax.eval_shape(network.state_maker(config, model, tx))
  want = 4 * sum(x.size for x in jax.tree.leaves(state))
  grid = grids.full_grid(config)
  got = estimate(config, model, grid)
  assert got.state == pytest.approx(want, rel=0.02)
  assert got.gradients == got.state / copies


def build(name, **options):
  return models.build(
    name, num_classes=16, dropout=0.5, dtype='float32', **options
  )


def temporary_bytes(model, grid, **options):
  """What XLA gives to the arrays inside a training step."""
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
  b, t, h, w = grid.batch, grid.T, grid.H, grid.W
  lowered = jax.jit(step, donate_argnums=0).lower(
    state,
    {
      'video': spec(b, t, h, w, 3, dtype=np.uint8),
      'label': spec(b, dtype=np.int32),
      'flip': spec(b, dtype=bool),
    },
    spec(dtype=np.float32),
    spec(dtype=np.int32),
    jax.eval_shape(lambda: jax.random.key(0)),
  )
  # Buffers do not depend on how well the machine code is optimised.
  compiled = lowered.compile(
    compiler_options=compilation.options()
    | {'xla_backend_optimization_level': 0}
  )
  return compiled.memory_analysis().temp_size_in_bytes


def test_micro_batches_are_computed_one_after_the_other():
  model, grid = build('slow', blocks=(1,), width=4), Grid(4, 32, 32, 32)
  parts = temporary_bytes(model, grid, micro_batches=4)
  assert parts < 0.4 * temporary_bytes(model, grid)


SMALL = {'blocks': (1, 1), 'width': 16}


# As this machine computes them, and as accelerators do.
@pytest.mark.parametrize('formulation', ['auto', 'native'])
@pytest.mark.parametrize(
  'name,grid,options',
  [
    ('slow', Grid(8, 64, 64, 8), SMALL),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ('slow', Grid(8, 112, 112, 4), SMALL),
        ('slowfast', Grid(16, 64, 64, 8), {**SMALL, 'beta_inv': 4}),
        ('tsm', Grid(8, 64, 64, 8), SMALL),
        ('blvnet_tam', Grid(8, 64, 64, 8), SMALL),
        ('i3d', Grid(8, 64, 64, 8), {**SMALL, 'blocks': (2, 2)}),
      )
    ),
  ],
)
def test_the_estimate_is_within_a_quarter_of_the_compiled_step(
  monkeypatch, name, grid, options, formulation
):
  chosen = functools.partial(conv.conv3d, formulation=formulation)
  monkeypatch.setattr(conv, 'conv3d', chosen)
  model = build(name, **options)
  compiled = temporary_bytes(model, grid)
  config = moving_digits.get_config()
  found = estimate(config, model, grid)
  assert found.activations == pytest.approx(
    compiled - found.gradients, rel=0.25
  )


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='no /proc')
@pytest.mark.parametrize(
  'case,most',
  [
    ('slow 2 64 64 1 0', 1.5),
    ('slow 8 64 32 1 0', 1.5),
    ('slow 8 112 16 1 0', 1.5),
    ('tsm 8 64 32 1 0', 1.5),
    ('slow 8 112 32 4 0', 2),
    ('slow 8 112 16 1 1', 1.5),
  ],
)
def test_a_process_grows_by_the_estimate_and_some_more(case, most):
  ended = subprocess.run(
    [sys.executable, '-m', 'tests.memory_worker', *case.split()],
    capture_output=True,
    text=True,
    check=True,
  )
  grown, estimated = map(int, ended.stdout.split())
  assert estimated < grown < most * estimated


def test_devices_micro_batches_and_blocks_share_the_activations():
  config = kinetics400.get_config('grid=none')
  model, grid = network.model(config), grids.full_grid(config)
  one = estimate(config, model, grid, num_devices=1)
  eight = estimate(config, model, grid, num_devices=8)
  assert eight.activations == one.activations / 8
  assert eight.batches == one.batches / 8
  assert eight.state == one.state
  config.train.micro_batches = 4
  parts = estimate(config, model, grid, num_devices=8)
  assert parts.activations == eight.activations / 4
  assert parts.gradients == 2 * eight.gradients
  config.train.remat = 'block'
  config.model.dtype = 'bfloat16'
  again = estimate(config, network.model(config), grid, num_devices=8)
  # Blocks keep one tensor instead of seven or so; half the bytes.
  assert again.activations < 0.3 * parts.activations


def test_a_run_that_may_not_fit_gets_one_line(capsys):
  config = moving_digits.get_config('grid=both')
  schedule = grids.schedule(config, 4000)
  sizes = planning.make_plan(config, schedule)['memory']['grids']
  most = max(size['total'] for size in sizes)

  def said(device_bytes):
    config.train.device_memory_gib = device_bytes / 2**30
    planning.warn_of_memory(config, schedule, num_devices=1)
    return capsys.readouterr().err

  assert said(most) == said(0) == ''
  text = said(most - 1)
  assert text.startswith('warning: by a rough estimate, phase ')
  assert '0.0 MiB more than' in text and text.count('\n') == 1


def test_a_training_that_may_not_fit_is_tried(tiny_config, tmp_path, capsys):
  tiny_config.train.device_memory_gib = 1e-4
  tiny_config.grid.mode = 'none'
  peers = Peers()
  # All that a training can be refused for.
  job = launch.make_job(tiny_config, epath.Path(tmp_path / 'run'), peers, False)
  assert job.schedule.total_steps > 0
  assert 'MiB more than the 0.1 MiB there are' in capsys.readouterr().err


def test_the_plan_says_what_fits(capsys):
  argv = ['plan', f'--config={DIGITS}', '--format=json']
  assert cli.run(command.main, plan_flags.define_flags, argv) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['memory']['device_bytes'] == 0
  sizes = [grid['total'] for grid in found['memory']['grids']]
  assert len(sizes) == len(found['grids'])
  # Between the least and the greatest.
  gib = (min(sizes) + max(sizes)) / 2**31
  fit = sum(size <= gib * 2**30 for size in sizes)
  argv[2] = f'--device_memory_gib={gib}'
  assert cli.run(command.main, plan_flags.define_flags, argv) == 0
  text = capsys.readouterr().out
  assert f'; {fit} of {len(sizes)} grids fit {gib:.2f} GiB' in text


@pytest.mark.slow
def test_the_plan_compiles_where_asked(capsys):
  argv = ['plan', 'x', '--compile', '--format=json']
  argv[1] = '--config=configs/moving_digits.py:grid=none,size=tiny'
  assert cli.run(command.main, plan_flags.define_flags, argv) == 0
  found = json.loads(capsys.readouterr().out)['memory']
  assert len(found['compiled_bytes']) == 1
  assert found['compiled_bytes'][0] == pytest.approx(
    found['grids'][0]['total'], rel=0.5
  )
