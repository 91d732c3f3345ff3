r"""Names what video files show.

python -m mgjax.predict --workdir=runs/digits VIDEO [VIDEO ...]

The videos are cut into the views of config.eval, as in an evaluation; the
scores of a video's views are averaged, or the greatest taken, as eval.ensemble
says. The settings are those that the run was trained (or the weights were
imported) with. Fields of config.eval, such as --config.eval.num_views=3, and
those that only say how a machine works can be overridden; other differences,
and a --config=FILE.py that is not the run's, need --allow_config_change.

The labels have the names that the run was trained with (its labels.json), else
those of the data set, if it is here; imported weights have none of their own.

  --labels=FILE    names of the labels: one per line, or a list in a .json file
  --sheet=DIR      a picture per video: its clips' frames, the likeliest labels
  --heatmap=DIR    the same with what each place of the frames adds to the
                   first label (Grad-CAM): red the most, blue nothing
  --features=FILE  an .npz of 'features' [N, D], what the classifier gets,
                   averaged over a video's clips; 'scores' [N, K]; 'files' [N]

Predictions are printed before pictures are drawn and features computed.

Exit codes: 0 all files were used; 1 some could not be, or a picture or the
features could not be written, and the predictions are printed; 2 no file could
be used, or a setting cannot work.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import sys

from absl import flags

from mgjax import cli
from mgjax.config import saved
from mgjax.run import run_folder


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  text = (
    'Folder of a run, or of imported weights; the newest checkpoint is used.'
  )
  flag('workdir', str, None, text)
  text = (
    'Folder of one checkpoint of a run, such as runs/digits/checkpoints/300.'
  )
  flag('checkpoint', str, None, text)
  flag('top', int, 5, 'Labels per file.', 1)
  flag('format', ('text', 'json'), 'text', 'What is printed.')
  text = "Predict though other settings than those of eval are not the run's."
  flag('allow_config_change', bool, False, text)
  flag('labels', str, None, 'File with the names of the labels.')
  flag('sheet', str, None, 'Folder for pictures of the clips.')
  flag('heatmap', str, None, 'Folder for pictures of what decided.')
  flag('features', str, None, 'File.npz for the features that are classified.')


def find_config(values: flags.FlagValues, arguments: list[str]):
  """The run's own config."""
  return saved.read_saved(run_folder.run_of_weights(values))


if __name__ == '__main__':
  sys.exit(
    cli.run(
      'mgjax.predicting.command',
      define_flags,
      arguments='VIDEO',
      find_config=find_config,
    )
  )
