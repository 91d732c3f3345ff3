"""Writes rows of cells as text in columns."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
  """Returns rows of cells as lines of text, their columns aligned.

  Args:
    rows: Of as many cells each.
    left: Columns that are aligned to the left; the others are to the right.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) if i in left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  ]
