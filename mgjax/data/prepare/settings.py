"""What the command line says, checked: `Settings`."""

import dataclasses
import pathlib

from absl import flags

from mgjax.data.prepare.publishers import VIDEO_SETS
from mgjax.data.prepare.transcode import Encoding
from mgjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the command line says; a field is the flag of its name."""

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


def of_flags(values: flags.FlagValues) -> Settings:
  """The settings of the flags that __main__.py defines.

  Raises:
    ConfigError: Flags exclude each other.
  """
  if values.classes and values.num_classes is not None:
    raise ConfigError('--classes and --num_classes exclude each other.')
  if values.beam_options and not values.beam_runner:
    raise ConfigError('--beam_options needs a --beam_runner.')
  published = VIDEO_SETS.get(values.dataset)
  frame_fps = values.frame_fps or (published and published.frame_fps) or 30.0
  given = values.flag_values_dict()
  given |= {
    'videos': pathlib.Path(values.videos),
    'annotations': tuple(
      pathlib.Path(p) for p in values.annotations.split(',') if p
    ),
    'out': pathlib.Path(values.out),
    'classes': pathlib.Path(values.classes) if values.classes else None,
    'encoding': Encoding(
      values.short_side_px, values.gop, values.crf, frame_fps
    ),
  }
  names = [field.name for field in dataclasses.fields(Settings)]
  return Settings(**{name: given[name] for name in names})
