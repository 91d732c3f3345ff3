"""Rows and lines of text files, each with the place where it stands.

Errors in an annotation name that place.
"""

import csv
import io
import pathlib

from mgjax.errors import ConfigError
from mgjax.files import read_text


def read_rows(
  path: pathlib.Path, delimiter: str = ','
) -> list[tuple[str, list[str]]]:
  """Reads the rows of a CSV file that are not empty.

  Args:
    path: The file.
    delimiter: What stands between fields. With ';', quotation marks are part
      of a field.

  Returns:
    For every row its place ('FILE, line N') and its fields, without spaces
    around them.

  Raises:
    ConfigError: The file cannot be read, or is no such table.
  """
  reader = csv.reader(
    io.StringIO(read_text(path), newline=''),
    delimiter=delimiter,
    # Something-Something V1 has labels that start with a quotation mark.
    quoting=csv.QUOTE_NONE if delimiter == ';' else csv.QUOTE_MINIMAL,
  )
  rows = []
  try:
    for row in reader:
      if row:
        where = f'{path}, line {reader.line_num}'
        rows.append((where, [cell.strip() for cell in row]))
  except csv.Error as error:
    raise ConfigError(
      f'{path}, line {reader.line_num}: {error}; a row of a CSV file has '
      f'short fields with {delimiter!r} between them.'
    ) from error
  return rows


def read_named_rows(path: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  """Reads a CSV file whose first row names the columns.

  Returns:
    For every later row its place and its fields by name. A field that a short
    row lacks is not there.

  Raises:
    ConfigError: As for `read_rows`.
  """
  rows = read_rows(path)
  header = rows[0][1] if rows else []
  return [
    (where, dict(zip(header, row, strict=False))) for where, row in rows[1:]
  ]


def read_lines(path: pathlib.Path) -> list[tuple[str, str]]:
  """Reads the lines of a text file that are not empty.

  Returns:
    For every line its place ('FILE, line N') and its text, without spaces
    around it.

  Raises:
    ConfigError: The file cannot be read, or is no text in UTF-8.
  """
  return [
    (f'{path}, line {number}', line.strip())
    for number, line in enumerate(read_text(path).splitlines(), 1)
    if line.strip()
  ]
