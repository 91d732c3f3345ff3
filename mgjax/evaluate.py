r"""Scores a checkpoint on the validation set, view by view.

python -m mgjax.evaluate --workdir=runs/digits --config.eval.num_views=3

The settings are those of the run (its config.json). Those of the protocol
(--config.eval.…) and of the machine can be overridden; eval.json lists which
were. With --config=FILE.py the settings must be the same, but for those.

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

import sys

from absl import flags

from mgjax import cli
from mgjax.config import saved
from mgjax.hosts import peers
from mgjax.run import run_folder


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  flags.DEFINE_integer(
    'step',
    None,
    'Checkpoint to score; by default the newest.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'allow_config_change',
    False,
    "Evaluate also with other settings than the run's; eval.json says which.",
    flag_values=values,
  )
  peers.define_flags(values)


def find_config(values: flags.FlagValues, arguments: list[str]):
  """The run's own config."""
  del arguments
  return saved.read_saved(run_folder.workdir_of_flags(values))


if __name__ == '__main__':
  sys.exit(
    cli.run('mgjax.evaluation.command', define_flags, find_config=find_config)
  )
