"""Tables as Markdown and CSV, pictures as PNG.

Every number says where it comes from, in the name of its column:
  [computed]   from schedules and shapes, exactly; no data, no training
  [published]  found elsewhere: published.csv has each with its source, and how
               sure it is: literature.py has the four kinds
  [measured]   by a run of ours; the column `record` names its records
A cell that is not known is blank.
"""

import csv
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
from absl import flags
from matplotlib import figure

from mgjax import cli, files


class Table(NamedTuple):
  """A table of text: what is not known is ''."""

  name: str  # Of its CSV file and of its marks in a README.
  columns: tuple[str, ...]
  rows: Sequence[tuple[str, ...]]


def markdown(table: Table) -> str:
  """The table as Markdown."""
  lines = [table.columns, ['---'] * len(table.columns), *table.rows]
  return '\n'.join(map(line, lines))


def line(cells: Sequence[str]) -> str:
  """A line of a Markdown table."""
  return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def write_csv(table: Table, folder: pathlib.Path) -> pathlib.Path:
  """Writes FOLDER/NAME.csv and returns its path."""
  path = folder / f'{table.name}.csv'
  with path.open('w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(table.columns)
    writer.writerows(table.rows)
  return path


def save_picture(
  draw: Callable[[Any], None],
  path: pathlib.Path,
  *,
  panels: int = 1,
  beside: bool = False,
) -> None:
  """Writes what `draw` draws on its axes (one, or an array of `panels`).

  Args:
    draw: Draws on them.
    path: Of the picture; its suffix is the format, .png or .svg.
    panels: Number of axes.
    beside: Whether the panels stand side by side instead of one above another.
  """
  style = {
    'font.size': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    # Text stays text, and the same picture is the same file.
    'svg.fonttype': 'none',
    'svg.hashsalt': path.stem,
  }
  size = (9, 3) if beside else (7, 1 + 2 * panels if panels > 1 else 4.5)
  rows, columns = (1, panels) if beside else (panels, 1)
  metadata = {'Date': None} if path.suffix == '.svg' else {}
  with matplotlib.rc_context(style):
    fig = figure.Figure(figsize=size, dpi=120, layout='constrained')
    draw(fig.subplots(rows, columns, sharex=panels > 1 and not beside))
    fig.savefig(path, metadata=metadata)


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

  def define_flags(values: flags.FlagValues) -> None:
    text = 'Folder of the CSV files and pictures.'
    cli.define_flag(values, 'out', str, 'runs/tables', text)

  def write(values: flags.FlagValues) -> None:
    out = pathlib.Path(values.out)
    files.make_folder(out, f'--out={out}')
    for table in make():
      print(f'{table.name}\n\n{markdown(table)}\n')
      print(f'wrote {write_csv(table, out)}', file=sys.stderr)
    if picture is not None:
      script = sys.modules[make.__module__].__spec__.name.rpartition('.')[-1]
      picture(out / f'{script}.png')
      print(f'wrote {out / f"{script}.png"}', file=sys.stderr)

  # --help shows the text of the script, not of this module.
  define_flags.__module__ = make.__module__
  return cli.run(write, define_flags, takes_config=False)
