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

import sys

from absl import flags

from mgjax import cli
from mgjax.data.prepare.publishers import VIDEO_SETS

_TEXTS = (
  ('videos', None, 'Folder of videos or frame folders.'),
  (
    'annotations',
    '',
    "The publisher's files, or a folder of them; several with commas.",
  ),
  ('out', 'data', 'Folder of prepared data sets.'),
  ('name', '', 'NAME[/CONFIG] of the prepared data set.'),
  ('classes', None, 'File of the classes to keep, in order of the labels.'),
  ('beam_runner', '', 'Run on Apache Beam: DirectRunner, ...'),
  ('beam_options', '', "The runner's options, as one text."),
)
# Default, text, least and greatest value; a float if the greatest one is.
_NUMBERS = (
  ('num_classes', None, 'Keep so many classes, always the same.', 1, None),
  ('fold', 1, 'UCF101, HMDB51: the published split.', 1, 3),
  (
    'validation_fraction',
    0.1,
    'Share of validation videos where nothing tells the split.',
    0,
    0.999,
  ),
  (
    'short_side_px',
    0,
    'Encode all videos anew, at most this small; 0: store as is.',
    0,
    None,
  ),
  ('gop', 12, 'Frames from key frame to key frame.', 1, None),
  ('crf', 20, "x264's quality; 0 is lossless.", 0, 51),
  (
    'frame_fps',
    None,
    "Frames per second of frame folders (the data set's, else 30).",
    0.001,
    1000.0,
  ),
  ('videos_per_shard', 256, 'Videos in a file of the data set.', 1, None),
  ('max_bad_fraction', 0.01, 'Share of damaged files to tolerate.', 0, 1.0),
  (
    'max_missing_fraction',
    0.3,
    "Share of a split's annotated videos that may have no file.",
    0,
    1.0,
  ),
  ('num_workers', 0, 'Processes; 0: all cores; 1: this one.', 0, None),
)


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_enum(
    'dataset',
    None,
    [*VIDEO_SETS, 'folder'],
    'Whose annotation it is.',
    flag_values=values,
  )
  for name, default, text in _TEXTS:
    flags.DEFINE_string(name, default, text, flag_values=values)
  for name, default, text, least, greatest in _NUMBERS:
    is_float = isinstance(greatest, float)
    define = flags.DEFINE_float if is_float else flags.DEFINE_integer
    define(name, default, text, flag_values=values)
    # absl's own bounds let a nan through.
    flags.register_validator(
      name,
      lambda v, a=least, b=greatest: (
        v is None or (a <= v if b is None else a <= v <= b)
      ),
      f'it must be {least} or more'
      if greatest is None
      else f'it must be from {least} to {greatest}',
      flag_values=values,
    )
  flags.register_validator(
    'short_side_px',
    lambda v: v % 2 == 0 and not 0 < v < 16,
    'it must be 0 or an even number from 16',
    flag_values=values,
  )
  flags.mark_flags_as_required(['dataset', 'videos'], values)


if __name__ == '__main__':
  sys.exit(
    cli.run('mgjax.data.prepare.command', define_flags, takes_config=False)
  )
