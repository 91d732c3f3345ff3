"""Six ways to vary the grid over a training: what their phases are.

None, short, long and both are those of the multigrid paper; ladder is
bLVNet-TAM's recipe; progressive is any list of growing grids. A mode decides
phases, without the steps that fill them, and the learning rate.

Source: Wu et al. 2020 (arXiv:1912.00998), section 3 and figure 2; the exact
arithmetic is that of PySlowFast 287ec00 (slowfast/utils/multigrid.py,
slowfast/datasets/multigrid_helper.py, slowfast/utils/lr_policy.py). Rounding
is Python's, half to even, of float64 expressions in the reference's order:
two of the published schedules depend on it.
"""

import dataclasses
import itertools
import types
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mgjax.errors import ConfigError
from mgjax.grids import learning_rate
from mgjax.grids.learning_rate import LrFunction, Real
from mgjax.grids.schedule import Grid, Phase

# The defaults of the papers.
LONG_FACTORS = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1), (1, 1))
SHORT_FACTORS = (0.5, 0.5**0.5)
LADDER = ((0.5, 50, 0.01, 'cosine'), (1, 25, 0.01, 'cosine'))
PROGRESSIVE = ((0.75, 1, 0.5), (0.25, 1, 1))


# The arguments of `make_schedule` by their names, and with them `full`, the
# baseline's grid, and `rate`, its learning rate.
Arguments = types.SimpleNamespace


class Plan(NamedTuple):
  """What a mode decides: phases without steps, and the learning rate."""

  phases: list[Phase]
  lr_at_epoch: LrFunction


def _phase(
  s: Arguments,
  cycle: tuple[Grid, ...],
  end_epoch: Real,
  *,
  lr_stage: int = 0,
  lr_scale: float = 1.0,
  strides: tuple[int, int] | None = None,
) -> Phase:
  """Returns a phase that lacks its end step and its batch-norm groups.

  Args:
    s: The arguments.
    cycle: As in `Phase`, and so are the others.
    end_epoch: See `Phase`.
    lr_stage: See `Phase`.
    lr_scale: See `Phase`.
    strides: Least and greatest frame stride; None: both the baseline's.
  """
  return Phase(
    cycle=cycle,
    end_step=0,
    end_epoch=end_epoch,
    lr_stage=lr_stage,
    lr_scale=lr_scale,
    stride_frames=strides or (s.stride_frames, s.stride_frames),
    jitter_px=tuple(_jitter_range(s, grid) for grid in cycle),
    bn_groups=(1,) * len(cycle),
  )


