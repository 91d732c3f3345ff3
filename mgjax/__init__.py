"""Multigrid training of video models.

For a training of your own (docs/existing_training.md, examples/):
  make_schedule  a schedule from numbers: a GridSchedule, which says the Grid,
                 the learning rate and the Phase of a step
  Order          which examples a step shows
  StepCache      a jitted step, compiled for every grid ahead of its use;
                 `abstract` makes the shapes of its arguments
  group_matrix   batch-norm groups as a value; grouped_batch_norm takes it, and
                 so does BatchNorm, the layer for Flax Linen
  Dropout        masks of clips, whatever part of the batch they are in
  build_model    one of the networks here, by name
For a training by settings: read_config, run_training, evaluate_checkpoint. What
a person can mend is a ConfigError or a RunError.

The names in `mgjax.__all__` and `mgjax.config.fields.base` are stable: what
they take is only added to before version 1.0, and what is to go is announced
one version before. Everything else may move.

Commands: new, train, evaluate, predict, plan, replay, weights, import_weights,
export, data.prepare, data.bench and data.moving_digits are modules with flags
alone. They import what does the work, and with it JAX, once the flags are
right.

Rooms, from the commands down:
  setup/       settings -> what a run is made of; job.py composes all of it
  run/         loop.py: the training loop; launch.py: what is around it; the
               run's folder, checkpoints and reports
  evaluation/  accuracy of a checkpoint
  predicting/  labels for videos
  planning/    a run before its launch: steps, cost, memory
  new/         a folder of videos -> a config file
  weights/     files of other frameworks, in and out; where they are published
  data/        stream.py: step -> batch; decoding, sampling, prepared data sets
  step/        train_step.py: one step; step_cache.py: programs, compiled once
  models/      the networks; norm.py: batch norm over groups of clips
  grids/       schedule.py: step -> grid and learning rate; make.py makes it
  hosts/       devices and processes
  cpu/         what CPUs need to be fast
  config/      every setting; recipes/ is what the files in configs/ share

Every command listens to signals first (stop_signal.py), and whatever goes wrong
in it ends in one line (cli.py).

Axes: B clips, T frames, H and W pixels, C channels, K classes.
"""

import importlib
from typing import Any

# The only place that has it: pyproject.toml reads this line.
__version__ = '0.1.0'

# Where each public name is. It is imported when it is first used, so that
# `import mgjax` does not wait for JAX, and what needs no JAX stays without.
_NAMES = {
  'BatchNorm': 'mgjax.models.norm',
  'ConfigError': 'mgjax.errors',
  'Dropout': 'mgjax.models.dropout',
  'Grid': 'mgjax.grids.schedule',
  'GridSchedule': 'mgjax.grids.schedule',
  'Order': 'mgjax.data.order',
  'Phase': 'mgjax.grids.schedule',
  'RunError': 'mgjax.errors',
  'StepCache': 'mgjax.step.step_cache',
  'abstract': 'mgjax.step.step_cache',
  'build_model': 'mgjax.models:build',
  'evaluate_checkpoint': 'mgjax.evaluation.command',
  'group_matrix': 'mgjax.models.norm',
  'grouped_batch_norm': 'mgjax.models.norm',
  'make_schedule': 'mgjax.grids',
  'read_config': 'mgjax.cli',
  'run_training': 'mgjax.run.launch:train',
}

__all__ = ['__version__', *_NAMES]


def __getattr__(name: str) -> Any:
  """Imports a public name (PEP 562)."""
  if name not in _NAMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, _, attribute = _NAMES[name].partition(':')
  value = getattr(importlib.import_module(module), attribute or name)
  globals()[name] = value  # The next access does not come here.
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
