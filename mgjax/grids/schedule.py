"""From a step to the grid, the clips and the learning rate of that step.

Everything here is a pure function of the step: a run resumes from a step and
nothing else, and a plan made before the launch is exact. Plain Python: no JAX,
no files and no settings (`make.make_schedule` makes schedules from numbers).

Training uses one endless shuffled stream of clips. A step takes the next
`batch` clips, whatever the epoch they belong to, so no clip is dropped where
an epoch or a phase ends.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Grid(NamedTuple):
  """Shape of one step: T frames of H x W pixels, `batch` clips in all.

  `batch` counts the clips over all devices of all hosts.
  """

  T: int
  H: int
  W: int
  batch: int

  def __str__(self) -> str:
    return f'{self.T}x{self.H}x{self.W} b{self.batch}'


def describe(grid: Grid, full: Grid) -> str:
  """Names a grid as the paper does: '2B x 16 x 224²', '2B x 16 x 224x320'."""
  factor = grid.batch / full.batch
  size = f'{grid.H}²' if grid.H == grid.W else f'{grid.H}x{grid.W}'
  return f'{factor:g}B x {grid.T} x {size}'


@dataclasses.dataclass(frozen=True)
class Phase:
  """Consecutive steps that share one short cycle.

  Attributes:
    cycle: The i-th step of the phase has the grid `cycle[i % len(cycle)]`. The
      last one is the base grid.
    end_step: First step after the phase.
    end_epoch: Epochs used when the phase ends, from the start of the run.
    lr_stage: Number of the interval between learning-rate decays (or of the
      rung) to which the phase belongs.
    lr_scale: Factor on the learning rate: batch of the base grid / batch of
      the full grid, or 1.
    stride_frames: Least and greatest frame stride; a clip draws one of them.
    jitter_px: For each grid of the cycle, the least and greatest short side
      to which a video is resized before it is cropped.
    bn_groups: For each grid of the cycle, the number of equal groups of clips
      that batch norm normalises apart.
  """

  cycle: tuple[Grid, ...]
  end_step: int
  end_epoch: int | float
  lr_stage: int
  lr_scale: float
  stride_frames: tuple[int, int]
  jitter_px: tuple[tuple[int, int], ...]
  bn_groups: tuple[int, ...]

  @property
  def base(self) -> Grid:
    """The grid of the long cycle, without the short cycle's enlarged steps."""
    return self.cycle[-1]

  @property
  def clips_per_cycle(self) -> int:
    return sum(grid.batch for grid in self.cycle)

  def clips_in(self, num_steps: int) -> int:
    """Clips used by the first `num_steps` steps of the phase."""
    cycles, rest = divmod(num_steps, len(self.cycle))
    part = sum(grid.batch for grid in self.cycle[:rest])
    return cycles * self.clips_per_cycle + part

  def steps_for(self, num_clips: int) -> int:
    """Fewest steps of the phase that use at least `num_clips` clips."""
    if num_clips <= 0:
      return 0
    cycles, rest = divmod(num_clips, self.clips_per_cycle)
    used = itertools.accumulate((grid.batch for grid in self.cycle), initial=0)
    return cycles * len(self.cycle) + bisect.bisect_left(list(used), rest)


