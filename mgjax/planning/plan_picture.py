"""The picture of a plan: what changes over a run, on one axis of time.

Where the plan knows how long steps take, the axis has hours, and the last panel
has clips per second that the loader must deliver. Elsewhere a constant rate of
multiply-adds stands in for the clock: the axis has the share of them that is
done, and the last panel has clips per multiply-add, relative to the baseline.
"""

import itertools
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib import figure, lines, ticker
from matplotlib.axes import Axes

from mgjax import pictures
from mgjax.grids.schedule import Grid, GridSchedule
from mgjax.planning import plan_text

_INK, _FAINT = '#222222', '#9a9a9a'
# One colour for each shape of the long cycle, coarse to fine.
_COLOURS = ('#e0a030', '#58a868', '#2f86b8', '#3d3a8c', '#8c3a78', '#555555')

_BASELINE: dict[str, Any] = {'color': _FAINT, 'lw': 0.9, 'ls': (0, (4, 3))}

_STYLE = {
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': _FAINT,
  'xtick.color': _FAINT,
  'ytick.color': _FAINT,
  'xtick.labelcolor': _INK,
  'ytick.labelcolor': _INK,
}


class _TimeAxis(NamedTuple):
  """When each phase starts and ends, and how fast it needs clips.

  Attributes:
    edges: Times between the phases, from 0 to the end of the run.
    label: What they count.
    rates: Clips per time that each grid needs.
    phase_rates: Means of the phases.
    baseline: Of the baseline.
    title: What the rates count.
  """

  edges: list[float]
  label: str
  rates: dict[Grid, float]
  phase_rates: list[float]
  baseline: float
  title: str


def draw(
  plan: dict[str, Any], schedule: GridSchedule, path: epath.PathLike
) -> np.ndarray:
  """Draws a plan into a PNG file.

  Args:
    plan: Made by `plan.make_plan`.
    schedule: The schedule that it was made from.
    path: File to write.

  Returns:
    The picture, uint8 [H, W, 3].
  """
  with matplotlib.rc_context(_STYLE):
    return pictures.save(make_figure(plan, schedule), path)


@matplotlib.rc_context(_STYLE)
def make_figure(plan: dict[str, Any], schedule: GridSchedule) -> figure.Figure:
  """Returns what `draw` draws: six panels, from clip length to loader."""
  fig = figure.Figure(figsize=(11, 10), dpi=120, layout='constrained')
  fig.get_layout_engine().set(h_pad=0.06, hspace=0.02)
  axes = fig.subplots(6, 1, sharex=True, height_ratios=[3, 3, 3, 3, 2, 3])
  time_axis = _time_axis(plan)
  _draw_panels(axes, plan, schedule, time_axis)
  _decorate(fig, axes, plan, time_axis)
  return fig


def _time_axis(plan: dict[str, Any]) -> _TimeAxis:
  """Returns hours and clips per second, or else what is known of them."""
  grids, base = [Grid(**grid) for grid in plan['grids']], plan['baseline']
  clips = [phase['clips'] for phase in plan['phases']]
  if 'time' in plan:
    time = plan['time']
    spent, per_clip, base_spent, unit, scale = (
      time['phase_hours'],
      [s / 3600 / g.batch for g, s in zip(grids, time['step_s'], strict=True)],
      time['baseline_hours'],
      1 / 3600,
      1.0,
    )
    label = (
      f'hours of training steps: {time["hours"]:.3g} (the baseline has '
      f'{base_spent:.3g}, {base_spent / time["hours"]:.2f} x as many)'
    )
    title = 'second'
  else:
    spent, per_clip, base_spent, unit, scale = (
      [phase['gmacs'] for phase in plan['phases']],
      plan['gmacs_per_clip'],
      base['gmacs'],
      base['gmacs'] / base['clips'],
      100 / plan['total_gmacs'],
    )
    label = (
      'share of multiply-adds done in % (time, at a constant rate): '
      f'{plan["speedup"]["macs"]:.2f} x fewer in all than the baseline'
    )
    title = 'multiply-add, relative to the baseline'
  return _TimeAxis(
    edges=[scale * t for t in itertools.accumulate(spent, initial=0.0)],
    label=label,
    rates={g: unit / cost for g, cost in zip(grids, per_clip, strict=True)},
    phase_rates=[unit * n / t for n, t in zip(clips, spent, strict=True)],
    baseline=unit * base['clips'] / base_spent,
    title=f'what the loader must deliver: clips per {title} (thick: mean of '
    'the phase)',
  )


