"""Wall time of a run, from its schedule and what its programs take.

Pure functions. Waits for data and the start-up (imports, opening the data, the
first weights) are not in it: they are no property of the schedule.
"""

import collections
import dataclasses
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from mgjax.grids import Grid, GridSchedule, Phase
from mgjax.planning.measured import Key, Network, Seconds, load_share
from mgjax.progress import duration

# What a breakdown consists of; their sum is the total.
PARTS = ('steps', 'compilation', 'statistics', 'evaluation', 'checkpoints')

# Another mode is recommended where it takes so much less.
_WORTH = 0.9


@dataclasses.dataclass(frozen=True)
class Work:
  """What a run does.

  Attributes:
    schedule: Its steps.
    programs: Those that it needs, in the order of their first use, in which
      they are compiled.
    eval_steps: Steps done at each evaluation.
    eval_grid: Grid of the evaluation.
    statistics_batches: Batches of the batch-norm statistics before each.
    evaluation_batches: Batches of an evaluation; 0 where they are not known.
    checkpoint_every_steps: Steps between checkpoints; 0: the seconds count.
    checkpoint_every_s: Seconds between checkpoints.
  """

  schedule: GridSchedule
  programs: Sequence[Key]
  eval_steps: Collection[int]
  eval_grid: Grid
  statistics_batches: int
  evaluation_batches: int
  checkpoint_every_steps: int
  checkpoint_every_s: float


@dataclasses.dataclass(frozen=True)
class Costs:
  """Seconds of all programs of some runs.

  Attributes:
    run_s: Of a run of each program.
    compile_s: Until it can be used: of its compilation, or of its loading
      where the cache on disk has it.
    cold_s: Of its compilation.
    checkpoint_s: Hold-up by a checkpoint; None: unknown.
    inferred: Programs whose run_s was not measured.
    inferred_compile: Those whose compile_s was not.
    on_disk: Those that the cache on disk has.
    unknown: Parts of which nothing is known; they count as 0.
  """

  run_s: Mapping[Key, float]
  compile_s: Mapping[Key, float]
  cold_s: Mapping[Key, float]
  checkpoint_s: float | None
  inferred: frozenset[Key]
  inferred_compile: frozenset[Key]
  on_disk: frozenset[Key]
  unknown: tuple[str, ...] = ()


def baseline(
  full: Grid, *, steps: int, epochs: int | float, num_train: int
) -> GridSchedule:
  """The schedule of the full grid alone; its learning rates mean nothing.

  Args:
    full: The full grid.
    steps: Its steps.
    epochs: Its epochs.
    num_train: Videos in an epoch.
  """
  phase = Phase(
    cycle=(full,),
    end_step=steps,
    end_epoch=epochs,
    lr_stage=0,
    lr_scale=1.0,
    stride_frames=(1, 1),
    jitter_px=((full.H, full.H),),
    bn_groups=(1,),
  )
  return GridSchedule((phase,), num_train=num_train, lr_at_epoch=lambda _: 0.0)


def costs(
  measured: Network,
  programs: Collection[Key],
  gmacs_per_clip: Callable[[Collection[Grid]], Mapping[Grid, float]],
  *,
  built_as: str,
  other_load_share: float | None = None,
  step_s: Mapping[Grid, float] | None = None,
) -> Costs | None:
  """Completes what was measured.

  The runs of a program that was not measured take as long as its
  multiply-adds at the rate of those of its kind that were; where none of its
  kind was, at that of all. Its compilation takes their median.

  Args:
    measured: What is known.
    programs: What is needed.
    gmacs_per_clip: From grids to 1e9 multiply-adds of a clip's forward pass;
      asked only where something was not measured.
    built_as: Hash of the settings of these programs: see `Seconds.built_as`.
    other_load_share: `load_share` of other networks, for programs that were
      compiled and never loaded where no program of this one was; None: their
      loading counts like their compilation.
    step_s: Seconds of a training step by grid, in place of those measured.

  Returns:
    The costs; None where not a single run of a program was measured.
  """
  known = {k: s.run_s for k, s in measured.programs.items() if s.run_s}
  known |= {('train', grid): s for grid, s in (step_s or {}).items()}
  if not known:
    return None
  run_s = {key: known[key] for key in programs if key in known}
  inferred = frozenset(key for key in programs if key not in run_s)
  if inferred:
    run_s |= _inferred_runs(known, inferred, gmacs_per_clip)
  seconds = {key: measured.programs.get(key, Seconds()) for key in programs}
  cold_s, unknown = _cold(measured, seconds)
  on_disk = frozenset(
    key for key, s in seconds.items() if s.built_as == built_as
  )
  share = load_share([measured]) or other_load_share or 1.0
  compile_s = {
    key: (seconds[key].load_s or min(share, 1.0) * cold)
    if key in on_disk
    else cold
    for key, cold in cold_s.items()
  }
  return Costs(
    run_s=run_s,
    compile_s=compile_s,
    cold_s=cold_s,
    checkpoint_s=measured.checkpoint_s,
    inferred=inferred,
    inferred_compile=frozenset(
      key
      for key, s in seconds.items()
      if not (s.load_s if key in on_disk else s.compile_s)
    ),
    on_disk=on_disk,
    unknown=unknown + (() if measured.checkpoint_s else ('checkpoints',)),
  )


