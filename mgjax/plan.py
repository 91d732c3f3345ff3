r"""What a training run will do, exactly, before it is launched.

python -m mgjax.plan --config=kinetics400:grid=both

prints the phases of the run, its cost, and what it asks of the data loader.
--format=json prints one JSON object instead, and --format=png draws a picture.
Nothing is trained and no data is read but the number of videos.

  --diff A B          what the schedules of two configs differ in
  --budget_hours=H    the mode and epoch factor with the most epochs in H hours,
                      and what else there is

  --compile           the compiler's own figures: bytes of a device and traffic
  --target=NAME       between devices; for these devices, or for named ones that
                      need not be there: v5e:2x4, v4:2x2x1, h100x8, a100x8, cpu

With --workdir, --step_ms or --gmacs_per_s, which say how long steps take
(mgjax/planning/step_seconds.py), the plan has the hours of training. Where this
machine has trained this network, or measured it with --compile, the plan has
the wall time, compilation and evaluation included.

Costs are multiply-adds of forward passes. A backward pass costs about twice
as much whatever the grid, so ratios are those of training; how fast a machine
does them depends on the grid, so measured speed-ups differ.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import sys
from collections.abc import Sequence

from absl import flags

from mgjax import cli
from mgjax.planning import step_seconds


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('format', ('table', 'json', 'png'), 'table', 'What to make of the plan.')
  flag('output', str, None, 'File to write; by default stdout, or plan.png.')
  text = (
    'Devices that will share each batch: checked, and for the memory of each.'
  )
  flag('num_devices', int, 1, text, 1)
  text = (
    'Memory of a device in GiB, to say which grids fit; 0: '
    'config.train.device_memory_gib, and with --compile what the device says.'
  )
  flag('device_memory_gib', float, 0.0, text, 0.0)
  text = (
    'Compile every program of the run and say what the compiler says of it: '
    'exact, and slow. Without --target for the devices of this machine, on '
    'which each is timed, too.'
  )
  flag('compile', bool, False, text)
  text = (
    'With --compile: the devices to compile for, which need not be there, such '
    "as v5e:2x4, v4:2x2x1, h100x8, a100x8, h200x1; 'cpu': those CPU devices "
    'that JAX shows. It says the number of devices, too.'
  )
  flag('target', str, None, text)
  text = (
    "With --target: which grids; 'all', 'base' for the full grid alone, or "
    'some as frames x height x width, such as 8x112x112,32x224x224.'
  )
  flag('grids', str, 'all', text)
  text = 'Compare the schedules of two configs, given as arguments.'
  flag('diff', bool, False, text)
  text = 'Find the schedule with the most epochs in this time.'
  flag('budget_hours', float, None, text, 1e-9)
  step_seconds.define_flags(values)


def find_config(values: flags.FlagValues, names: Sequence[str]) -> str | None:
  """The config of a command line without --config: with --diff, the first."""
  del values
  return names[0] if names else None


if __name__ == '__main__':
  sys.exit(
    cli.run(
      'mgjax.planning.command',
      define_flags,
      arguments='CONFIG',
      find_config=find_config,
    )
  )
