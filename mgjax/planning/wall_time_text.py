"""Writes the wall time of a plan and of a run as text, in minutes:seconds."""

from collections.abc import Mapping, Sequence
from typing import Any

from mgjax.planning import columns, wall_time
from mgjax.progress import duration


def block(plan: Mapping[str, Any]) -> list[str]:
  """Returns the lines of a plan about wall time.

  Args:
    plan: Of `plan.make_plan`, with 'wall_time': that of `wall_time.as_json`,
      or None where it is not known.
  """
  if 'wall_time' not in plan:
    return []
  found = plan['wall_time']
  if found is None:
    # With seconds of steps that the user knows, the plan has hours.
    if 'time' in plan:
      return []
    return [
      'wall time: nothing of this network is measured on '
      f'{plan["memory"]["num_devices"]} device(s) of this machine; plan '
      '--compile measures it, and so does every training'
    ]
  lines = [
    '',
    f'wall time on {found["num_devices"]} x {found["device"]}, without waits '
    f'for data and the start (measured until {found["measured"][:10]}):',
    *table({'baseline': found['baseline'], 'this run': found['run']}),
    *_sources(found),
  ]
  if found['advice']:
    lines.append(found['advice'])
  return lines


def line(found: Mapping[str, Any]) -> str:
  """Returns one line: which mode is faster, or how long the run takes.

  Args:
    found: Of `wall_time.as_json`.
  """
  run, base = found['run'], found['baseline']
  text = found['advice'] or (
    f'wall time: {duration(run["total_s"])} '
    f'({duration(run["compilation_s"])} of it compiling), the baseline '
    f'{duration(base["total_s"])}'
  )
  return f'{text} (waits for data and the start add to it)'


def table(
  rows: Mapping[str, Mapping[str, float]],
  parts: Sequence[str] = wall_time.PARTS,
) -> list[str]:
  """Returns breakdowns as lines of text, in columns.

  Args:
    rows: Breakdowns by name; a part that one lacks is left blank.
    parts: Names of the columns before the total.
  """
  names = (*parts, 'total')
  cells = [('', *names)]
  for name, found in rows.items():
    values = [found.get(f'{part}_s') for part in names]
    texts = ['' if v is None else duration(v) for v in values]
    cells.append((name, *texts))
  return [line.rstrip() for line in columns.aligned(cells, left=(0,))]


def _sources(found: Mapping[str, Any]) -> list[str]:
  """Says what of a breakdown was measured, and what was not."""
  programs = found['programs']
  lines = [
    f'  measured: {what} of {_measured(programs, key)} of {len(programs)} '
    'programs'
    + ('' if _all(programs, key) else f'; inferred: {_inferred(programs, key)}')
    for what, key in (
      ('runs', 'run_is_measured'),
      ('compilation, or loading,', 'compile_is_measured'),
    )
  ]
  on_disk = sum(program['on_disk'] for program in programs)
  if on_disk:
    run, base = found['run'], found['baseline']
    lines.append(
      f'  compiled already: {on_disk}, which are read from the disk; without '
      f'them compilation takes {duration(run["cold_compilation_s"])}, the '
      f"baseline's {duration(base['cold_compilation_s'])}"
    )
  if found['unknown']:
    lines.append(f'  not known, and not in it: {", ".join(found["unknown"])}')
  return lines


def _measured(programs: Sequence[Mapping[str, Any]], key: str) -> int:
  return sum(program[key] for program in programs)


def _all(programs: Sequence[Mapping[str, Any]], key: str) -> bool:
  return _measured(programs, key) == len(programs)


def _inferred(programs: Sequence[Mapping[str, Any]], key: str) -> str:
  """Names the programs that lack a measurement, the first few of them."""
  names = [
    f'{p["kind"]} {p["T"]}x{p["H"]}x{p["W"]} b{p["batch"]}'
    for p in programs
    if not p[key]
  ]
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  return ', '.join(names[:3]) + more