def _draw_panels(
  axes: Any, plan: dict[str, Any], schedule: GridSchedule, time_axis: _TimeAxis
) -> None:
  frames, crop, batch, lr, groups, loader = axes
  phases, full = plan['phases'], plan['baseline']['grid']
  side = lambda grid: min(grid['H'], grid['W'])
  colours = _shape_colours(plan)
  for i, (phase, left, right) in enumerate(
    zip(phases, time_axis.edges, time_axis.edges[1:], strict=False)
  ):
    colour = colours[_shape_name(phase, plan)]
    cycle = phase['cycle']
    # A grid that a short phase never reaches needs no clips.
    used = [g for g in (Grid(**g) for g in cycle) if g in time_axis.rates]
    for axis, (*short, last) in (
      (frames, [grid['T'] for grid in cycle]),
      (crop, [side(grid) for grid in cycle]),
      (batch, [grid['batch'] for grid in cycle]),
      (groups, phase['bn_groups_cycle']),
      (loader, [*(time_axis.rates[g] for g in used), time_axis.phase_rates[i]]),
    ):
      # Thin lines for a short cycle, a thick one for its base grid.
      axis.hlines(short, left, right, color=colour, lw=1.1, alpha=0.75)
      axis.hlines(last, left, right, color=colour, lw=3.2)
    done = np.arange(500) / 500
    steps = schedule.start_step(i) + (done * phase['steps']).astype(int)
    lr.plot(
      left + (right - left) * done,
      [schedule.lr(int(step)) for step in steps],
      color=colour,
      lw=2.4,
      solid_capstyle='butt',
    )
  for axis, value in (
    (frames, full['T']),
    (crop, side(full)),
    (batch, full['batch']),
    (groups, phases[-1]['bn_groups']),
    (loader, time_axis.baseline),
  ):
    axis.axhline(value, **_BASELINE, zorder=0)
  for axis in (batch, groups, loader):
    _log2_axis(axis)
  # Zeros have no logarithm: a short run may have nothing else listed.
  if rates := [rate for rate in plan['lr']['values'] if rate > 0]:
    lr.set_yscale('log')
    # A cosine ends at 0; five decades are enough to see it fall.
    highest = max(rates)
    lr.set_ylim(max(min(rates) / 2, highest * 1e-5), highest * 2)
  lr.yaxis.set_major_formatter('{x:g}')
  sides = sorted({side(grid) for phase in phases for grid in phase['cycle']})
  frames.set_ylim(0, None)
  lengths = {grid['T'] for phase in phases for grid in phase['cycle']}
  frames.set_yticks(sorted(lengths))
  crop.set_ylim(0, max(sides) * 1.12)
  crop.set_yticks(sides)


def _decorate(
  fig: figure.Figure, axes: Any, plan: dict[str, Any], time_axis: _TimeAxis
) -> None:
  titles = (
    'frames per clip',
    'crop: short side in pixels',
    'clips per step',
    'learning rate',
    'batch-norm groups'
    + ('' if plan['has_batch_norm'] else ' (the network has no batch norm)'),
    time_axis.title,
  )
  edges, phases = time_axis.edges, plan['phases']
  cuts = [
    edge
    for edge, (one, next_one) in zip(
      edges[1:], itertools.pairwise(phases), strict=False
    )
    if one['lr_stage'] != next_one['lr_stage']
  ]
  for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title, loc='left', fontsize=9, color=_INK, pad=4)
    axis.tick_params(length=3)
    axis.set_xlim(0, edges[-1])
    for cut in cuts:
      axis.axvline(cut, color='#d8d8d8', lw=0.9, zorder=0)
  axes[-1].set_xlabel(time_axis.label)
  axes[-1].xaxis.set_major_locator(ticker.MaxNLocator(11))
  _epoch_axis(axes[0], plan, edges)

  fig.suptitle(
    f'{plan["data"]}, {plan["model"]}, grid.mode={plan["mode"]}: '
    f'{plan["speedup"]["steps"]:.2f} x fewer steps, '
    f'{len(plan["grids"])} grids, {len(plan["phases"])} phases',
    fontsize=12,
    x=0.01,
    ha='left',
    color=_INK,
  )
  entries = {
    name: {'color': colour, 'lw': 3.2}
    for name, colour in _shape_colours(plan).items()
  }
  kinds = {'weights' in p for p in phases if len(p['cycle']) > 1}
  if kinds:
    names = {False: 'short cycle', True: 'random grids'}
    name = ', '.join(names[kind] for kind in sorted(kinds))
    entries[name] = {'color': _INK, 'lw': 1.1}
  entries['baseline'] = _BASELINE
  fig.legend(
    handles=[lines.Line2D([], [], label=n, **e) for n, e in entries.items()],
    loc='outside lower left',
    ncols=len(entries),
    frameon=False,
    handlelength=1.8,
  )


def _epoch_axis(axis: Axes, plan: dict[str, Any], edges: list[float]) -> None:
  """Writes the epoch above every phase that ends far enough from the last."""
  top = axis.secondary_xaxis('top')
  ticks, labels = [], []
  for edge, phase in zip(edges[1:], plan['phases'], strict=True):
    if not ticks or edge - ticks[-1] > 0.025 * edges[-1]:
      ticks.append(edge)
      labels.append(f'{phase["end_epoch"]:.3g}')
  top.set_xticks([0, *ticks], ['epoch 0', *labels])
  top.tick_params(length=3, labelsize=8)
  top.spines['top'].set_visible(False)


def _log2_axis(axis: Axes) -> None:
  axis.set_yscale('log', base=2)
  axis.yaxis.set_major_locator(ticker.LogLocator(base=2, numticks=12))
  axis.yaxis.set_major_formatter('{x:g}')
  low, high = axis.get_ylim()
  axis.set_ylim(min(low, 0.8 * high / 2), high * 1.1)


def _shape_name(phase: dict[str, Any], plan: dict[str, Any]) -> str:
  return plan_text.shape_text(phase['base'], plan['baseline']['grid'])


def _shape_colours(plan: dict[str, Any]) -> dict[str, str]:
  names = dict.fromkeys(_shape_name(phase, plan) for phase in plan['phases'])
  return dict(zip(names, itertools.cycle(_COLOURS), strict=False))
