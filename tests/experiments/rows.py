"""Tables, read by the names of their columns."""


def rows_of(table):
  """A table's rows as dictionaries."""
  return [dict(zip(table.columns, row, strict=True)) for row in table.rows]
