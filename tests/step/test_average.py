"""The average of the weights in a checkpoint: resumed, and evaluated."""

import jax
import jax.numpy as jnp
import pytest

from mgjax.hosts import parallel
from mgjax.run import checkpoint
from mgjax.run.checkpoint_manager import Checkpoints, Keep
from mgjax.step import train_state


def make_state(average):
  tree = lambda value: {'head': {'kernel': jnp.full((2, 3), value)}}
  return train_state.TrainState(
    step=jnp.int32(4),
    params=tree(1.0),
    batch_stats={'norm': {'mean': jnp.full(3, 2.0)}},
    opt_state=tree(3.0),
    ema=tree(4.0) if average else {},
  )


@pytest.mark.parametrize('average', [True, False])
def test_a_checkpoint_gives_the_weights_that_were_evaluated(tmp_path, average):
  state = make_state(average)
  checkpoints = Checkpoints(tmp_path, Keep(newest=3, best=1))
  checkpoints.save(state, 4, {})
  checkpoints.wait()
  abstract = train_state.abstract_state(
    lambda: make_state(average), parallel.replicated(parallel.make_mesh())
  )
  resumed, _ = checkpoint.restore(checkpoints.directory / '4', abstract)
  assert jax.tree.structure(resumed) == jax.tree.structure(state)
  for a, b in zip(
    jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True
  ):
    assert (a == b).all()
  variables = checkpoint.load_variables(
    tmp_path / 'checkpoints' / '4',
    {name: getattr(abstract, name) for name in checkpoint.VARIABLES},
  )
  kernel = variables['params']['head']['kernel']
  assert (kernel == (4.0 if average else 1.0)).all()
  assert (variables['batch_stats']['norm']['mean'] == 2.0).all()
  checkpoints.close()
