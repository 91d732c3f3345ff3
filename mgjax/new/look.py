"""What a prepared data set holds, as far as settings depend on it."""

import json
import pathlib
from typing import NamedTuple

import numpy as np

from mgjax.data.prepare import layout


class Videos(NamedTuple):
  """The videos of a data set.

  Attributes:
    name: Of the data set.
    counts: Videos of each class by split, 'train' and 'validation'.
    num_frames: int64 [N], of all videos, as fps and short_px.
    fps: float64 [N].
    short_px: int64 [N], the shorter sides.
    decoded_gib: GiB of all frames, decoded, as config.data.decoded_cache_gib
      keeps them.
  """

  name: str
  counts: dict[str, dict[str, int]]
  num_frames: np.ndarray
  fps: np.ndarray
  short_px: np.ndarray
  decoded_gib: float

  def total(self, split: str) -> int:
    """Number of videos of a split."""
    return sum(counts[split] for counts in self.counts.values())

  @property
  def unevenness(self) -> float:
    """Training videos of the most frequent class for one of the rarest."""
    counts = [c['train'] for c in self.counts.values() if c['train']]
    return max(counts) / min(counts)

  @property
  def lines(self) -> list[str]:
    """What was found, in words."""
    length = f'{_range(self.num_frames / self.fps, ".1f")} s'
    frames = f'{_range(self.num_frames, "d")} frames'
    rate = f'{_range(self.fps, ".4g")} a second'
    side = f'short sides of {_range(self.short_px, "d")} px as stored'
    return [
      f'{len(self.counts)} classes, {self.total("train")} training videos and '
      f'{self.total("validation")} for validation; {length}, {frames}, {rate}; '
      f'{side}.',
      *(
        f'  {name}: {counts["train"]} + {counts["validation"]}'
        for name, counts in self.counts.items()
      ),
    ]


def _range(values: np.ndarray, form: str) -> str:
  low, high = (format(v, form) for v in (values.min(), values.max()))
  return low if low == high else f'{low} to {high}'


def look(folder: pathlib.Path, name: str) -> Videos:
  """Reads the manifest of a data set.

  Args:
    folder: Of the data set, with its version.
    name: Of the data set.
  """
  lines = (folder / layout.MANIFEST).read_text('utf-8').splitlines()
  stored = [line for line in map(json.loads, lines) if 'num_frames' in line]
  summary = json.loads((folder / layout.SUMMARY).read_text('utf-8'))
  return Videos(
    name,
    {
      label: {
        split: splits.get(split, {}).get('stored', 0)
        for split in ('train', 'validation')
      }
      for label, splits in summary['classes'].items()
    },
    np.array([line['num_frames'] for line in stored]),
    np.array([line['fps'] for line in stored], np.float64),
    np.array([min(line['height'], line['width']) for line in stored]),
    # A byte and a half for each pixel, as videos have them (4:2:0).
    sum(
      1.5 * line['num_frames'] * line['height'] * line['width']
      for line in stored
    )
    / 2**30,
  )
