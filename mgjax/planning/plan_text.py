"""Writes plans as text for people, in the paper's terms."""

import difflib
import json
import math
from typing import Any

from mgjax.files import size_text
from mgjax.grids.schedule import Grid
from mgjax.planning import compiled_text, wall_time_text
from mgjax.planning.columns import aligned


def table(plan: dict[str, Any]) -> str:
  """Returns the plan as text, in the paper's terms.

  Args:
    plan: Of `plan.make_plan`.
  """
  full, io = plan['baseline']['grid'], plan['io']
  samples = plan['samples_per_video']
  size = 'S²' if full['H'] == full['W'] else 'H x W'
  lines = [
    f'{plan["data"]}, {plan["model"]}, grid.mode={plan["mode"]}',
    f'{plan["dataset_size"]:,} training videos ({plan["dataset_size_source"]})'
    + (f', {samples} clips of each in an epoch' if samples > 1 else ''),
    f'full grid: B x T x {size} = '
    f'{full["batch"]} x {full["T"]} x {_side_text(full)}',
    '',
    *_cost_table(plan),
    '',
    f'loader: {io["clips_per_gmac_ratio_mean"]:.2f} x the clips per '
    f'multiply-add of the baseline, at most '
    f'{io["clips_per_gmac_ratio_peak"]:.2f} x; '
    f'{io["clips_per_step_mean"]:.0f} clips per step, at most '
    f'{io["clips_per_step_peak"]}',
    f'programs to compile: {plan["num_train_programs"]}, one for each grid',
    _memory_text(plan),
    *_time_text(plan),
    *_random_text(plan),
    *wall_time_text.block(plan),
    *compiled_text.block(plan),
    '',
    *aligned(
      [
        ('', *_PHASE_COLUMNS),
        *((f'{i}', *row) for i, row in enumerate(_phase_rows(plan), start=1)),
      ],
      left=_PHASE_LEFT,
    ),
  ]
  return '\n'.join(line.rstrip() for line in lines)


def _memory_text(plan: dict[str, Any]) -> str:
  """Says what the largest grid takes of a device, and whether all fit."""
  memory = plan['memory']
  sizes = memory.get('compiled_bytes')
  if 'compiled' in plan and not sizes:
    return 'memory: of the grids that were compiled, below'
  if not sizes:
    return (
      'memory: known once compiled: --compile, or for other devices --compile '
      '--target=v5e:2x4, h100x8, ...'
    )
  most = max(range(len(sizes)), key=sizes.__getitem__)
  text = (
    f'memory: {size_text(sizes[most])} on each of {memory["num_devices"]} '
    f'device(s) at {Grid(**plan["grids"][most])}'
  )
  if limit := memory['device_bytes']:
    fit = sum(size <= limit for size in sizes)
    text += f'; {fit} of {len(sizes)} grids fit {size_text(limit)}'
  return text


def _time_text(plan: dict[str, Any]) -> list[str]:
  """Says how long training takes, where the plan knows."""
  if 'time' not in plan:
    return []
  hours, base = plan['time']['hours'], plan['time']['baseline_hours']
  return [
    f'time: {hours:.3g} hours of training steps, the baseline {base:.3g} '
    f'({base / hours:.2f} x as long)'
  ]


def _random_text(plan: dict[str, Any]) -> list[str]:
  """Says what random grids come to, and what is expected of them."""
  lines = []
  for i, phase in enumerate(plan['phases'], start=1):
    if 'weights' not in phase:
      continue
    drawn = ', '.join(
      f'{Grid(**grid)}: {count:,} ({count / phase["steps"]:.1%} of the steps, '
      f'{weight:.1%} expected)'
      for grid, count, weight in zip(
        phase['cycle'], phase['steps_cycle'], phase['weights'], strict=True
      )
    )
    off = phase['clips'] / phase['expected']['clips'] - 1
    lines.append(
      f'random grids of phase {i}: {drawn}; {abs(off):.2%} '
      f'{"more" if off >= 0 else "fewer"} clips than expected'
    )
  return lines


