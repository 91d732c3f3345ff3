r"""Trains a video model under a grid schedule.

python -m mgjax.train --config=moving_digits:grid=both \
  --workdir=runs/digits

The same command resumes an interrupted run from its newest checkpoint; the
result is the same, bit for bit, as that of an uninterrupted run. On a cluster
every process runs this command (docs/running.md).

Exit codes: 0 finished; 1 something outside failed, or the loss is not finite;
2 a setting that cannot work; 75 start again to go on: stopped by SIGTERM after
writing a checkpoint, or another process of the run has died; 130 the same for
Ctrl-C. A second signal ends the run at once.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import sys

from absl import flags

from mgjax import cli
from mgjax.hosts import peers


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  text = 'Folder of everything the run writes; may be a gs:// path.'
  flag('workdir', str, None, text)
  text = 'Go on with the run in --workdir though settings have changed.'
  flag('allow_config_change', bool, False, text)
  text = 'Trace a few steps, from this one on, into WORKDIR/plugins/profile.'
  flag('profile', int, None, text, 0)
  peers.define_flags(values)


if __name__ == '__main__':
  sys.exit(cli.run('mgjax.run.launch', define_flags))