def _inferred_runs(
  known: Mapping[Key, float],
  wanted: Collection[Key],
  gmacs_per_clip: Callable[[Collection[Grid]], Mapping[Grid, float]],
) -> dict[Key, float]:
  """Seconds of programs that were not measured, from those that were."""
  grids = {grid for _, grid in (*known, *wanted)}
  gmacs = gmacs_per_clip(grids)

  def work(key: Key) -> float:
    kind, grid = key
    # A backward pass counts as two forward passes.
    return (3 if kind == 'train' else 1) * grid.batch * gmacs[grid]

  rates = collections.defaultdict(list)
  for key, seconds in known.items():
    rates[key[0]].append(work(key) / seconds)
    rates['all'].append(work(key) / seconds)
  rate = {kind: statistics.median(found) for kind, found in rates.items()}
  return {key: work(key) / rate.get(key[0], rate['all']) for key in wanted}


def _cold(
  measured: Network, seconds: Mapping[Key, Seconds]
) -> tuple[dict[Key, float], tuple[str, ...]]:
  """Seconds of compilations, and what is not known of them."""
  known = collections.defaultdict(list)
  for (kind, _), s in measured.programs.items():
    if s.compile_s:
      known[kind].append(s.compile_s)
      known['all'].append(s.compile_s)
  if not known:
    # All came from the cache on disk. Others take longer, nobody knows how
    # much.
    loads = _median(s.load_s for s in measured.programs.values() if s.load_s)
    return dict.fromkeys(seconds, loads or 0.0), ('compilation',)
  return {
    key: s.compile_s or statistics.median(known.get(key[0], known['all']))
    for key, s in seconds.items()
  }, ()


def _median(values: Iterator[float]) -> float | None:
  found = list(values)
  return statistics.median(found) if found else None


def breakdown(
  work: Work, costs: Costs, *, overlaps: bool, cold: bool = False
) -> dict[str, float]:
  """Seconds of a run by what it waits for.

  Args:
    work: What it does.
    costs: What that takes.
    overlaps: Whether programs are compiled beside the steps at no cost to
      them, as on accelerators: then only what the run waits for counts. On a
      CPU both share its cores, and so their times add up.
    cold: Whether the cache on disk counts as empty.

  Returns:
    'steps_s', 'compilation_s' and so on, of `PARTS`, and 'total_s'.
  """
  compile_s = costs.cold_s if cold else costs.compile_s
  spent = dict.fromkeys(PARTS, 0.0)
  ready: dict[Key, float] = {}  # When each compilation is done.
  end = 0.0
  for key in work.programs:
    end += compile_s[key]
    ready[key] = end
  if not overlaps:
    spent['compilation'] = end

  def wait_for(key: Key) -> None:
    # The start and everything so far are on one clock.
    if overlaps:
      waits = max(0.0, ready[key] - sum(spent.values()))
      spent['compilation'] += waits

  def save(times: int) -> None:
    spent['checkpoints'] += times * (costs.checkpoint_s or 0.0)

  position, since_save = 0, 0.0
  for step, key in _events(work):
    steps_s = _steps_s(work.schedule, position, step, costs)
    spent['steps'] += steps_s
    since_save += steps_s
    num_saves = _saves(work, position, step, since_save)
    save(num_saves)
    since_save -= num_saves * work.checkpoint_every_s
    position = step
    if key is not None:
      wait_for(key)
      continue
    if work.statistics_batches:
      base = ('stats', work.schedule.phase(step - 1).base)
      wait_for(base)
      spent['statistics'] += work.statistics_batches * costs.run_s[base]
    save(1)
    since_save = 0.0
    scored = ('eval', work.eval_grid)
    wait_for(scored)
    spent['evaluation'] += work.evaluation_batches * costs.run_s[scored]
  found = {f'{name}_s': seconds for name, seconds in spent.items()}
  return found | {'total_s': sum(spent.values())}


