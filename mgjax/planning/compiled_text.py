"""Writes what compilers say of programs as text."""

from collections.abc import Mapping
from typing import Any

from mgjax.files import size_text
from mgjax.grids.schedule import Grid
from mgjax.planning.columns import aligned

_COLUMNS = (
  *('program', 'memory', 'compiled', 'collectives', 'copies', 'GMACs'),
  *('accessed', 'roofline', 'optimal'),
)


def block(plan: Mapping[str, Any]) -> list[str]:
  """Lines on the compiled programs of a plan; none where there are none."""
  rows = plan.get('compiled')
  if not rows:
    return []
  target = plan.get('target')
  where = 'this machine'
  if target:
    where = f'{target["name"]} ({target["num_devices"]} x {target["device"]})'
  limit = rows[0]['device_bytes']
  lines = [
    '',
    f'compiled for {where}; all of one device'
    + (f', which has {size_text(limit)}' if limit else ''),
    *aligned([_COLUMNS, *map(_row, rows)], left=(0, 3)),
  ]
  convolutions = {
    ', '.join(f'{n} x {k}' for k, n in sorted(row['convolutions'].items()))
    for row in rows
    if row['kind'] == 'train'
  }
  lines += [f'convolutions of a step: {text}' for text in sorted(convolutions)]
  lines += [f'{_name(row)}: {row["error"]}' for row in rows if row['error']]
  return [*lines, *_NOTES]


_NOTES = (
  'memory: arguments, results and temporary arrays, as the runtime allocates '
  "them (XLA's peak of what is alive at once, where that is more)",
  'copies: and transposes, of at least 1 MB. GMACs: of the network, a backward '
  'pass as two forward ones. roofline: those at the peak rate, or the bytes '
  "accessed, whichever takes longer. optimal: the compiler's own, where it is "
  'not less than its multiply-adds take. No time is measured',
)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
  """A program, as _COLUMNS say."""
  fits = {True: ' fits', False: ' TOO MUCH', None: ''}[row['fits']]
  kinds = ', '.join(
    f'{found["count"]} {kind} {_mb(found["bytes"])}'
    for kind, found in row['collectives'].items()
  )
  copies = row['copies']
  return (
    _name(row),
    f'{size_text(row["peak_bytes"])}{fits}',
    f'{row["compile_s"]:.0f} s',
    kinds or 'none',
    f'{copies["count"]} {_mb(copies["bytes"])}' if copies['count'] else 'none',
    f'{row["gmacs"]:,.3g}' if row['gmacs'] < 100 else f'{row["gmacs"]:,.0f}',
    _mb(row['bytes_accessed']),
    _ms(row['roofline_s']),
    _ms(row['optimal_s']),
  )


def _name(row: Mapping[str, Any]) -> str:
  return f'{row["kind"]} {Grid(*(row[name] for name in Grid._fields))}'


def _mb(size: int) -> str:
  return f'{size / 1e6:,.{0 if size >= 1e8 else 2}f} MB'


def _ms(seconds: float | None) -> str:
  return '' if seconds is None else f'{1e3 * seconds:.1f} ms'