def _cost_table(plan: dict[str, Any]) -> list[str]:
  base, speedup = plan['baseline'], plan['speedup']
  names = ('epochs', 'steps', 'clips', 'gmacs')
  rows = [['', 'epochs', 'steps', 'clips', 'multiply-adds']]
  for name, (epochs, steps, clips, gmacs) in (
    ('baseline', [base[n] for n in names]),
    ('this run', [plan[f'total_{n}'] for n in names]),
  ):
    rows.append(
      [name, f'{epochs:g}', f'{steps:,}', f'{clips:,}', _macs_text(gmacs)]
    )
  more_clips = f'{plan["io"]["clips_ratio"]:.2f} x more'
  fewer = [f'{speedup[what]:.2f} x fewer' for what in ('steps', 'macs')]
  rows.append(['', '', fewer[0], more_clips, fewer[1]])
  return aligned(rows, left=(0,))


_PHASE_COLUMNS = (
  *('LR', 'long cycle', 'short cycle', 'epochs', 'steps', 'compute'),
  *('LR x', 'learning rate', 'BN groups', 'stride', 'jitter'),
)


_PHASE_LEFT = (2, 3, 11)  # Columns that are aligned to the left.


def _phase_rows(plan: dict[str, Any]) -> list[tuple[str, ...]]:
  """One row per phase, of _PHASE_COLUMNS."""
  rows = []
  full = plan['baseline']['grid']
  start = 0
  for phase in plan['phases']:
    first, last = _lr_ends(plan, phase, start)
    short_cycle = [_cycle_text(phase, i) for i in range(len(phase['cycle']))]
    lows = dict.fromkeys(str(low) for low, _ in phase['jitter_px'])
    rows.append(
      (
        f'{phase["lr_stage"]}',
        shape_text(phase['base'], full),
        '  '.join(short_cycle),
        f'{start:g} - {phase["end_epoch"]:g}',
        f'{phase["steps"]:,}',
        f'{phase["gmacs"] / plan["total_gmacs"]:.1%}',
        f'{phase["lr_scale"]:g}',
        f'{first:.3g}' if first == last else f'{first:.3g} .. {last:.3g}',
        '/'.join(dict.fromkeys(map(str, phase['bn_groups_cycle'])))
        if plan['has_batch_norm']
        else '-',
        '-'.join(map(str, dict.fromkeys(phase['stride_frames']))),
        f'{"/".join(lows)}-{phase["jitter_px"][0][1]}',
      )
    )
    start = phase['end_epoch']
  return rows


def _cycle_text(phase: dict[str, Any], place: int) -> str:
  """A grid of a phase: 128 x 158²; frames where they differ; its chance."""
  grid = phase['cycle'][place]
  frames = ''
  if len({g['T'] for g in phase['cycle']}) > 1:
    frames = f'{grid["T"]} x '
  chance = f' {phase["weights"][place]:.0%}' if 'weights' in phase else ''
  return f'{grid["batch"]} x {frames}{_side_text(grid)}{chance}'


def _lr_ends(
  plan: dict[str, Any], phase: dict[str, Any], start: int | float
) -> tuple[float, float]:
  """Returns the first and the last listed learning rate of a phase.

  Args:
    plan: The plan.
    phase: One of its phases.
    start: The epoch at which it starts.
  """
  values, every = plan['lr']['values'], plan['lr']['every_epochs']
  first = math.ceil(start / every)
  last = math.ceil(phase['end_epoch'] / every) - 1
  if first <= last < len(values):
    return values[first], values[last]
  if 'lr' in phase:  # None is listed: the phase is that short.
    first_lr, last_lr = phase['lr']
    return first_lr, last_lr
  # Plans of earlier versions have no others.
  first = min(first, len(values) - 1)
  return values[first], values[max(first, min(last, len(values) - 1))]


