"""Which files are videos, or frames of one, by the ends of their names.

FFmpeg decides by the contents when it opens a file. The name decides only which
files are opened at all: trying every file of a large folder would take hours.
"""

import os

# What FFmpeg reads, and data sets or cameras use.
VIDEO_SUFFIXES = frozenset(
  '.mp4 .webm .avi .mkv .mov .m4v .mpg .mpeg .flv .wmv .asf .divx .ts .mts '
  '.m2ts .vob .mxf .3gp .ogv .gif'.split()
)
# FFmpeg's name of the codec of each kind of frame file.
FRAME_CODECS = {'.jpg': 'mjpeg', '.jpeg': 'mjpeg', '.png': 'png'}


def suffix_of(name: str) -> str:
  """Returns the suffix of a file's name in lower case: '.mp4', or ''."""
  return os.path.splitext(name)[1].lower()


def without_suffix(path: str) -> str:
  """Returns the path without the suffix of a video file, if it has one.

  Other ends stay: 'v.2017' is a name, of which '.2017' is a part.
  """
  stem, suffix = os.path.splitext(path)
  return stem if suffix.lower() in VIDEO_SUFFIXES else path
