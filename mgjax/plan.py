r"""What a training run will do, exactly, before it is launched.

python -m mgjax.plan --config=kinetics400:grid=both

prints the phases of the run, its cost, and what it asks of the data loader.
--format=json prints one JSON object instead, and --format=png draws a picture.
Nothing is trained and no data is read but the number of videos.

  --diff A B          what the schedules of two configs differ in
  --budget_hours=H    the mode and epoch factor with the most epochs in H hours,
                      and what else there is

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
    "Compile every grid's step for this machine's devices, list the memory "
    'that XLA gives it, and measure what it and the other programs of the run '
    'take: exact, and slow.'
  )
  flag('compile', bool, False, text)
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