def _macs_text(gmacs: int | float) -> str:
  """Writes 1e9 multiply-adds with a prefix: 2.891 E."""
  exponent = min(max(int(math.log10(max(gmacs, 1)) // 3), 0), 3)
  return f'{gmacs / 1000**exponent:.4g} {"GTPE"[exponent]}'


def _side_text(grid: dict[str, Any]) -> str:
  if grid['H'] == grid['W']:
    return f'{grid["H"]}²'
  return f'{grid["H"]}x{grid["W"]}'


def shape_text(grid: dict[str, Any], full: dict[str, Any]) -> str:
  """Names a grid relative to the full one: 8B x T/4 x (S/√2)².

  Args:
    grid: T, H, W and batch.
    full: Those of the full grid.
  """
  ratio = grid['batch'] / full['batch']
  factor = '' if ratio == 1 else f'{ratio:g}'
  frames = _part('T', grid['T'] / full['T'])
  if full['H'] != full['W']:
    height = _part('H', grid['H'] / full['H'])
    return (
      f'{factor}B x {frames} x {height} x {_part("W", grid["W"] / full["W"])}'
    )
  side = _part('S', grid['H'] / full['H'])
  return f'{factor}B x {frames} x {side if side == "S" else f"({side})"}²'


def _part(letter: str, ratio: float) -> str:
  """Names a part of a side: T/4, S/√2, 0.6S."""
  known = {1: '', 0.5**0.5: '/√2', 0.5: '/2', 0.125**0.5: '/√8', 0.25: '/4'}
  for value, text in known.items():
    # Sides are whole pixels: 158 / 224 is 0.3 % from 1 / √2.
    if math.isclose(ratio, value, rel_tol=0.015):
      return letter + text
  return f'{ratio:.3g}{letter}'


# Two plans.


def diff(
  fields: dict[str, tuple[Any, Any]], a: dict[str, Any], b: dict[str, Any]
) -> str:
  """Returns what two plans differ in, as text.

  Args:
    fields: Values in both configs by name, where they differ.
    a: Of `plan.make_plan`.
    b: The other one.

  Returns:
    The fields, the costs side by side, the phases, and the rows of the tables.
    What only the first plan has is marked '-', what only the second has '+'.
  """
  field_rows = [(name, *map(repr, values)) for name, values in fields.items()]
  lines = [
    *aligned([('config', 'A', 'B'), *field_rows], left=(0, 1, 2)),
    '',
    *aligned([('schedule', 'A', 'B', 'B / A'), *_cost_rows(a, b)], left=(0,)),
    '',
    *_phase_diff(a, b),
    '',
    *_table_diff(a, b),
  ]
  return '\n'.join(line.rstrip() for line in lines)


# What a run costs: its name, and its entry in a plan.
_COSTS = {
  'epochs': 'total_epochs',
  'steps': 'total_steps',
  'clips': 'total_clips',
  '1e9 multiply-adds': 'total_gmacs',
  'programs to compile': 'num_train_programs',
}


def _cost_rows(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, ...]]:
  """Rows of two plans' costs: name, a, b and b / a."""
  write = lambda value: f'{value:,.10g}' if value < 1e6 else f'{value:,.0f}'
  most = lambda plan: plan['io']['clips_per_step_peak']
  pairs = {name: (a[entry], b[entry]) for name, entry in _COSTS.items()}
  pairs['clips per step, at most'] = most(a), most(b)
  return [
    (name, write(one), write(other), f'{other / one:.3f}')
    for name, (one, other) in pairs.items()
  ]


def _table_diff(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  """The rows of two tables as JSON, those that differ marked."""
  rows, others = ([_row_text(r) for r in plan['table']] for plan in (a, b))
  if rows == others:
    return ['the same table']
  lines = ['table, row by row']
  matcher = difflib.SequenceMatcher(None, rows, others, autojunk=False)
  for _, start, end, other_start, other_end in matcher.get_opcodes():
    same = rows[start:end] == others[other_start:other_end]
    if same:
      lines.append(f'  rows {start + 1} to {end}: the same')
      continue
    lines += [f'- {i + 1}: {rows[i]}' for i in range(start, end)]
    lines += [f'+ {i + 1}: {others[i]}' for i in range(other_start, other_end)]
  return lines


def _row_text(row: dict[str, Any]) -> str:
  """A row of a table: grids as 64 x 8 x 32², other fields as JSON."""
  parts = []
  for name, value in row.items():
    if name in ('cycle', 'random'):
      value = ' '.join(
        f'{g["batch"]}x{g["T"]}x{g["H"]}x{g["W"]}'
        + (f'*{g["weight"]:g}' if 'weight' in g else '')
        for g in value
      )
      parts.append(f'{name} [{value}]')
    else:
      parts.append(f'{name} {json.dumps(value)}')
  return ', '.join(parts)


def _phase_diff(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  rows, others = _phase_rows(a), _phase_rows(b)
  if rows == others:
    return ['the same phases']
  marked: list[tuple[str, ...]] = [('', *_PHASE_COLUMNS)]
  matcher = difflib.SequenceMatcher(None, rows, others, autojunk=False)
  for _, start, end, other_start, other_end in matcher.get_opcodes():
    if rows[start:end] == others[other_start:other_end]:
      marked += [(' ', *row) for row in rows[start:end]]
      continue
    marked += [('-', *row) for row in rows[start:end]]
    marked += [('+', *row) for row in others[other_start:other_end]]
  return aligned(marked, left=_PHASE_LEFT)
