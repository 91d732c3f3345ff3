"""mgjax's side of step_time.py: a process that steps when it is told to.

{"load": {...}} -> {"environment", "parameters", "forward_macs", "compile_s",
                    "optim"}, or {"error"} where the device is not there
{"steps": N}    -> {"wall_s", "cpu_s", "losses", "peak_bytes"}
"""

import types
from typing import Any

import jax
import numpy as np

from experiments.bench import jax_side, step_time, worker
from mgjax.cpu import allocator
from mgjax.step import train_state


class Worker:
  """Answers requests: `load` once, then `run`."""

  def __init__(self):
    self.side: Any = None

  def load(self, settings: dict) -> dict:
    """Compiles the step, and writes weights and clips for the other side.

    Args:
      settings: 'model', 'frames', 'num_classes', 'learning_rate', 'device'
        ('cpu' or 'gpu'), 'dtype', 'batch' and 'crop_px', as step_time has
        them, and 'clips', the file to write.
    """
    if settings['device'] == 'cpu':
      jax.config.update('jax_platforms', 'cpu')
    allocator.keep()  # As training does.
    if jax.devices()[0].platform != settings['device']:
      found = f'--device={settings["device"]}: JAX finds only {jax.devices()}.'
      return {'error': found}
    side = self.side = jax_side.JaxSide(
      settings['model'],
      types.SimpleNamespace(**settings),
      frames=settings['frames'],
      num_classes=settings['num_classes'],
      learning_rate=settings['learning_rate'],
    )
    np.savez(
      settings['clips'], **side.clips, **jax_side.by_name(side.variables)
    )
    return {
      'environment': step_time.full_environment(),
      'parameters': train_state.num_parameters(side.variables['params']),
      'forward_macs': side.macs,
      'compile_s': side.compile_s,
      'optim': {
        'lr': settings['learning_rate'],
        'momentum': side.optim.momentum,
        'nesterov': side.optim.nesterov,
        'weight_decay': side.optim.weight_decay,
      },
    }

  def answer(self, request: dict) -> dict:
    if 'load' in request:
      return self.load(request['load'])
    return self.side.run(request['steps'])


if __name__ == '__main__':
  worker.serve(Worker().answer)
