"""What the command line says, checked: `Settings`."""

import dataclasses
import pathlib
from collections.abc import Sequence

from mgjax.cli import ArgumentParser
from mgjax.data import prepare as package
from mgjax.data.prepare.publishers import VIDEO_SETS
from mgjax.data.prepare.transcode import Encoding
from mgjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the command line says; a field is the flag of its name (`parse`)."""

  dataset: str  # A key of VIDEO_SETS, or 'folder'.
  videos: pathlib.Path
  annotations: tuple[pathlib.Path, ...]  # Files, or folders of them.
  out: pathlib.Path  # Folder of all prepared data sets.
  name: str  # NAME[/CONFIG]; '': that of the public data set.
  classes: pathlib.Path | None  # List of the classes to keep; None: all.
  num_classes: int | None  # How many classes to keep; None: all.
  fold: int
  validation_fraction: float
  # From --short_side_px, --gop, --crf and --frame_fps.
  encoding: Encoding
  videos_per_shard: int
  max_bad_fraction: float  # Of all videos.
  max_missing_fraction: float  # Of the annotated videos of a split.
  num_workers: int  # Processes; 0: one per core; 1: none but this one.
  beam_runner: str  # '': without Beam.
  beam_options: str


def parse(argv: Sequence[str] | None) -> Settings:
  """Reads the flags.

  It is long because it is the list of the flags and their ranges.

  Args:
    argv: The arguments, without the program's name; None: the process's own.

  Raises:
    ConfigError: A value is out of its range, or flags exclude each other.
    SystemExit: A flag is unknown, missing or of another type; code 2.
  """
  parser = ArgumentParser(
    prog='python -m mgjax.data.prepare',
    description=package.__doc__,
  )
  add = parser.add_argument
  add('--dataset', required=True, choices=[*VIDEO_SETS, 'folder'])
  add('--videos', required=True, help='folder of videos or frame folders')
  add(
    '--annotations',
    default='',
    help="the publisher's files, or a folder of them; several with commas",
  )
  add('--out', default='data', help='folder of prepared data sets (data)')
  add('--name', default='', help='NAME[/CONFIG] of the prepared data set')
  add('--classes', help='file of the classes to keep, in order of the labels')
  add('--num_classes', type=int, help='keep so many classes, always the same')
  add('--fold', type=int, default=1, help='UCF101, HMDB51: split 1, 2 or 3 (1)')
  add(
    '--validation_fraction',
    type=float,
    default=0.1,
    help='share of validation videos where nothing tells the split (0.1)',
  )
  add(
    '--short_side_px',
    type=int,
    default=0,
    help='encode all videos anew, at most this small; 0: store as is (0)',
  )
  add(
    '--gop',
    type=int,
    default=12,
    help='frames from key frame to key frame (12)',
  )
  add('--crf', type=int, default=20, help="x264's quality, 0 to 51 (20)")
  add(
    '--frame_fps',
    type=float,
    help="frames per second of frame folders (the data set's, else 30)",
  )
  add('--videos_per_shard', type=int, default=256, help='(256)')
  add(
    '--max_bad_fraction',
    type=float,
    default=0.01,
    help='share of damaged files that is tolerated (0.01)',
  )
  add(
    '--max_missing_fraction',
    type=float,
    default=0.3,
    help="share of a split's annotated videos that may have no file (0.3)",
  )
  add(
    '--num_workers',
    type=int,
    default=0,
    help='processes; 0: all cores; 1: this one (0)',
  )
  add('--beam_runner', default='', help='run on Apache Beam: DirectRunner, …')
  add('--beam_options', default='', help="the runner's options, as one text")
  args = parser.parse_args(argv)
  for flag, accepted, is_right in (
    ('num_classes', '1 or more', lambda v: v is None or v >= 1),
    ('fold', '1, 2 or 3', lambda v: v in (1, 2, 3)),
    ('validation_fraction', 'from 0 to below 1', lambda v: 0 <= v < 1),
    ('short_side_px', '0 or an even number from 16', _is_short_side),
    ('gop', '1 or more', lambda v: v >= 1),
    ('crf', 'from 0 to 51', lambda v: 0 <= v <= 51),
    ('frame_fps', 'above 0', lambda v: v is None or 0 < v < 1000),
    ('videos_per_shard', '1 or more', lambda v: v >= 1),
    ('max_bad_fraction', 'from 0 to 1', lambda v: 0 <= v <= 1),
    ('max_missing_fraction', 'from 0 to 1', lambda v: 0 <= v <= 1),
    ('num_workers', '0 or more', lambda v: v >= 0),
  ):
    if not is_right(getattr(args, flag)):
      raise ConfigError(
        f'--{flag} is {getattr(args, flag)}; it must be {accepted}.'
      )
  if args.classes and args.num_classes is not None:
    raise ConfigError('--classes and --num_classes exclude each other.')
  if args.beam_options and not args.beam_runner:
    raise ConfigError('--beam_options needs a --beam_runner.')
  published = VIDEO_SETS.get(args.dataset)
  frame_fps = args.frame_fps or (published and published.frame_fps) or 30.0
  return Settings(
    dataset=args.dataset,
    videos=pathlib.Path(args.videos),
    annotations=tuple(
      pathlib.Path(p) for p in args.annotations.split(',') if p
    ),
    out=pathlib.Path(args.out),
    name=args.name,
    classes=pathlib.Path(args.classes) if args.classes else None,
    num_classes=args.num_classes,
    fold=args.fold,
    validation_fraction=args.validation_fraction,
    encoding=Encoding(args.short_side_px, args.gop, args.crf, frame_fps),
    videos_per_shard=args.videos_per_shard,
    max_bad_fraction=args.max_bad_fraction,
    max_missing_fraction=args.max_missing_fraction,
    num_workers=args.num_workers,
    beam_runner=args.beam_runner,
    beam_options=args.beam_options,
  )


def _is_short_side(value: int) -> bool:
  return value == 0 or (value >= 16 and value % 2 == 0)