@dataclasses.dataclass(frozen=True)
class GridSchedule:
  """Maps a step to its grid, its place in the stream and its learning rate.

  Attributes:
    phases: In order; at least one, each of at least one step.
    num_train: Clips in an epoch.
    lr_at_epoch: Learning rate after so many epochs of the run.
  """

  phases: tuple[Phase, ...]
  num_train: int
  lr_at_epoch: Callable[[float], float] = dataclasses.field(
    compare=False, repr=False
  )

  @functools.cached_property
  def _end_steps(self) -> tuple[int, ...]:
    return tuple(phase.end_step for phase in self.phases)

  @functools.cached_property
  def _start_clips(self) -> tuple[int, ...]:
    """Clips used before each phase, and after the last one."""
    starts = (0, *self._end_steps)
    clips = (
      phase.clips_in(phase.end_step - start)
      for phase, start in zip(self.phases, starts, strict=False)
    )
    return tuple(itertools.accumulate(clips, initial=0))

  @property
  def total_steps(self) -> int:
    return self.phases[-1].end_step

  @property
  def total_epochs(self) -> int | float:
    """Planned epochs; the last step may overshoot by less than its batch."""
    return self.phases[-1].end_epoch

  @property
  def total_clips(self) -> int:
    return self._start_clips[-1]

  @functools.cached_property
  def grids(self) -> tuple[Grid, ...]:
    """Distinct grids in the order in which steps first need them."""
    return tuple(self.first_uses(0))

  def first_uses(self, first_step: int) -> dict[Grid, int]:
    """Returns the grids that are still needed, in order of first use.

    Args:
      first_step: Steps done; 0: all grids of the schedule.

    Returns:
      For each grid of a step in [first_step, total_steps), the first such step.
    """
    uses = {}
    start = 0
    for phase in self.phases:
      for i, grid in enumerate(phase.cycle):
        # The first step at or after first_step that has this grid. A phase of
        # one or two steps never reaches the end of its cycle.
        step = start + i
        if step < first_step:
          step += -(-(first_step - step) // len(phase.cycle)) * len(phase.cycle)
        if step < phase.end_step:
          uses[grid] = min(step, uses.get(grid, step))
      start = phase.end_step
    return dict(sorted(uses.items(), key=lambda item: item[1]))

  def __call__(self, step: int) -> Grid:
    """Returns the grid of a step in [0, total_steps)."""
    return self.phase(step).cycle[self.cycle_index(step)]

  def phase_index(self, step: int) -> int:
    """Returns the position in `phases` of the phase that holds the step.

    Raises:
      ValueError: If the step is outside [0, total_steps).
    """
    if not 0 <= step < self.total_steps:
      raise ValueError(
        f'Step {step} is outside the schedule: its steps are 0 to '
        f'{self.total_steps - 1}.'
      )
    return bisect.bisect_right(self._end_steps, step)

  def phase(self, step: int) -> Phase:
    """Returns the phase that holds a step in [0, total_steps)."""
    return self.phases[self.phase_index(step)]

  def start_step(self, index: int) -> int:
    """Returns the first step of the phase with this index."""
    return self._end_steps[index - 1] if index else 0

  def cycle_index(self, step: int) -> int:
    """Returns the position of a step in the cycle of its phase."""
    index = self.phase_index(step)
    return (step - self.start_step(index)) % len(self.phases[index].cycle)

  def bn_groups(self, step: int) -> int:
    """Returns the batch-norm groups of a step in [0, total_steps)."""
    return self.phase(step).bn_groups[self.cycle_index(step)]

  def clips_before(self, step: int) -> int:
    """Returns the number of clips that all earlier steps have used.

    It is the number of the step's first clip in the stream. Exact, and as
    fast for the last step as for the first.

    Args:
      step: In [0, total_steps], that is, the end of the run included.

    Raises:
      ValueError: If the step is outside that range.
    """
    if step == self.total_steps:
      return self.total_clips
    index = self.phase_index(step)
    done = step - self.start_step(index)
    return self._start_clips[index] + self.phases[index].clips_in(done)

  def epoch(self, step: int) -> float:
    """Returns the epochs used before a step in [0, total_steps]."""
    return self.clips_before(step) / self.num_train

  def lr(self, step: int) -> float:
    """Returns the learning rate of a step in [0, total_steps]."""
    return float(self.lr_at_epoch(self.epoch(step)))


def lay_out(
  phases: Sequence[Phase],
  *,
  num_train: int,
  lr_at_epoch: Callable[[float], float],
) -> GridSchedule:
  """Gives phases that know their end epochs the steps that fill them.

  A phase ends with the first step after which the clips used reach
  `end_epoch * num_train`: every clip of every whole epoch is used, the
  overshoot is less than one batch, and the next phase starts from the real
  position. A phase that is left without a step does not appear.

  Args:
    phases: In order, of non-decreasing end epochs; end steps are ignored.
    num_train: Clips in an epoch, at least 1.
    lr_at_epoch: Learning rate after so many epochs of the run.

  Raises:
    ValueError: If there is no step at all.

  Differs: PySlowFast starts every epoch afresh, drops its last partial batch
    and restarts the short cycle; with large batches that loses clips.
  """
  laid_out = []
  step = clips = 0
  for phase in phases:
    # Sums of end epochs carry rounding errors of far less than a clip.
    target = math.ceil(round(phase.end_epoch * num_train, 6))
    num_steps = phase.steps_for(target - clips)
    if not num_steps:
      continue
    step += num_steps
    clips += phase.clips_in(num_steps)
    laid_out.append(dataclasses.replace(phase, end_step=step))
  if not laid_out:
    raise ValueError('The schedule has no steps: all its phases are empty.')
  return GridSchedule(
    tuple(laid_out), num_train=num_train, lr_at_epoch=lr_at_epoch
  )
