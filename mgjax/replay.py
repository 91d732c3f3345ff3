r"""Runs the failing step of a run again, from the bundle that the run wrote.

python -m mgjax.replay --bundle=runs/digits/failure-120

starts from the checkpoint in the bundle, takes the steps up to the failing
one on the same clips, and says which parameters are not finite before and
after it. Settings can be overridden to see what would have helped:
--config.optim.clip_norm=1.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import sys

from absl import flags

from mgjax import cli
from mgjax.config import saved
from mgjax.run import run_folder


def define_flags(values: flags.FlagValues) -> None:
  text = 'Folder that the run wrote, such as runs/digits/failure-120.'
  cli.define_flag(values, 'bundle', str, None, text)


def find_config(values: flags.FlagValues, arguments: list[str]):
  """The failed run's own config."""
  return saved.read_saved(run_folder.bundle_of_flags(values))


if __name__ == '__main__':
  sys.exit(
    cli.run('mgjax.run.replaying', define_flags, find_config=find_config)
  )
