r"""From a folder of videos to a config file of your own.

python -m mgjax.new my_videos --out=mine
python -m mgjax.train --config=mine/config.py --workdir=mine/run
python -m mgjax.predict --workdir=mine/run --heatmap=mine/heat VIDEO

my_videos has a folder for each class, or folders train and validation with
them. The videos are prepared in mine/data (mgjax.data.prepare says how), and
mine/config.py is written: a short program with every setting that depends on
your videos filled in, and why. It is yours to change.

  --preset=scratch   a small SlowFast, for any machine
  --preset=finetune  from --weights: a name that mgjax.weights knows, or the
                     folder of a run or of imported weights
  --flip, --noflip   whether a mirrored video still shows its class; without
                     one of them you are asked, on a terminal

The programs of the baseline are compiled and timed on this machine, which a
training then need not compile again. From that the wall time of each grid
schedule is predicted, compilation included, and multigrid is only chosen where
it is faster.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import sys

from absl import flags

from mgjax import cli
from mgjax.data.prepare import flag_checks

PRESETS = ('scratch', 'finetune')


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('out', str, None, 'Folder that gets the data set and config.py.')
  flag('preset', PRESETS, 'scratch', 'What the training starts from.')
  text = 'finetune: a name that mgjax.weights knows, or a folder of weights.'
  flag('weights', str, 'videomae_b', text)
  flag('flip', bool, None, 'Whether a mirrored video still shows its class.')
  text = 'Validation share of each class, where there are no split folders.'
  flag('validation_fraction', float, 0.2, text, 0, 0.9)
  text = 'Share of damaged files to accept, as mgjax.data.prepare has it.'
  flag('max_bad_fraction', float, 0.01, text, 0, 1)
  text = 'Encode the videos at most this small, for speed; 0: store as is.'
  flag('short_side_px', int, 256, text)
  flag_checks.check_short_side(values)
  text = 'Minutes that timing may take; 0: use what was measured before.'
  flag('measure_minutes', float, 10.0, text, 0)
  flag('num_workers', int, 0, 'Processes; 0: all cores; 1: this one.', 0)


if __name__ == '__main__':
  sys.exit(
    cli.run(
      'mgjax.new.command', define_flags, arguments='VIDEOS', takes_config=False
    )
  )
