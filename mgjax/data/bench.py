r"""Whether this machine decodes fast enough for a run, phase by phase.

python -m mgjax.data.bench --config=kinetics400:grid=both

decodes some clips of every grid and prints clips per second, for one worker
and for all that the training would have: data.num_workers threads, in this
process or in data.worker_processes, with data.prefetch_batches. With
--workdir, --step_ms or --gmacs_per_s, which say how fast the accelerator is
(mgjax/planning/step_seconds.py), it names the phases that would wait for data.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import sys

from absl import flags

from mgjax import cli
from mgjax.planning import step_seconds


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  step_seconds.define_flags(values)
  flag('num_clips', int, 16, 'Of each grid.', 1)
  flag('format', ('table', 'json'), 'table', 'What is printed.')


if __name__ == '__main__':
  sys.exit(cli.run('mgjax.data.decode_rates', define_flags))
