"""Accuracy over time: both arms of the protocol, in several lengths.

python -m experiments.tables.front
python -m experiments.runs.launch --table=front --seeds=3 --run=local --jobs=2
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import math
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import intervals, tabulate
from experiments.runs import judged, planned, settings
from experiments.runs.run import Run
from experiments.tables import by_seed, decisions
from mgjax import cli
from mgjax.setup import clip_costs, grids

# Of the front: a point of `both`, and one of `none` that it is compared with.
_PAIRS = (
  ('both-3', 'none-1.5'),
  ('both-3', 'none-1'),
  ('both-2', 'none-1'),
  ('both-1.5', 'none-0.75'),
  # Equal epochs.
  ('both-1.5', 'none-1.5'),
  ('both-1', 'none-1'),
  ('both-0.75', 'none-0.75'),
  ('both-0.75', 'none-0.25'),
)
_COLORS = {'none': '#555555', 'both': '#c8501e'}  # By grid.mode.


def table_of(name: str, runs: Sequence[Run]) -> tabulate.Table:
  """Accuracy and seconds of runs, beside those of their baseline.

  Args:
    name: Of the table.
    runs: In the order of the rows; the baseline of each is among them.
  """
  found = by_seed.all_of(runs)
  rows = []
  for run in runs:
    if run.name not in found:
      continue
    ours = found[run.name]
    base = found.get(run.baseline) if run.name != run.baseline else None
    ratio = intervals.of_paired_ratio
    rows.append(
      (
        *by_seed.accuracies(run, ours, base),
        by_seed.mean_text(ours.train_s, 0),
        by_seed.mean_text(ours.cpu_s, 0),
        ', '.join(sorted(set(ours.cache))),
        by_seed.paired(
          ratio,
          by_seed.of_one_machine(base.train_s, base, ours),
          by_seed.of_one_machine(ours.train_s, base, ours),
          2,
        )
        if base
        else '',
        f'{base.gmacs / ours.gmacs:.2f}' if base else '1.00',
        ours.code,
        f'{run.name}-seed*',
      )
    )
  return tabulate.Table(
    name,
    (
      *by_seed.ACCURACIES,
      'training, s [measured]',
      'CPU, s [measured]',
      'programs',
      'times fewer seconds [measured]',
      'times fewer MACs [computed]',
      'code',
      'record',
    ),
    rows,
  )


def _warm_name(run: Run) -> str:
  """The run of the front that a cold one repeats."""
  return run.name.replace('front_cold/', 'front/')


def cold_table() -> tabulate.Table:
  """What it adds to each arm to compile its programs."""
  found = by_seed.all_of([*judged.FRONT, *judged.FRONT_COLD])
  rows = []
  for run in judged.FRONT_COLD:
    warm = found.get(_warm_name(run))
    cold = found.get(run.name)
    if not warm or not cold:
      continue
    more = (
      by_seed.paired(
        intervals.of_paired_difference,
        by_seed.of_one_machine(ours, warm, cold),
        by_seed.of_one_machine(theirs, warm, cold),
        0,
      )
      for ours, theirs in (
        (cold.train_s, warm.train_s),
        (cold.wall_s, warm.wall_s),
        (cold.cpu_s, warm.cpu_s),
      )
    )
    rows.append(
      (
        run.row,
        str(len(cold.train_s)),
        by_seed.mean_text(warm.train_s, 0),
        by_seed.mean_text(cold.train_s, 0),
        *more,
        ', '.join(sorted(set(cold.cache))),
        cold.code,
        f'{run.name}-seed*',
      )
    )
  return tabulate.Table(
    'front_cold',
    (
      'run',
      'seeds',
      'training, warm, s [measured]',
      'training, cold, s [measured]',
      'cold minus warm, s [measured]',
      'the same, start-up included, s [measured]',
      'the same, CPU s [measured]',
      'programs',
      'code',
      'record',
    ),
    rows,
  )


def _cold_adds() -> dict[str, float] | None:
  """Seconds that cold programs add to a training, by arm, on average.

  Returns:
    None until both arms have records.
  """
  found = by_seed.all_of([*judged.FRONT, *judged.FRONT_COLD])
  adds = {}
  for run in judged.FRONT_COLD:
    pair = found.get(run.name), found.get(_warm_name(run))
    if not all(pair):
      return None
    cold, warm = (statistics.mean(one.train_s.values()) for one in pair)
    adds[run.grid] = cold - warm
  return adds


def _with(
  adds: Mapping[str, float], arm: str, found: by_seed.Seeds
) -> by_seed.Seeds:
  """Records of an arm whose trainings take so many seconds more."""
  return found._replace(
    train_s={seed: s + adds[arm] for seed, s in found.train_s.items()}
  )


def pairs_table() -> tabulate.Table:
  """Points of `both` minus points of `none`, seed by seed."""
  runs = {run.name: run for run in judged.FRONT}
  adds, rows = _cold_adds(), []
  for ours, theirs in _PAIRS:
    point, baseline = runs[f'front/{ours}'], runs[f'front/{theirs}']
    both, none = by_seed.read(point), by_seed.read(baseline)
    if both and none:
      pair = decisions.Compared(none, both, point, None)
      cold = ''
      if adds:
        cold = pair._replace(
          none=_with(adds, 'none', none), both=_with(adds, 'both', both)
        ).times_fewer_seconds()
      rows.append(
        (
          point.row,
          baseline.row,
          pair.difference(),
          pair.times_fewer_seconds(),
          cold,
          ', '.join(dict.fromkeys([both.code, none.code])),
        )
      )
  return tabulate.Table(
    'front_pairs',
    (
      'run',
      'minus',
      'top-1 on test, points [measured]',
      'times fewer seconds [measured]',
      'the same, cold [measured]',
      'code',
    ),
    rows,
  )


def _after_the_same_seconds(
  point: by_seed.Seeds, baselines: Sequence[by_seed.Seeds]
) -> str:
  """Test accuracy minus that of the baseline, interpolated seed by seed.

  Args:
    point: Of `both`.
    baselines: Of `none`, from the shortest.

  Returns:
    The mean with its interval; '' where a seed is shorter or longer than all
    baselines.
  """
  differences = []
  for seed, accuracy in point.test.items():
    known = [b for b in baselines if seed in b.test and seed in b.train_s]
    if len(known) < len(baselines) or seed not in point.train_s:
      return ''
    seconds = [b.train_s[seed] for b in known]
    at = point.train_s[seed]
    if not seconds[0] <= at <= seconds[-1]:
      return ''
    theirs = np.interp(
      math.log(at), np.log(seconds), [b.test[seed] for b in known]
    )
    differences.append(accuracy - float(theirs))
  if len(differences) < 2:
    return ''
  return by_seed.text_of(intervals.of_mean(differences), 1)


def same_seconds_table() -> tabulate.Table:
  """Points of `both` beside the baseline after the same seconds."""
  found = by_seed.all_of(judged.FRONT)
  adds = _cold_adds()
  baselines = [
    found[r.name] for r in judged.FRONT if r.grid == 'none' and r.name in found
  ]
  rows = []
  for run in judged.FRONT:
    if run.grid != 'both' or run.name not in found or len(baselines) < 2:
      continue
    point = found[run.name]
    warm, cold = _after_the_same_seconds(point, baselines), ''
    if adds:
      cold = _after_the_same_seconds(
        _with(adds, 'both', point), [_with(adds, 'none', b) for b in baselines]
      )
    if warm or cold:
      rows.append((run.row, warm, cold, point.code))
  return tabulate.Table(
    'front_same_seconds',
    (
      'run',
      'test, minus the baseline after the same seconds, warm [measured]',
      'the same, cold [measured]',
      'code',
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  return [
    table_of('front', judged.FRONT),
    pairs_table(),
    same_seconds_table(),
    cold_table(),
    table_of('front_80', judged.FRONT_80),
  ]


def picture(path: pathlib.Path) -> None:
  """Sizes of the clips over a training; top-1 on test against its seconds."""

  def draw(panels: Any) -> None:
    _draw_sizes(panels[0])
    _draw_front(panels[1])

  tabulate.save_picture(draw, path, panels=2, beside=True)


def _draw_sizes(axes: Any) -> None:
  """Sizes of the clips, over the baseline's multiply-adds.

  Of the baseline, and of multigrid in 1.5 times its epochs.
  """
  runs = {run.name: run for run in judged.FRONT}
  baseline, multigrid = runs['front/none-1'], runs['front/both-1.5']
  total = planned.training_gmacs(baseline)
  for run in (baseline, multigrid):
    config = cli.read_config(run.config, run.overrides)
    schedule, full = settings.schedule(config), grids.full_grid(config)
    gmacs = clip_costs.gmacs_per_clip(config, schedule.grids)
    x, start_step = 0.0, 0
    for phase in schedule.phases:
      num_steps = phase.end_step - start_step
      costs = [3 * grid.batch * gmacs[grid] for grid in phase.cycle]
      end = x + 100 * num_steps * sum(costs) / len(costs) / total
      for grid in dict.fromkeys(phase.cycle):
        size = 100 * math.prod(grid[:3]) / math.prod(full[:3])
        axes.hlines(size, x, end, color=_COLORS[run.grid], linewidth=5)
      x, start_step = end, phase.end_step
  axes.set_xlim(0, 101)
  axes.set_ylim(0, 108)
  axes.set_xlabel("multiply-adds, % of the baseline's")
  axes.set_ylabel('size of a clip, % of the full one')
  axes.text(65, 95, 'baseline', color=_COLORS['none'], va='top')
  axes.text(35, 55, 'multigrid', color=_COLORS['both'])


def _draw_front(axes: Any) -> None:
  """Top-1 on test against seconds of training, both arms, with intervals."""
  for arm in judged.ARMS:
    runs = [run for run in judged.FRONT if run.grid == arm]
    points = [s for s in by_seed.all_of(runs).values() if s.test and s.train_s]
    if not points:
      continue
    axes.errorbar(
      [statistics.mean(point.train_s.values()) for point in points],
      [statistics.mean(point.test.values()) for point in points],
      yerr=[_half(point.test) for point in points],
      xerr=[_half(point.train_s) for point in points],
      marker='o',
      markersize=4,
      capsize=2,
      color=_COLORS[arm],
      label={'none': 'baseline', 'both': 'multigrid'}[arm],
    )
  axes.set_xlim(0, None)
  axes.set_ylim(None, 101)  # Half a marker more.
  axes.set_xlabel('training on a CPU core, s')
  axes.set_ylabel('top-1 on test, %')
  if axes.has_data():
    axes.legend(frameon=False, loc='lower right')


def _half(values: Mapping[int, float]) -> float:
  """Half of the interval of a mean; 0 of a single value."""
  if len(values) < 2:
    return 0.0
  interval = intervals.of_mean(list(values.values()))
  return interval.high - interval.estimate


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
