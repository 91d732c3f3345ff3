r"""Names what videos show.

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

With --every_s or --every_frames a label is written for every piece of a stream:

python -m mgjax.predict --workdir=runs/digits VIDEO --every_s=1 --format=srt

VIDEO may be a file, a folder, '-' (standard input), a device such as
/dev/video0, or an address such as rtsp://HOST/PATH. A piece is scored as an
evaluation would score a video that has exactly its frames. docs/weights.md says
more.

Exit codes: 0 all files were used; 1 some could not be, or a picture or the
features could not be written, and the predictions are printed; 2 no file could
be used, or a setting cannot work; 130 stopped by Ctrl-C, 75 by SIGTERM: what
was labelled is written.
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
  run_folder.define_weights_flags(values)
  flag('top', int, 5, 'Labels per file.', 1)
  text = 'What is printed; all but text and json: for labels along a stream.'
  flag('format', ('text', 'json', 'jsonl', 'csv', 'srt', 'vtt'), 'text', text)
  text = "Predict though other settings than those of eval are not the run's."
  flag('allow_config_change', bool, False, text)
  flag('sheet', str, None, 'Folder for pictures of the clips.')
  flag('heatmap', str, None, 'Folder for pictures of what decided.')
  flag('features', str, None, 'File.npz for the features that are classified.')
  text = 'Label every stream so often, in seconds from label to label.'
  flag('every_s', float, None, text, 0.001)
  text = 'The same in frames of the stream.'
  flag('every_frames', int, None, text, 1)
  text = 'Seconds that a label is about; default: the span of one clip.'
  flag('window_s', float, None, text, 0.001)
  text = (
    'Smooth by an exponential moving average, in which the newest window has '
    'this weight.'
  )
  flag('ema_alpha', float, None, text, 0.001, 1)
  text = 'Smooth by the mean of so many windows, the newest and those before.'
  flag('moving_average', int, None, text, 1)
  text = (
    'File for the labels of streams; or a folder (FOLDER/), which gets a file '
    'for each of them. Default: standard output.'
  )
  flag('output', str, None, text)
  text = (
    'Whether a stream does not wait, so that windows are left out where the '
    'network is slower; default: cameras, and addresses without a length.'
  )
  flag('live', bool, None, text)
  text = "FFmpeg's name of the input format, such as v4l2 or mjpeg."
  flag('input_format', str, None, text)
  text = "FFmpeg's options of the input: framerate=30,video_size=640x480."
  flag('input_options', str, None, text)


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
