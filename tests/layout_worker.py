"""mgjax.train with what its tests need: float64, one step, a signal in time.

Run as a process of its own, with the flags of mgjax.train and these:
  --float64      parameters, statistics and arithmetic in float64
  --one_step     end after the first step
  --signal=9 --signal_at=7   this process gets the signal before its 8th step;
                 after the last one, before batch-norm statistics are taken
  --slow_bundle  the bundle of a failed step takes 3 seconds to write
"""

import dataclasses
import os
import sys
import time

import jax
import jax.numpy as jnp
from absl import flags

from mgjax import cli, train
from mgjax.run import failure, launch
from mgjax.setup import grids
from mgjax.step import programs, train_state


def define_flags(values: flags.FlagValues) -> None:
  train.define_flags(values)
  for name in ('float64', 'one_step', 'slow_bundle'):
    flags.DEFINE_bool(name, False, '', flag_values=values)
  for name in ('signal', 'signal_at'):
    flags.DEFINE_integer(name, 0, '', flag_values=values)


def use_float64(config) -> None:
  jax.config.update('jax_enable_x64', True)
  with config.unlocked():
    config.model.dtype = 'float64'
  create_state = train_state.create_state

  def create_state64(*args, **kwargs):
    return jax.tree.map(
      lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x,
      create_state(*args, **kwargs),
    )

  train_state.create_state = create_state64


def end_after_one_step() -> None:
  make_schedule = grids.schedule

  def make_short_schedule(*args, **kwargs):
    schedule = make_schedule(*args, **kwargs)
    first = dataclasses.replace(schedule.phases[0], end_step=1)
    return dataclasses.replace(schedule, phases=(first,))

  grids.schedule = make_short_schedule


def write_bundles_slowly() -> None:
  write = failure.write

  def write_slowly(*args, **kwargs):
    time.sleep(3)
    write(*args, **kwargs)

  failure.write = write_slowly


def send_signal(number: int, at: int) -> None:
  put_scalars = programs.put_scalars
  steps = iter(range(at + 1))

  def put_scalars_and_signal(*args):
    if next(steps, None) == at:
      os.kill(os.getpid(), number)
    return put_scalars(*args)

  programs.put_scalars = put_scalars_and_signal


def main(values: flags.FlagValues) -> None:
  if values.float64:
    use_float64(values.config)
  if values.one_step:
    end_after_one_step()
  if values.slow_bundle:
    write_bundles_slowly()
  if values.signal:
    send_signal(values.signal, values.signal_at)
  launch.main(values)


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags))
