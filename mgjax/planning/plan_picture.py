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


class _Clock(NamedTuple):
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
  clock = _clock(plan)
  _draw_panels(axes, plan, schedule, clock)
  _decorate(fig, axes, plan, clock)
  return fig


def _clock(plan: dict[str, Any]) -> _Clock:
  """Returns hours and clips per second, or else what is known of them."""
  grids, base = [Grid(**grid) for grid in plan['grids']], plan['baseline']
  clips = [phase['clips'] for phase in plan['phases']]
  if 'time' in plan:
    time = plan['time']
    hours, base_hours = time['phase_hours'], time['baseline_hours']
    rates = [
      grid.batch / s for grid, s in zip(grids, time['step_s'], strict=True)
    ]
    return _Clock(
      edges=[0.0, *itertools.accumulate(hours)],
      label=f'hours of training steps: {time["hours"]:.3g} (the baseline has '
      f'{base_hours:.3g}, {base_hours / time["hours"]:.2f} x as many)',
      rates=dict(zip(grids, rates, strict=True)),
      phase_rates=[n / h / 3600 for n, h in zip(clips, hours, strict=True)],
      baseline=base['clips'] / base_hours / 3600,
      title='what the loader must deliver: clips per second (thick: mean of '
      'the phase)',
    )
  gmacs = [phase['gmacs'] for phase in plan['phases']]
  full_cost, total = base['gmacs'] / base['clips'], plan['total_gmacs']
  rates = [full_cost / cost for cost in plan['gmacs_per_clip']]
  return _Clock(
    edges=[
      100 * done / total for done in itertools.accumulate(gmacs, initial=0)
    ],
    label='share of multiply-adds done in % (time, at a constant rate): '
    f'{plan["speedup"]["macs"]:.2f} x fewer in all than the baseline',
    rates=dict(zip(grids, rates, strict=True)),
    phase_rates=[
      n / cost * full_cost for n, cost in zip(clips, gmacs, strict=True)
    ],
    baseline=1.0,
    title='what the loader must deliver: clips per multiply-add, relative to '
    'the baseline (thick: mean of the phase)',
  )


def _draw_panels(
  axes: Any, plan: dict[str, Any], schedule: GridSchedule, clock: _Clock
) -> None:
  frames, crop, batch, lr, groups, loader = axes
  full, full_groups = plan['baseline']['grid'], plan['phases'][-1]['bn_groups']
  colours = _shape_colours(plan)
  for i, (phase, (left, right)) in enumerate(
    zip(plan['phases'], itertools.pairwise(clock.edges), strict=True)
  ):
    colour = colours[_shape_name(phase, plan)]
    cycle = phase['cycle']

    def span(axis, values, left=left, right=right, colour=colour):
      """Thin lines for a short cycle, a thick one for its base grid."""
      *short, last = values
      axis.hlines(short, left, right, color=colour, lw=1.1, alpha=0.75)
      axis.hlines(last, left, right, color=colour, lw=3.2)

    span(frames, [phase['base']['T']])
    span(crop, [min(g['H'], g['W']) for g in cycle])
    span(batch, [g['batch'] for g in cycle])
    span(groups, phase['bn_groups_cycle'])
    # A grid that a short phase never reaches needs no clips.
    reached = [g for g in (Grid(**g) for g in cycle) if g in clock.rates]
    span(loader, [*(clock.rates[g] for g in reached), clock.phase_rates[i]])

    first_step = schedule.start_step(i)
    points = [first_step + k * phase['steps'] // 500 for k in range(500)]
    xs = [
      left + (right - left) * (p - first_step) / phase['steps'] for p in points
    ]
    lr.plot(
      xs,
      [schedule.lr(p) for p in points],
      color=colour,
      lw=2.4,
      solid_capstyle='butt',
    )

  for axis, value in (
    (frames, full['T']),
    (crop, min(full['H'], full['W'])),
    (batch, full['batch']),
    (groups, full_groups),
    (loader, clock.baseline),
  ):
    axis.axhline(value, color=_FAINT, lw=0.9, ls=(0, (4, 3)), zorder=0)
  for axis in (batch, groups, loader):
    _log2_axis(axis)
  lr.set_yscale('log')
  # A cosine ends at 0; five decades are enough to see it fall.
  highest = max(plan['lr']['values'])
  lowest = min(rate for rate in plan['lr']['values'] if rate > 0)
  lr.set_ylim(max(lowest / 2, highest * 1e-5), highest * 2)
  lr.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
  frames.set_ylim(0, None)
  frames.set_yticks(sorted({p['base']['T'] for p in plan['phases']}))
  sides = {min(g['H'], g['W']) for p in plan['phases'] for g in p['cycle']}
  crop.set_ylim(0, max(sides) * 1.12)
  crop.set_yticks(sorted(sides))


def _decorate(
  fig: figure.Figure, axes: Any, plan: dict[str, Any], clock: _Clock
) -> None:
  titles = (
    'frames per clip',
    'crop: short side in pixels',
    'clips per step',
    'learning rate',
    'batch-norm groups',
    clock.title,
  )
  edges = clock.edges
  stages = [phase['lr_stage'] for phase in plan['phases']]
  cuts = [
    edge
    for edge, (a, b) in zip(
      edges[1:-1], itertools.pairwise(stages), strict=True
    )
    if a != b
  ]
  for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title, loc='left', fontsize=9, color=_INK, pad=4)
    axis.tick_params(length=3)
    axis.set_xlim(0, edges[-1])
    for cut in cuts:
      axis.axvline(cut, color='#d8d8d8', lw=0.9, zorder=0)
  axes[-1].set_xlabel(clock.label)
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
  handles = [
    lines.Line2D([], [], color=colour, lw=3.2, label=name)
    for name, colour in _shape_colours(plan).items()
  ]
  if any(len(phase['cycle']) > 1 for phase in plan['phases']):
    handles.append(
      lines.Line2D([], [], color=_INK, lw=1.1, label='short cycle')
    )
  handles.append(
    lines.Line2D([], [], color=_FAINT, lw=0.9, ls=(0, (4, 3)), label='baseline')
  )
  fig.legend(
    handles=handles,
    loc='outside lower left',
    ncols=len(handles),
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
  axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:g}'))
  low, high = axis.get_ylim()
  axis.set_ylim(min(low, 0.8 * high / 2), high * 1.1)


def _shape_name(phase: dict[str, Any], plan: dict[str, Any]) -> str:
  return plan_text.shape_text(phase['base'], plan['baseline']['grid'])


def _shape_colours(plan: dict[str, Any]) -> dict[str, str]:
  names = dict.fromkeys(_shape_name(phase, plan) for phase in plan['phases'])
  return dict(zip(names, itertools.cycle(_COLOURS), strict=False))
