r"""Prepares a data set of videos: one TFDS folder of encoded videos.

python -m mgjax.data.prepare --dataset=kinetics400 --videos=DIR \
  --annotations=FILE[,FILE...] --out=data

Every video file is decoded from its first to its last frame, so that no damage
waits for training, and once more as training will. A damaged file is not
stored; the manifest says what is wrong with it. All cores work. A run that was
killed continues when the same command is started again. The folder then also
holds

  manifest.jsonl  a line per annotated video: id, split, labels, file, frames,
                  rate, size, duration, SHA-256 of the file, MD5 of what its
                  frames show; or why it is not there
  summary.json    counts, coverage per class, damaged files, files that are
                  not used, settings, and the manifest's own SHA-256, which
                  evaluation records quote

With --dataset=folder, the classes are folders ([train|validation|test/]CLASS/
VIDEO), or --annotations names a CSV file with path,label[,split].
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import functools
import sys

from absl import flags

from mgjax import cli
from mgjax.data.prepare import flag_checks
from mgjax.data.prepare.publishers import VIDEO_SETS


def define_flags(values: flags.FlagValues) -> None:
  flag = functools.partial(cli.define_flag, values)
  flag('dataset', [*VIDEO_SETS, 'folder'], None, 'Whose annotation it is.')
  flag('videos', str, None, 'Folder of videos or frame folders.')
  text = "The publisher's files, or a folder of them; several with commas."
  flag('annotations', str, '', text)
  flag('out', str, 'data', 'Folder of prepared data sets.')
  flag('name', str, '', 'NAME[/CONFIG] of the prepared data set.')
  flag('classes', str, None, 'File of the classes to keep, in order of labels.')
  flag('num_classes', int, None, 'Keep so many classes, always the same.', 1)
  flag('fold', int, 1, 'UCF101, HMDB51: the published split.', 1, 3)
  text = 'Validation share of each class, where the annotation has no splits.'
  flag('validation_fraction', float, 0.1, text, 0, 0.999)
  text = 'Encode all videos anew, at most this small; 0: store as is.'
  flag('short_side_px', int, 0, text)
  flag_checks.check_short_side(values)
  flag('gop', int, 12, 'Frames from key frame to key frame.', 1)
  flag('crf', int, 20, "x264's quality; 0 is lossless.", 0, 51)
  text = "Frames per second of frame folders (the data set's, else 30)."
  flag('frame_fps', float, None, text, 0.001, 1000)
  flag('videos_per_shard', int, 256, 'Videos in a file of the data set.', 1)
  text = (
    'Share of damaged files to accept; in a set below 1000 videos as many as '
    'in 1000, up to an eighth.'
  )
  flag('max_bad_fraction', float, 0.01, text, 0, 1)
  text = "Share of a split's annotated videos that may have no file."
  flag('max_missing_fraction', float, 0.3, text, 0, 1)
  flag('num_workers', int, 0, 'Processes; 0: all cores; 1: this one.', 0)
  flag('beam_runner', str, '', 'Run on Apache Beam: DirectRunner, ...')
  flag('beam_options', str, '', "The runner's options, as one text.")
  flags.mark_flags_as_required(['dataset', 'videos'], values)


if __name__ == '__main__':
  sys.exit(
    cli.run('mgjax.data.prepare.command', define_flags, takes_config=False)
  )