def _events(work: Work) -> list[tuple[int, Key | None]]:
  """Steps done, and the program that is needed then; None: an evaluation."""
  events: list[tuple[int, int, Key | None]] = [
    (step, 1, ('train', grid))
    for grid, step in work.schedule.first_uses(0).items()
  ]
  # An evaluation comes before the step of its number.
  events += [(step, 0, None) for step in work.eval_steps]
  return [(step, key) for step, _, key in sorted(events, key=lambda e: e[:2])]


def _steps_s(
  schedule: GridSchedule, start: int, end: int, costs: Costs
) -> float:
  """Seconds of the steps in [start, end)."""
  total = 0.0
  for index, phase in enumerate(schedule.phases):
    first = schedule.start_step(index)
    if first >= end or phase.end_step <= start:
      continue
    before = phase.steps_of(max(start - first, 0))
    until = phase.steps_of(min(end, phase.end_step) - first)
    for grid, few, many in zip(phase.cycle, before, until, strict=True):
      if many > few:  # A short phase may not reach a grid, which has no costs.
        total += (many - few) * costs.run_s['train', grid]
  return total


def _saves(work: Work, start: int, end: int, since_s: float) -> int:
  """Checkpoints after steps in (start, end], but for those of evaluations."""
  every = work.checkpoint_every_steps
  if every:
    at_end = end % every == 0 and end in work.eval_steps and end > start
    return end // every - start // every - at_end
  return int(since_s // work.checkpoint_every_s)


def advice(mode: str, modes: Mapping[str, Mapping[str, float]]) -> str:
  """One line that names faster modes; '' where none is a tenth faster.

  Args:
    mode: That of the run.
    modes: Breakdowns by mode, that of the run among them.
  """
  if mode not in modes:
    return ''
  total = lambda name: modes[name]['total_s']
  faster = sorted(
    (m for m in modes if total(m) <= _WORTH * total(mode)), key=total
  )
  if not faster:
    return ''
  own = f'grid={mode}: {duration(total(mode))}'
  if compiling := modes[mode]['compilation_s']:
    own += f' ({duration(compiling)} of it compiling)'
  return (
    f'grid={faster[0]}: {duration(total(faster[0]))}, {own}: '
    f'use {" or ".join(faster)}'
  )


def as_json(
  works: Mapping[str, Work],
  costs: Costs,
  *,
  mode: str,
  measured: Network,
) -> dict[str, Any]:
  """Returns what a plan says of wall time; all times are in seconds.

  Args:
    works: Of 'run' and 'baseline', and by mode that of each that can be made.
    costs: Of all their programs.
    mode: That of the run.
    measured: Where the costs come from.
  """
  overlaps = measured.where.device != 'cpu'
  run = works['run']
  found = {
    name: breakdown(work, costs, overlaps=overlaps)
    | {
      'cold_compilation_s': breakdown(
        work, costs, overlaps=overlaps, cold=True
      )['compilation_s']
    }
    for name, work in works.items()
  }
  modes = {
    name: found[name] | {'steps': work.schedule.total_steps}
    for name, work in works.items()
    if name not in ('run', 'baseline')
  }
  unknown = list(costs.unknown)
  if not run.evaluation_batches:
    unknown.append('evaluation')
  needed = dict.fromkeys((*run.programs, *works['baseline'].programs))
  return {
    'device': measured.where.device,
    'num_devices': measured.where.num_devices,
    'measured': measured.date,
    'run': found['run'],
    'baseline': found['baseline'],
    'modes': modes,
    'advice': advice(mode, modes),
    'unknown': unknown,
    'programs': [
      {
        'kind': kind,
        **grid._asdict(),
        'run_s': costs.run_s[kind, grid],
        'run_is_measured': (kind, grid) not in costs.inferred,
        'compile_s': costs.compile_s[kind, grid],
        'compile_is_measured': (kind, grid) not in costs.inferred_compile,
        'on_disk': (kind, grid) in costs.on_disk,
      }
      for kind, grid in needed
    ],
  }
