"""Published numbers: published.csv has each with its source and certainty."""

import csv
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

FILE = pathlib.Path(__file__).with_name('published.csv')
NETWORKS = FILE.with_name('published_networks.csv')

# Of a number that was found in its source, whose source that is:
#   primary      the paper whose result it is, or its authors' own repository
#   third party  another paper or repository that reports or reproduces it
#   hearsay      a review, a note, an issue or a leaderboard that quotes it
# And 'inferred': what stands there was attached to the row, or computed from
# several numbers there, by us.
CERTAINTIES = ('primary', 'third party', 'hearsay', 'inferred')


class Published(NamedTuple):
  """A published number; all of it '' where there is none."""

  value: str
  source: str
  certainty: str


BLANK = Published('', '', '')


class Network(NamedTuple):
  """The network that a row of published numbers is about.

  Attributes:
    model: As costs.py knows it; '': it does not.
    frames: Of a clip.
    curve: Label of the row's points in a picture; '': they are not drawn.
  """

  model: str
  frames: int
  curve: str


def cells(table: str) -> dict[tuple[str, str], Published]:
  """The published numbers of a table by (row, column), in the file's order.

  Raises:
    ValueError: The file has a certainty that is not one of those above, or
      two values for one cell.
  """
  found: dict[tuple[str, str], Published] = {}
  with FILE.open(newline='') as file:
    for line in csv.DictReader(file):
      if line['certainty'] not in CERTAINTIES:
        raise ValueError(
          f'{FILE.name}: certainty {line["certainty"]!r}; accepted are '
          f'{", ".join(CERTAINTIES)}.'
        )
      if line['table'] != table:
        continue
      cell = (line['row'], line['column'])
      if cell in found:
        raise ValueError(f'{FILE.name}: {table}, {cell} is there twice.')
      found[cell] = Published(line['value'], line['source'], line['certainty'])
  return found


def cell(table: str, row: str, column: str) -> Published:
  """One published number, or three blanks."""
  return cells(table).get((row, column), BLANK)


def sources(cells_of_row: Iterable[Published]) -> tuple[str, str]:
  """What the sources of a row's published numbers are, and how sure.

  Returns:
    The sources, and the certainty of each in the same order (once, where it is
    that of all).
  """
  known = dict.fromkeys(
    (cell.source, cell.certainty) for cell in cells_of_row if cell.value
  )
  certainties = [certainty for _, certainty in known]
  if len(set(certainties)) == 1:
    certainties = certainties[:1]
  return '; '.join(source for source, _ in known), '; '.join(certainties)


def networks(table: str) -> dict[str, Network]:
  """The networks of a table's rows, where published_networks.csv has them."""
  with NETWORKS.open(newline='') as file:
    return {
      line['row']: Network(line['model'], int(line['frames']), line['curve'])
      for line in csv.DictReader(file)
      if line['table'] == table
    }
