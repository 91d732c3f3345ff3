"""Tables as Markdown and CSV, and the published numbers beside ours.

Every number says where it comes from, in the name of its column:
  [computed]   from schedules and shapes, exactly; no data, no training
  [published]  found elsewhere: published.csv has each with its source, and how
               sure it is: found (in that source), or inferred (a number found
               there, attached to a row by what is computed here)
  [measured]   by a run of ours; the column `record` names its records
A cell that is not known is blank.
"""

import csv
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib import figure
from matplotlib.backends import backend_agg

from mgjax import files
from mgjax.cli import ArgumentParser, guard

FOLDER = pathlib.Path(__file__).parent
PUBLISHED = FOLDER / 'published.csv'

_CERTAINTIES = ('found', 'inferred')


class Table(NamedTuple):
  """A table of text: what is not known is ''."""

  name: str  # Of its CSV file and of its marks in a README.
  columns: tuple[str, ...]
  rows: Sequence[tuple[str, ...]]


class Published(NamedTuple):
  """A published number; all of it '' where there is none."""

  value: str
  source: str
  certainty: str


def markdown(table: Table) -> str:
  """The table as Markdown."""
  lines = [table.columns, ['---'] * len(table.columns), *table.rows]
  return '\n'.join(
    '| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |'
    for line in lines
  )


def write_csv(table: Table, folder: pathlib.Path) -> pathlib.Path:
  """Writes FOLDER/NAME.csv and returns its path."""
  path = folder / f'{table.name}.csv'
  with path.open('w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(table.columns)
    writer.writerows(table.rows)
  return path


def published(table: str) -> dict[tuple[str, str], Published]:
  """The published numbers of a table by (row, column), in the file's order.

  Raises:
    ValueError: The file has a certainty that is not one of those above, or
      two values for one cell.
  """
  cells: dict[tuple[str, str], Published] = {}
  with PUBLISHED.open(newline='') as file:
    for line in csv.DictReader(file):
      if line['certainty'] not in _CERTAINTIES:
        raise ValueError(
          f'{PUBLISHED.name}: certainty {line["certainty"]!r}; accepted are '
          f'{", ".join(_CERTAINTIES)}.'
        )
      if line['table'] != table:
        continue
      cell = (line['row'], line['column'])
      if cell in cells:
        raise ValueError(f'{PUBLISHED.name}: {table}, {cell} is there twice.')
      cells[cell] = Published(line['value'], line['source'], line['certainty'])
  return cells


def published_cell(table: str, row: str, column: str) -> Published:
  """One published number, or three blanks."""
  return published(table).get((row, column), Published('', '', ''))


def sources(cells: Iterable[Published]) -> tuple[str, str]:
  """What the sources of a row's published numbers are, and how sure."""
  known = [cell for cell in cells if cell.value]
  return (
    '; '.join(dict.fromkeys(cell.source for cell in known)),
    '; '.join(dict.fromkeys(cell.certainty for cell in known)),
  )


def save_picture(
  draw: Callable[[Any], None], path: pathlib.Path, *, panels: int = 1
) -> None:
  """Writes what `draw` draws on its axes (one, or an array of `panels`)."""
  style = {'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False}
  with matplotlib.rc_context(style):
    fig = figure.Figure(
      figsize=(7, 1 + 2 * panels if panels > 1 else 4.5),
      dpi=120,
      layout='constrained',
    )
    draw(fig.subplots(panels, 1, sharex=panels > 1))
    backend_agg.FigureCanvasAgg(fig).print_png(path)


def main(
  make: Callable[[], list[Table]],
  picture: Callable[[pathlib.Path], None] | None = None,
) -> int:
  """The command of a script: prints its tables, writes CSV and a picture.

  Args:
    make: Makes the tables.
    picture: Writes the script's picture into the file it is given.

  Returns:
    Its exit code.
  """
  return guard(lambda: _write(make, picture))


def _write(
  make: Callable[[], list[Table]],
  picture: Callable[[pathlib.Path], None] | None,
) -> None:
  script = sys.modules[make.__module__]
  name = script.__spec__.name.rpartition('.')[-1]
  parser = ArgumentParser(
    prog=f'python -m {script.__spec__.name}',
    description=script.__doc__,
  )
  parser.add_argument(
    '--out',
    type=pathlib.Path,
    default=pathlib.Path('runs/tables'),
    help='folder of the CSV files and pictures (default: %(default)s)',
  )
  out = parser.parse_args().out
  files.make_folder(out, f'--out={out}')
  for table in make():
    print(f'{table.name}\n\n{markdown(table)}\n')
    print(f'wrote {write_csv(table, out)}', file=sys.stderr)
  if picture is not None:
    picture(out / f'{name}.png')
    print(f'wrote {out / f"{name}.png"}', file=sys.stderr)
