r"""Scores a checkpoint on a split of its data set, view by view.

python -m mgjax.evaluate --workdir=runs/digits --config.eval.num_views=3 \
  --config.eval.split=test

The run's config.json has the settings. The protocol (--config.eval.…) and what
only says how the machine works can be overridden; eval.json lists what was.
With --config=FILE.py all other settings must be the run's.

Every video is scored once per view, and the scores of its views become one:
their sum, or the greatest of each class (SlowFast 287ec00,
slowfast/utils/meters.py). eval.num_views x eval.num_crops is the protocol:

  10 x 3   SlowFast on Kinetics-400; on Charades with eval.ensemble='max'
  10 x 10  ten crops, corners and centre with their mirror images
  3 x 3    bLVNet-TAM on Kinetics-400
  1 x 1    Something-Something: the centre, once

The result goes to workdir/eval.json, a picture of it to workdir/eval.png. A
view that cannot be decoded has no score; eval.json counts such views and names
their videos. An evaluation that was killed goes on where it was when the same
command is started again.

Differs: IBM's scripts average logits over the views, not softmax scores.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import sys

from absl import flags

from mgjax import cli
from mgjax.config import saved
from mgjax.hosts import peers
from mgjax.run import run_folder


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('workdir', str, None, 'Folder of the run.')
  flag('step', int, None, 'Checkpoint to score; by default the newest.')
  text = (
    "Evaluate also with other settings than the run's; eval.json says which."
  )
  flag('allow_config_change', bool, False, text)
  peers.define_flags(values)


def find_config(values: flags.FlagValues, arguments: list[str]):
  """The run's own config."""
  del arguments
  return saved.read_saved(run_folder.workdir_of_flags(values))


if __name__ == '__main__':
  sys.exit(
    cli.run('mgjax.evaluation.command', define_flags, find_config=find_config)
  )