def _stride_range(s: Arguments, num_frames: int) -> tuple[int, int]:
  """Returns the frame strides of a phase with fewer frames.

  From the baseline's stride (a shorter span of the video) to the stride
  that restores its span. Clips draw one at random.

  Source: section 3.2 of the paper; PySlowFast datasets/utils.py.
  """
  return s.stride_frames, s.stride_frames * (s.full.T // num_frames)


def _jitter_range(s: Arguments, grid: Grid) -> tuple[int, int]:
  """Returns the range of resized short sides for a grid's crop.

  The least is scaled with the crop and the greatest is kept, so a small crop
  shows anything from the full grid's view to a detail of it.

  Source: PySlowFast 287ec00, slowfast/datasets/kinetics.py.
  """
  low, high = s.jitter_px
  short_side, full_side = min(grid.H, grid.W), min(s.full.H, s.full.W)
  return round(float(low) * short_side / full_side), high


def constant(s: Arguments) -> Plan:
  """The baseline itself: one grid from the first step to the last."""
  return Plan([_phase(s, (s.full,), s.epochs)], s.rate.over(s.epochs))


def short(s: Arguments) -> Plan:
  """The short cycle alone: one phase, learning rate not scaled.

  The decay epochs and the length are stretched and cut to whole epochs.
  """
  rate = s.rate
  end_epoch = int(s.epochs * s.epoch_factor)
  phase = _phase(s, _short_cycle(s, s.full), end_epoch)
  if rate.schedule == 'steps':
    steps = [int(epoch * s.epoch_factor) for epoch in rate.steps]
    policy = learning_rate.step_decay(rate.base_lr, steps, rate.gamma)
  else:
    policy = learning_rate.stretched(rate.over(s.epochs), s.epochs, end_epoch)
  return Plan([phase], policy)


class _Stretch(NamedTuple):
  """A part of a long cycle before its epochs are stretched."""

  lr_stage: int
  base: Grid
  batch_factor: int  # Clips of its base grid per clip of the full grid.
  epochs: Real


def long(s: Arguments) -> Plan:
  """The long cycle, with or without the short one.

  One long cycle fills each interval between decays of the learning rate, and
  the last interval is the fine-tuning phase on the full grid. Without
  `fine_tune`, the last interval is one more long cycle.

  Source: section 3.2 of the paper; PySlowFast multigrid.py, lines 110-193.
  Differs: the reference cannot run the long cycle alone (it indexes a short
    cycle that is not there), nor any schedule but steps.
  """
  edges = _intervals(s)
  parts = _long_cycle_parts(s, edges)
  by_steps = s.rate.schedule == 'steps'
  run_epochs = s.epochs * s.epoch_factor
  stretch = run_epochs / _sum(part.epochs for part in parts)
  ends: list[Real] = list(
    itertools.accumulate(part.epochs * stretch for part in parts)
  )
  if by_steps:
    ends = [round(end) for end in ends]  # The reference has whole epochs.
  else:
    ends[-1] = run_epochs  # The sum of the parts has a rounding error.

  phases = [
    _phase(
      s,
      _short_cycle(s, part.base),
      end,
      lr_stage=part.lr_stage,
      lr_scale=_lr_scale(s, part.batch_factor),
      strides=_stride_range(s, part.base.T),
    )
    for part, end in zip(parts, ends, strict=True)
  ]
  if by_steps:
    return Plan(phases, _decays_of_phases(s, phases))
  return Plan(phases, _scaled_rate(s, phases))


def ladder(s: Arguments) -> Plan:
  """Ever more frames, the learning rate restarted with each rung.

  Dense clips of fewer frames cover as much time as clips of the full grid:
  their frames lie further apart. The length of the baseline does not count.

  Source: Fan et al. 2019 (arXiv:1912.00869), section 4.1: 50 epochs at 8x2
    frames, then 25 epochs from those weights at 16x2, and so on.
  """
  phases, policies, end_epoch = [], [], 0
  for i, (t_factor, epochs, lr, schedule) in enumerate(s.ladder):
    grid = _resized(s.full, t_factor, 1, f'phase {i + 1}', 'ladder')
    stride = s.stride_frames
    if s.sampling == 'dense':
      stride = stride * s.full.T // grid.T
    end_epoch += epochs
    phases.append(
      _phase(s, (grid,), end_epoch, lr_stage=i, strides=(stride, stride))
    )
    rate = dataclasses.replace(
      s.rate, base_lr=lr, schedule=schedule, name=f'ladder[{i}]'
    )
    policies.append(rate.over(epochs))
  ends = [phase.end_epoch for phase in phases]
  return Plan(phases, learning_rate.one_after_another(policies, ends))


def progressive(s: Arguments) -> Plan:
  """Grids that grow over training, learning rate linear in the batch."""
  total_epochs = s.epochs * s.epoch_factor
  phases, share_done = [], 0.0
  for i, (share, t_factor, side) in enumerate(s.progressive, start=1):
    t, h, w, _ = _resized(s.full, t_factor, side, f'phase {i}', 'progressive')
    factor = _batch_factor(s.full, t, h, w)
    share_done += share
    phases.append(
      _phase(
        s,
        (Grid(t, h, w, factor * s.batch),),
        # The sum of the shares has a rounding error.
        total_epochs if i == len(s.progressive) else share_done * total_epochs,
        lr_stage=i - 1,
        lr_scale=_lr_scale(s, factor),
        strides=_stride_range(s, t),
      )
    )
  return Plan(phases, _scaled_rate(s, phases))


# By name; each gets the arguments of `make_schedule`, and `full` and `rate`.
PLANS: dict[str, Callable[[Arguments], Plan]] = {
  'none': constant,
  'short': short,
  'long': long,
  'both': long,
  'ladder': ladder,
  'progressive': progressive,
}


def _scaled_rate(s: Arguments, phases: Sequence[Phase]) -> LrFunction:
  """The baseline's rate over the run's epochs, times the scale of the phase."""
  policy = learning_rate.stretched(
    s.rate.over(s.epochs), s.epochs, phases[-1].end_epoch
  )
  return learning_rate.scaled(policy, phases)


# Parts of the long cycle.


def _intervals(s: Arguments) -> list[Real]:
  """Returns the baseline epochs at which long cycles start and end.

  The fine-tuning phase, where there is one, follows the last of them.
  """
  if s.rate.schedule == 'steps':
    edges = [0, *s.lr_steps]
  else:
    cycles = s.num_long_cycles
    edges = [s.epochs * i / (cycles + 1) for i in range(cycles + 1)]
  return edges if s.fine_tune else [*edges, s.epochs]


def _long_cycle_parts(s: Arguments, edges: Sequence[Real]) -> list[_Stretch]:
  """Returns the phases of all long cycles, with epochs of any common unit.

  Every shape of a long cycle gets the same number of steps, and so the epochs
  of its mean batch. The fine-tuning phase saves as large a part of its steps
  as the long cycles do of theirs.
  """
  full = s.full
  short_factors = s.short_factors if s.mode == 'both' else ()
  shapes = []  # Base grid, its batch factor and that of a mean step.
  for i, (t_factor, side) in enumerate(s.long_factors, start=1):
    t, h, w, _ = _resized(full, t_factor, side, f'phase {i}', 'long_factors')
    # Not rounded: the reference rounds these only when it cuts the crops.
    sizes = [(full.H * f, full.W * f) for f in short_factors] + [(h, w)]
    factors = [_batch_factor(full, t, *size) for size in sizes]
    grid = Grid(t, h, w, factors[-1] * full.batch)
    shapes.append((grid, factors[-1], sum(factors) / len(factors)))

  all_means = _sum(mean for *_, mean in shapes)
  parts, iterations = [], []
  for k, (start, end) in enumerate(itertools.pairwise(edges)):
    for grid, factor, mean in shapes:
      epochs = (end - start) * mean / all_means
      iterations.append(epochs / mean)
      parts.append(_Stretch(k, grid, factor, epochs))
  if s.fine_tune:
    saving = edges[-1] / _sum(iterations)
    grid, factor, mean = shapes[-1]
    epochs = (s.epochs - edges[-1]) / saving * mean
    parts.append(_Stretch(len(edges) - 1, grid, factor, epochs))
  return parts


def _decays_of_phases(s: Arguments, phases: Sequence[Phase]) -> LrFunction:
  """Returns 'steps' that decays where a long cycle ends."""
  ends = [phase.end_epoch for phase in phases]
  starts = [0, *ends[:-1]]
  scales = [s.lr_gamma**p.lr_stage * p.lr_scale for p in phases]
  if s.fine_tune:
    # As in the reference, the fine-tuning phase keeps the rate of the phase
    # before it for its first half.
    starts.append((ends[-2] + ends[-1]) // 2)
    scales.insert(-1, scales[-2])
  return learning_rate.piecewise(s.learning_rate, starts, scales)


def _sum(values: Iterable[Real]) -> Real:
  """Adds from left to right; `sum` compensates errors from Python 3.12 on."""
  *_, total = itertools.accumulate(values)
  return total


# Grids.


def _resized(
  full: Grid, t_factor: Real, side_factor: Real, where: str, name: str
) -> Grid:
  """Returns the full grid with fewer frames and shorter sides, same batch.

  Raises:
    ConfigError: If nothing is left of it. `where` is the phase and `name` the
      argument that has the factors.
  """
  t, h, w = (
    round(full.T * t_factor),
    round(full.H * side_factor),
    round(full.W * side_factor),
  )
  if min(t, h, w) < 1:
    raise ConfigError(
      f'{where}: the factors ({t_factor:g}, {side_factor:g}) of `{name}` leave '
      f'{t} frames of {h}x{w} pixels of the full {full.T} of '
      f'{full.H}x{full.W}; use larger factors.'
    )
  return Grid(t, h, w, full.batch)


def _batch_factor(full: Grid, t: int, h: Real, w: Real) -> int:
  """Returns how many times the full grid's batch costs the same at t x h x w.

  Source: section 3 of the paper: b t h w = B T H W.
  """
  return round(float(full.T * full.H * full.W) / (t * h * w))


def _lr_scale(s: Arguments, factor: int) -> float:
  """Returns what multiplies the learning rate for a batch that much larger.

  Source: the linear rule of Goyal et al. 2017 (arXiv:1706.02677).
  """
  return float(factor) if s.scale_lr else 1.0


def _short_cycle(s: Arguments, base: Grid) -> tuple[Grid, ...]:
  """Returns the grids that the steps of a phase take turns with.

  The crops are parts of the full grid's, not of the phase's: at 158 pixels
  of 224, half a side is 112 pixels and the next crop is the phase's own.

  Args:
    s: The arguments; with mode='long' there is no short cycle.
    base: Grid of the phase, which comes last.

  Source: figure 2d of the paper; PySlowFast multigrid_helper.py.
  """
  cycle = []
  for factor in s.short_factors if s.mode != 'long' else ():
    # The batch follows from the crop before it is rounded.
    ratio = (base.H / (factor * s.full.H)) * (base.W / (factor * s.full.W))
    # The crop is the same in every phase, so the first is the one to name.
    _, h, w, _ = _resized(s.full, 1, factor, 'phase 1', 'short_factors')
    cycle.append(Grid(base.T, h, w, base.batch * round(ratio)))
  return (*cycle, base)
