"""From a step to the grid, the clips and the learning rate of that step.

Everything here is a pure function of the step: a run resumes from a step and
nothing else, and a plan made before the launch is exact. That holds for random
grids, too: what a step draws is a function of (seed, step). No JAX, no files
and no settings (`make.make_schedule` makes schedules from numbers).

Training uses one endless shuffled stream of clips. A step takes the next
`batch` clips, whatever the epoch they belong to, so no clip is dropped where
an epoch or a phase ends.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


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


# Second word of the key of the draws: no other random numbers have it.
_DRAW = 0x67726964


@functools.lru_cache(maxsize=64)
def draws(
  seed: int, start_step: int, num_steps: int, weights: tuple[float, ...]
) -> np.ndarray:
  """Which of some grids each of some steps draws.

  Args:
    seed: Of the run, in [0, 2^32).
    start_step: First step.
    num_steps: How many.
    weights: Probabilities, which sum to 1.

  Returns:
    Places in `weights`, int64 [num_steps], not to be written to. A step's draw
    depends on (seed, step) and the weights alone.
  """
  # Philox numbers its blocks of four words: block `step` is that step's.
  generator = np.random.Philox(key=np.array([seed, _DRAW], np.uint64))
  generator.advance(start_step)
  words = generator.random_raw(4 * num_steps)[::4]
  uniforms = (words >> np.uint64(11)) * 2.0**-53
  edges = np.cumsum(weights)[:-1]  # The last would be 1, but for rounding.
  found = np.searchsorted(edges, uniforms, side='right')
  found.setflags(write=False)
  return found


@dataclasses.dataclass(frozen=True)
class Phase:
  """Consecutive steps that share one short cycle, or one set of random grids.

  Attributes:
    cycle: The i-th step of the phase has the grid `cycle[i % len(cycle)]`; or
      with `weights` one that it draws. The last one is the base grid.
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
    weights: Probability of each grid; (): the steps take turns.
    seed: Of the draws.
    start_step: First step of the phase.
    augment: (name, value) of the strengths of augmentation that differ from
      the run's.
    name: What errors call the phase; '': its place among the phases.
  """

  cycle: tuple[Grid, ...]
  end_step: int
  end_epoch: int | float
  lr_stage: int
  lr_scale: float
  stride_frames: tuple[int, int]
  jitter_px: tuple[tuple[int, int], ...]
  bn_groups: tuple[int, ...]
  weights: tuple[float, ...] = ()
  seed: int = 0
  start_step: int = 0
  augment: tuple[tuple[str, float], ...] = ()
  name: str = dataclasses.field(default='', compare=False)

  @property
  def base(self) -> Grid:
    """The grid of the long cycle, without the short cycle's enlarged steps."""
    return self.cycle[-1]

  def draws(self, num_steps: int) -> np.ndarray:
    """Places in `cycle` of the grids of the first steps, int64 [num_steps]."""
    if self.weights:
      return draws(self.seed, self.start_step, num_steps, self.weights)
    return np.arange(num_steps) % len(self.cycle)

  @property
  def shares(self) -> tuple[float, ...]:
    """Share of the steps, in the long run, that have each grid of `cycle`."""
    return self.weights or (1 / len(self.cycle),) * len(self.cycle)

  @property
  def clips_per_cycle(self) -> int:
    return sum(grid.batch for grid in self.cycle)

  def clips_in(self, num_steps: int) -> int:
    """Clips used by the first `num_steps` steps of the phase."""
    counts = self.steps_of(num_steps)
    return sum(
      grid.batch * count for grid, count in zip(self.cycle, counts, strict=True)
    )

  def steps_of(self, num_steps: int) -> list[int]:
    """How many of the first `num_steps` steps have each grid of `cycle`."""
    if self.weights:
      drawn = self.draws(num_steps)
      return np.bincount(drawn, minlength=len(self.cycle)).tolist()
    cycles, rest = divmod(num_steps, len(self.cycle))
    return [cycles + (i < rest) for i in range(len(self.cycle))]

  def steps_for(self, num_clips: int) -> int:
    """Fewest steps of the phase that use at least `num_clips` clips."""
    if num_clips <= 0:
      return 0
    if self.weights:
      # As many as there could be, were all of the smallest batch.
      most = -(-num_clips // min(grid.batch for grid in self.cycle))
      used = self.clips_used(most)
      return int(np.searchsorted(used, num_clips))
    cycles, rest = divmod(num_clips, self.clips_per_cycle)
    used = itertools.accumulate((grid.batch for grid in self.cycle), initial=0)
    return cycles * len(self.cycle) + bisect.bisect_left(list(used), rest)

  def clips_used(self, num_steps: int) -> np.ndarray:
    """Clips used before each of the first steps and after the last of them.

    Returns:
      int64 [num_steps + 1].
    """
    batches = np.array([grid.batch for grid in self.cycle], np.int64)
    return np.concatenate([[0], np.cumsum(batches[self.draws(num_steps)])])


@dataclasses.dataclass(frozen=True)
class GridSchedule:
  """Maps a step to its grid, its place in the stream and its learning rate.

  Attributes:
    phases: In order; at least one, each of at least one step.
    num_train: Clips in an epoch.
    lr_at_epoch: Learning rate after so many epochs of the run.
    table: The rows that the schedule was made from, in numbers (rows.py).
    baseline_epochs: Epochs of the full grid alone that it is compared with.
  """

  phases: tuple[Phase, ...]
  num_train: int
  lr_at_epoch: Callable[[float], float] = dataclasses.field(
    compare=False, repr=False
  )
  table: tuple[Mapping[str, Any], ...] = dataclasses.field(
    default=(), compare=False, repr=False
  )
  baseline_epochs: int | float = dataclasses.field(default=0, compare=False)

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

  @functools.cached_property
  def _drawn(self) -> tuple[tuple[np.ndarray, np.ndarray] | None, ...]:
    """Of a phase with random grids, what its steps draw and the clips used."""
    # Kept: made anew for every step, a draw would cost as much as all of them.
    return tuple(
      (phase.draws(num_steps), phase.clips_used(num_steps))
      if phase.weights
      else None
      for phase, num_steps in zip(self.phases, self.num_steps, strict=True)
    )

  @functools.cached_property
  def strengths(self) -> tuple[str, ...]:
    """Names of the strengths of augmentation that some phase sets."""
    return tuple(sorted({name for p in self.phases for name, _ in p.augment}))

  @functools.cached_property
  def num_steps(self) -> tuple[int, ...]:
    """Steps of each phase."""
    starts = (0, *self._end_steps)
    return tuple(
      end - start for start, end in zip(starts, self._end_steps, strict=False)
    )

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
    uses: dict[Grid, int] = {}
    start = 0
    for phase, drawn in zip(self.phases, self._drawn, strict=True):
      for i, grid in enumerate(phase.cycle):
        step: int | None = start + i
        if drawn:
          step = _first(drawn[0], i, first_step - start, start)
        elif step < first_step:
          # The first step at or after first_step that has this grid.
          step += -(-(first_step - step) // len(phase.cycle)) * len(phase.cycle)
        # A phase of one or two steps never reaches the end of its cycle.
        if step is not None and step < phase.end_step:
          uses[grid] = min(step, uses.get(grid, step))
      start = phase.end_step
    return dict(sorted(uses.items(), key=lambda item: item[1]))

  def __call__(self, step: int) -> Grid:
    """Returns the grid of a step in [0, total_steps)."""
    phase, position = self.place(step)
    return phase.cycle[position]

  def place(self, step: int) -> tuple[Phase, int]:
    """Returns the phase of a step, and the place of its grid in the cycle.

    Raises:
      ValueError: If the step is outside [0, total_steps).
    """
    index = self.phase_index(step)
    phase, done = self.phases[index], step - self.start_step(index)
    drawn = self._drawn[index]
    if drawn:
      return phase, int(drawn[0][done])
    return phase, done % len(phase.cycle)

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
    """Returns the place of a step's grid in the cycle of its phase."""
    return self.place(step)[1]

  def bn_groups(self, step: int) -> int:
    """Returns the batch-norm groups of a step in [0, total_steps)."""
    phase, position = self.place(step)
    return phase.bn_groups[position]

  def group_clips(self, grid: Grid) -> int:
    """Consecutive clips that are whole groups in every step of this grid.

    The same grid may have two numbers of groups: as the base of a phase, and
    in the short cycle of another.

    Args:
      grid: Of the schedule; of another one, it is the whole batch.
    """
    sizes = [
      grid.batch // groups
      for phase in self.phases
      for other, groups in zip(phase.cycle, phase.bn_groups, strict=True)
      if other == grid
    ]
    return math.lcm(*sizes) if sizes else grid.batch

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
    drawn = self._drawn[index]
    used = int(drawn[1][done]) if drawn else self.phases[index].clips_in(done)
    return self._start_clips[index] + used

  def epoch(self, step: int) -> float:
    """Returns the epochs used before a step in [0, total_steps]."""
    return self.clips_before(step) / self.num_train

  def lr(self, step: int) -> float:
    """Returns the learning rate of a step in [0, total_steps]."""
    return float(self.lr_at_epoch(self.epoch(step)))


def _first(drawn: np.ndarray, place: int, first: int, start: int) -> int | None:
  """The first step, from `first` of the phase on, that draws a place."""
  first = max(first, 0)
  found = np.flatnonzero(drawn[first:] == place)
  return start + first + int(found[0]) if found.size else None


def lay_out(
  phases: Sequence[Phase],
  *,
  num_train: int,
  lr_at_epoch: Callable[[float], float],
) -> GridSchedule:
  """Makes a schedule of phases that end at epochs, and counts their steps.

  A phase ends with the first step after which the clips used reach
  `end_epoch * num_train`: every clip of every whole epoch is used, the
  overshoot is less than one batch, and the next phase starts from the real
  position. A phase that is left without a step does not appear.

  Args:
    phases: In order, of non-decreasing end epochs; their steps are ignored.
    num_train: Clips in an epoch, at least 1.
    lr_at_epoch: Learning rate after so many epochs of the run.

  Raises:
    ValueError: If there is no step at all.

  Differs: PySlowFast starts every epoch afresh, drops its last partial batch
    and restarts the short cycle; with large batches that loses clips.
  """
  ends = [{'end_epoch': phase.end_epoch} for phase in phases]
  return GridSchedule(
    without_empty(fill(phases, ends, num_train)),
    num_train=num_train,
    lr_at_epoch=lr_at_epoch,
  )


def fill(
  phases: Sequence[Phase], rows: Sequence[Mapping[str, Any]], num_train: int
) -> list[Phase]:
  """Gives the phases of rows their steps and end epochs, as `lay_out` does.

  Args:
    phases: Of the rows.
    rows: In numbers. Epochs are counted from the planned end of the row before.
    num_train: Clips in an epoch, at least 1.

  Returns:
    As many phases; some may have no step.
  """
  filled = []
  step = clips = 0
  end_epoch: int | float = 0
  for phase, row in zip(phases, rows, strict=True):
    phase = dataclasses.replace(phase, start_step=step)
    if 'steps' in row:
      num_steps = row['steps']
      end_epoch = (clips + phase.clips_in(num_steps)) / num_train
    else:
      end_epoch = row.get('end_epoch', end_epoch + row.get('epochs', 0))
      num_steps = _steps_until(phase, end_epoch, clips, num_train)
    step += num_steps
    clips += phase.clips_in(num_steps)
    filled.append(
      dataclasses.replace(phase, end_step=step, end_epoch=end_epoch)
    )
  return filled


def _steps_until(
  phase: Phase, end_epoch: int | float, clips: int, num_train: int
) -> int:
  """Steps of a phase until an epoch of the run.

  Args:
    phase: It starts where `clips` clips of the run are used.
    end_epoch: See `lay_out`.
    clips: Clips used before it.
    num_train: Clips in an epoch.
  """
  # Sums of end epochs carry rounding errors of far less than a clip.
  target = math.ceil(round(end_epoch * num_train, 6))
  return phase.steps_for(target - clips)


def without_empty(phases: Sequence[Phase]) -> tuple[Phase, ...]:
  """The phases that have a step.

  Raises:
    ValueError: None has.
  """
  found = tuple(p for p in phases if p.end_step > p.start_step)
  if not found:
    raise ValueError('The schedule has no steps: all its phases are empty.')
  return found
