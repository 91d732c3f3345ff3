"""Builds the schedule that a config describes.

Six ways to vary the grid (`config.grid.mode`): none, short, long and both are
those of the multigrid paper; ladder is bLVNet-TAM's recipe; progressive is any
list of growing grids.

Source: Wu et al. 2020 (arXiv:1912.00998), section 3 and figure 2; the exact
arithmetic is that of PySlowFast 287ec00 (slowfast/utils/multigrid.py,
slowfast/datasets/multigrid_helper.py, slowfast/utils/lr_policy.py). Rounding
is Python's, half to even, of float64 expressions in the reference's order:
two of the published schedules depend on it.
"""

import ast
import bisect
import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import ml_collections

from mgjax.cli import ConfigError
from mgjax.grids import schedule as schedule_lib
from mgjax.grids.schedule import Grid, GridSchedule, Phase

MODES = ('none', 'short', 'long', 'both', 'ladder', 'progressive')

# Five halvings leave one pixel of 16; below, the deep layers see padding only.
MIN_CROP_PX = 16

# Configs write whole numbers without a point.
Real = int | float

LrFunction = Callable[[Real], float]


class _Plan(NamedTuple):
  """What a mode decides: phases without steps, and the learning rate."""

  phases: list[Phase]
  lr_at_epoch: LrFunction


def make_schedule(
  config: ml_collections.ConfigDict, num_train: int, *, num_devices: int = 1
) -> GridSchedule:
  """Returns the schedule of a training run.

  Args:
    config: See mgjax/config/fields.py; `data`, `optim`, `grid`, `norm` and the
      name of the model are read.
    num_train: Videos in an epoch.
    num_devices: Devices of all hosts, which share every batch equally.

  Raises:
    ConfigError: If the settings do not make a schedule that can be trained.
      The message names the phase or the field.
  """
  if num_train < 1:
    raise ConfigError(
      f'data.num_train is {num_train}; an epoch needs at least 1 video.'
    )
  _check_common(config)
  plan = _BUILDERS[config.grid.mode](config)
  # A phase that rounding leaves without an epoch (Something-Something V2 has
  # one) is not part of the run, so it need not be sound either.
  starts = (0, *(phase.end_epoch for phase in plan.phases))
  phases = [
    phase
    for start, phase in zip(starts, plan.phases, strict=False)
    if phase.end_epoch > start
  ]
  if not phases:
    raise ConfigError(
      f'grid.mode={config.grid.mode!r} with optim.total_epochs='
      f'{config.optim.total_epochs} and grid.epoch_factor='
      f'{config.grid.epoch_factor} leaves no epoch to train; raise one.'
    )
  total_epochs = phases[-1].end_epoch
  if config.optim.warmup_epochs > total_epochs:
    raise ConfigError(
      f'optim.warmup_epochs is {config.optim.warmup_epochs:g}, longer than '
      f'the run of {total_epochs:g} epochs; use at most that.'
    )
  phases = [
    _with_checked_groups(phase, f'phase {i} of {len(phases)}', config)
    for i, phase in enumerate(phases, start=1)
  ]
  for i, phase in enumerate(phases, start=1):
    _check_phase(phase, f'phase {i} of {len(phases)}', config, num_devices)
  schedule = schedule_lib.lay_out(
    phases,
    num_train=num_train,
    lr_at_epoch=_for_batch(
      _with_warmup(
        plan.lr_at_epoch,
        warmup_epochs=config.optim.warmup_epochs,
        warmup_lr=config.optim.warmup_lr,
      ),
      config,
    ),
  )
  _check_rates(schedule, config)
  return schedule


def full_grid(config: ml_collections.ConfigDict) -> Grid:
  """Returns the grid of the baseline: the one that evaluation uses too."""
  data = config.data
  width = data.crop_px if data.crop_width_px is None else data.crop_width_px
  return Grid(data.num_frames, data.crop_px, width, data.batch_size)


def describe(grid: Grid, full: Grid) -> str:
  """Names a grid as the paper does: '2B x 16 x 224²', '2B x 16 x 224x320'."""
  factor = grid.batch / full.batch
  size = f'{grid.H}²' if grid.H == grid.W else f'{grid.H}x{grid.W}'
  return f'{factor:g}B x {grid.T} x {size}'


# The modes.


def _constant(config: ml_collections.ConfigDict) -> _Plan:
  """The baseline: one grid from the first step to the last."""
  epochs = config.optim.total_epochs
  phase = _make_phase(config, cycle=(full_grid(config),), end_epoch=epochs)
  return _Plan([phase], _lr_function(config.optim, total_epochs=epochs))


def _short(config: ml_collections.ConfigDict) -> _Plan:
  """The short cycle alone: one phase, learning rate not scaled.

  Decay epochs and the length are stretched by `grid.epoch_factor` and cut to
  whole epochs.
  """
  optim, factor = config.optim, config.grid.epoch_factor
  end_epoch = int(optim.total_epochs * factor)
  cycle = _short_cycle(full_grid(config), config)
  phase = _make_phase(config, cycle=cycle, end_epoch=end_epoch)
  if optim.schedule == 'steps':
    steps = [int(epoch * factor) for epoch in optim.lr_steps]
    return _Plan([phase], _step_decay(optim.base_lr, steps, optim.gamma))
  policy = _lr_function(optim, total_epochs=optim.total_epochs)
  return _Plan([phase], _stretched(policy, optim.total_epochs, end_epoch))


def _long(config: ml_collections.ConfigDict) -> _Plan:
  """The long cycle, with or without the short one.

  Every shape of a long cycle gets the same number of steps; one long cycle
  fills each interval between decays of the learning rate, and the last
  interval is the fine-tuning phase on the full grid, which saves as large a
  part of its steps as the others do. Without `grid.fine_tune`, the last
  interval is one more long cycle.

  Source: section 3.2 of the paper; PySlowFast multigrid.py, lines 110-193.
  Differs: the reference cannot run the long cycle alone (it indexes a short
    cycle that is not there), nor any schedule but steps.
  """
  optim, grid = config.optim, config.grid
  full = full_grid(config)
  grids = [
    _resized(full, t, side, where=f'phase {i}')
    for i, (t, side) in enumerate(grid.long_factors, start=1)
  ]
  use_short = grid.mode == 'both'
  shapes = []  # Base grid and mean batch factor of the shape's short cycle.
  for t, h, w, _ in grids:
    sizes = [(h, w)]
    if use_short:
      # Not rounded: the reference rounds these only when it cuts the crops.
      short = [(full.H * f, full.W * f) for f in grid.short_factors]
      sizes = [*short, *sizes]
    factors = [_batch_factor(full, t, *size) for size in sizes]
    base = Grid(t, h, w, factors[-1] * full.batch)
    shapes.append((base, factors[-1], sum(factors) / len(factors)))

  by_steps = optim.schedule == 'steps'
  edges = _intervals(config)
  all_means = _sum(mean for _, _, mean in shapes)
  entries = []  # Interval, base grid, batch factor, epochs before stretching.
  iterations = []
  for k, (start, end) in enumerate(itertools.pairwise(edges)):
    for base, factor, mean in shapes:
      epochs = (end - start) * mean / all_means
      iterations.append(epochs / mean)
      entries.append((k, base, factor, epochs))
  saving = edges[-1] / _sum(iterations)
  base, factor, mean = shapes[-1]
  if grid.fine_tune:
    fine_tune = (optim.total_epochs - edges[-1]) / saving * mean
    entries.append((len(edges) - 1, base, factor, fine_tune))

  stretch = (
    optim.total_epochs * grid.epoch_factor / _sum(e[-1] for e in entries)
  )
  ends: list[Real] = list(
    itertools.accumulate(epochs * stretch for *_, epochs in entries)
  )
  if by_steps:
    ends = [round(end) for end in ends]
  else:
    # The sum of the parts, without its rounding error.
    ends[-1] = optim.total_epochs * grid.epoch_factor

  phases = [
    _make_phase(
      config,
      cycle=_short_cycle(base, config) if use_short else (base,),
      end_epoch=end,
      lr_stage=k,
      lr_scale=_lr_scale(factor, config),
      strides=_stride_range(config, base.T),
    )
    for (k, base, factor, _), end in zip(entries, ends, strict=True)
  ]
  if by_steps:
    lr_starts = [0, *ends[:-1]]
    scales = [optim.gamma**p.lr_stage * p.lr_scale for p in phases]
    if grid.fine_tune:
      # It keeps the rate of the phase before it for its first half.
      lr_starts.append((ends[-2] + ends[-1]) // 2)
      scales.insert(-1, scales[-2])
    return _Plan(phases, _piecewise(optim.base_lr, lr_starts, scales))
  policy = _lr_function(optim, total_epochs=optim.total_epochs)
  policy = _stretched(policy, optim.total_epochs, ends[-1])
  return _Plan(phases, _scaled(policy, phases))


def _ladder(config: ml_collections.ConfigDict) -> _Plan:
  """Ever more frames, the learning rate restarted with each rung.

  Source: Fan et al. 2019 (arXiv:1912.00869), section 4.1: 50 epochs at 8x2
    frames, then 25 epochs from those weights at 16x2, and so on.
  """
  full, stride = full_grid(config), config.data.stride_frames
  phases, policies, end_epoch = [], [], 0
  for i, (t_factor, epochs, lr, schedule) in enumerate(config.grid.ladder):
    grid = _resized(full, t_factor, 1, where=f'phase {i + 1}')
    # A rung's clips cover the same time: fewer frames lie further apart.
    rung_stride = stride
    if config.data.sampling == 'dense':
      rung_stride = stride * full.T // grid.T
    end_epoch += epochs
    phases.append(
      _make_phase(
        config,
        cycle=(grid,),
        end_epoch=end_epoch,
        lr_stage=i,
        strides=(rung_stride, rung_stride),
      )
    )
    policies.append(
      _lr_function(
        config.optim,
        total_epochs=epochs,
        base_lr=lr,
        schedule=schedule,
        field=f'grid.ladder[{i}]',
      )
    )
  starts = [0, *(phase.end_epoch for phase in phases[:-1])]

  def lr_at_epoch(epoch):
    i = bisect.bisect_right(starts, epoch) - 1
    return policies[i](epoch - starts[i])

  return _Plan(phases, lr_at_epoch)


def _progressive(config: ml_collections.ConfigDict) -> _Plan:
  """Grids that grow over training, learning rate linear in the batch."""
  optim = config.optim
  full = full_grid(config)
  total_epochs = optim.total_epochs * config.grid.epoch_factor
  phases, share_done = [], 0.0
  for i, (share, t_factor, side) in enumerate(config.grid.progressive):
    t, h, w, _ = _resized(full, t_factor, side, where=f'phase {i + 1}')
    factor = _batch_factor(full, t, h, w)
    share_done += share
    last = i + 1 == len(config.grid.progressive)
    phases.append(
      _make_phase(
        config,
        cycle=(Grid(t, h, w, factor * full.batch),),
        end_epoch=total_epochs if last else share_done * total_epochs,
        lr_stage=i,
        lr_scale=_lr_scale(factor, config),
        strides=_stride_range(config, t),
      )
    )
  policy = _lr_function(optim, total_epochs=optim.total_epochs)
  policy = _stretched(policy, optim.total_epochs, total_epochs)
  return _Plan(phases, _scaled(policy, phases))


_BUILDERS = {
  'none': _constant,
  'short': _short,
  'long': _long,
  'both': _long,
  'ladder': _ladder,
  'progressive': _progressive,
}


# Grids.


def _resized(
  full: Grid, t_factor: Real, side_factor: Real, *, where: str
) -> Grid:
  """Returns the full grid with fewer frames and shorter sides, same batch.

  Raises:
    ConfigError: If nothing is left of it. `where` names the phase.
  """
  t, h, w = (
    round(full.T * t_factor),
    round(full.H * side_factor),
    round(full.W * side_factor),
  )
  _require(
    min(t, h, w) >= 1,
    f'{where}: the factors ({t_factor:g}, {side_factor:g}) in grid leave {t} '
    f'frames of {h}x{w} pixels of the full {full.T} of {full.H}x{full.W}; use '
    'larger factors.',
  )
  return Grid(t, h, w, full.batch)


def _batch_factor(full: Grid, t: int, h: Real, w: Real) -> int:
  """Returns how many times the full grid's batch costs the same at t x h x w.

  Source: section 3 of the paper: b t h w = B T H W.
  """
  return round(float(full.T * full.H * full.W) / (t * h * w))


def _lr_scale(factor: int, config: ml_collections.ConfigDict) -> float:
  """Returns what multiplies the learning rate for a batch that much larger.

  Source: the linear rule of Goyal et al. 2017 (arXiv:1706.02677).
  """
  return float(factor) if config.grid.scale_lr else 1.0


def _short_cycle(
  base: Grid, config: ml_collections.ConfigDict
) -> tuple[Grid, ...]:
  """Returns the grids that the steps of a phase take turns with.

  The crops are parts of the full grid's, not of the phase's: at 158 pixels
  of 224, half a side is 112 pixels and the next crop is the phase's own.

  Source: figure 2d of the paper; PySlowFast multigrid_helper.py.
  """
  full = full_grid(config)
  cycle = []
  for factor in config.grid.short_factors:
    # The batch follows from the crop before it is rounded.
    ratio = (base.H / (factor * full.H)) * (base.W / (factor * full.W))
    # The crop is the same in every phase, so the first is the one to name.
    _, h, w, _ = _resized(full, 1, factor, where='phase 1')
    cycle.append(Grid(base.T, h, w, base.batch * round(ratio)))
  return (*cycle, base)


def _stride_range(
  config: ml_collections.ConfigDict, num_frames: int
) -> tuple[int, int]:
  """Returns the frame strides of a phase with fewer frames.

  From the full grid's stride (a shorter span) to the stride that restores its
  span. Clips draw one at random.

  Source: section 3.2 of the paper; PySlowFast datasets/utils.py.
  """
  stride = config.data.stride_frames
  return stride, stride * (config.data.num_frames // num_frames)


def _jitter_range(
  config: ml_collections.ConfigDict, grid: Grid
) -> tuple[int, int]:
  """Returns the range of resized short sides for a grid's crop.

  The least is scaled with the crop and the greatest is kept, so a small crop
  shows anything from the full grid's view to a detail of it.

  Source: PySlowFast 287ec00, slowfast/datasets/kinetics.py.
  """
  full = full_grid(config)
  low, high = config.data.jitter_px
  short_side, full_side = min(grid.H, grid.W), min(full.H, full.W)
  return round(float(low) * short_side / full_side), high


def _make_phase(
  config: ml_collections.ConfigDict,
  *,
  cycle: tuple[Grid, ...],
  end_epoch: Real,
  lr_stage: int = 0,
  lr_scale: float = 1.0,
  strides: tuple[int, int] | None = None,
) -> Phase:
  """Returns a phase that lacks its end step and its batch-norm groups."""
  stride = config.data.stride_frames
  return Phase(
    cycle=cycle,
    end_step=0,
    end_epoch=end_epoch,
    lr_stage=lr_stage,
    lr_scale=lr_scale,
    stride_frames=(stride, stride) if strides is None else strides,
    jitter_px=tuple(_jitter_range(config, grid) for grid in cycle),
    bn_groups=(1,) * len(cycle),
  )


def _intervals(config: ml_collections.ConfigDict) -> list[Real]:
  """Returns the baseline epochs at which long cycles start and end.

  The fine-tuning phase, where there is one, follows the last of them.
  """
  total = config.optim.total_epochs
  if config.optim.schedule == 'steps':
    edges = [0, *config.optim.lr_steps]
  else:
    cycles = config.grid.num_long_cycles
    edges = [total * i / (cycles + 1) for i in range(cycles + 1)]
  return edges if config.grid.fine_tune else [*edges, total]


def _sum(values: Iterable[Real]) -> Real:
  """Adds from left to right; `sum` compensates errors from Python 3.12 on."""
  *_, total = itertools.accumulate(values)
  return total


# Learning rates, as functions of the epoch.


def _step_decay(
  base_lr: Real, steps: Sequence[Real], gamma: Real
) -> LrFunction:
  scales = [gamma**k for k in range(len(steps) + 1)]
  return _piecewise(base_lr, [0, *steps], scales)


def _piecewise(
  base_lr: Real, starts: Sequence[Real], scales: Sequence[Real]
) -> LrFunction:
  """Returns `base_lr * scale` of the last interval that has started."""
  return lambda e: base_lr * scales[max(bisect.bisect_right(starts, e), 1) - 1]


def _cosine(base_lr: Real, end_lr: Real, total_epochs: Real) -> LrFunction:
  """Source: PySlowFast lr_policy.py, lr_func_cosine without an offset."""

  def lr_at_epoch(epoch):
    progress = min(epoch / total_epochs, 1.0)
    wave = math.cos(math.pi * progress) + 1.0
    return end_lr + (base_lr - end_lr) * wave * 0.5

  return lr_at_epoch


def _stretched(
  policy: LrFunction, baseline_epochs: Real, run_epochs: Real
) -> LrFunction:
  """Runs a policy of baseline epochs over the run's own number of epochs."""
  if not run_epochs:
    return policy  # The empty run is refused by the caller.
  return lambda e: policy(min(e / run_epochs, 1.0) * baseline_epochs)


def _scaled(policy: LrFunction, phases: Sequence[Phase]) -> LrFunction:
  """Multiplies a policy by the scale of the phase that holds the epoch."""
  ends = [phase.end_epoch for phase in phases[:-1]]
  scales = [phase.lr_scale for phase in phases]
  return lambda e: policy(e) * scales[bisect.bisect_right(ends, e)]


def _with_warmup(
  policy: LrFunction, *, warmup_epochs: Real, warmup_lr: Real
) -> LrFunction:
  """Starts linearly, towards the policy's own value where the warm-up ends.

  Source: PySlowFast lr_policy.py, get_lr_at_epoch.
  """
  if not warmup_epochs:
    return policy
  slope = (policy(warmup_epochs) - warmup_lr) / warmup_epochs
  return lambda e: e * slope + warmup_lr if e < warmup_epochs else policy(e)


def _for_batch(
  policy: LrFunction, config: ml_collections.ConfigDict
) -> LrFunction:
  """Multiplies learning rates meant for optim.base_batch by the batch's ratio.

  Source: the linear rule of Goyal et al. 2017 (arXiv:1706.02677); that
    warmup_lr is scaled too, as PySlowFast 287ec00 does (config/defaults.py,
    BASE_LR_SCALE_NUM_SHARDS). Goyal et al. start the warm-up from the rate of
    the small batch instead.
  """
  if not config.optim.base_batch:
    return policy
  factor = config.data.batch_size / config.optim.base_batch
  return lambda e: policy(e) * factor


def _lr_function(
  optim: ml_collections.ConfigDict,
  *,
  total_epochs: Real,
  base_lr: Real | None = None,
  schedule: str | None = None,
  field: str = 'optim.schedule',
) -> LrFunction:
  """Returns the learning rate as a function of baseline epochs."""
  base_lr = optim.base_lr if base_lr is None else base_lr
  schedule = optim.schedule if schedule is None else schedule
  if schedule == 'steps':
    return _step_decay(base_lr, optim.lr_steps, optim.gamma)
  if schedule == 'cosine':
    return _cosine(base_lr, optim.end_lr, total_epochs)
  if schedule == 'constant':
    return lambda _: base_lr
  return _optax_schedule(schedule, field)


def _optax_schedule(text: str, field: str) -> LrFunction:
  """Returns the schedule that a text such as the one below describes.

  'optax.linear_schedule(init_value=0.1, end_value=0.0, transition_steps=20)'

  The text is parsed, never evaluated: it may only call schedules of optax,
  with literals, other such calls, and lists, tuples and dicts of them.
  """
  from optax import schedules  # Takes a second, and few configs need it.

  makers = {
    name: maker
    for name, maker in vars(schedules).items()
    if name.endswith(('_schedule', '_schedules')) or name == 'exponential_decay'
    if callable(maker)
  }

  def read(node: ast.expr) -> Any:
    match node:
      case ast.Call(
        func=ast.Attribute(value=ast.Name(id='optax'), attr=name),
        args=args,
        keywords=words,
      ) if all(word.arg for word in words):  # Not **words.
        _require(
          name in makers,
          f'{field}: optax has no schedule {name!r}; it has '
          f'{", ".join(sorted(makers))}.',
        )
        arguments = [read(arg) for arg in args]
        named = {str(word.arg): read(word.value) for word in words}
        try:
          return makers[name](*arguments, **named)
        except Exception as error:  # Whatever optax makes of wrong arguments.
          raise ConfigError(f'{field}: {text!r} fails: {error!r}') from error
      case ast.List(elts=items) | ast.Tuple(elts=items):
        return [read(item) for item in items]
      case ast.Dict(keys=keys, values=values):
        return {
          ast.literal_eval(key): read(value)
          for key, value in zip(keys, values, strict=True)
        }
    return ast.literal_eval(node)

  try:
    call = ast.parse(text, mode='eval').body
    if not isinstance(call, ast.Call):
      raise SyntaxError('not a call')
    schedule = read(call)
  except ConfigError:
    raise
  # Not Python, nested deeper than it can read, or no literal.
  except (
    SyntaxError,
    ValueError,
    TypeError,
    RecursionError,
    MemoryError,
  ) as error:
    raise ConfigError(
      f"{field} is {_shortened(text)!r}; use 'steps', 'cosine', 'constant' or "
      "a call such as 'optax.linear_schedule(init_value=0.1, end_value=0.0, "
      "transition_steps=20)' whose arguments are literals, or lists of them or "
      'of such calls.'
    ) from error
  try:
    first = float(schedule(0.0))
  except Exception as error:  # Such as a list of numbers for schedules.
    raise ConfigError(f'{field}: {text!r} fails: {error!r}') from error
  _require(
    math.isfinite(first),
    f'{field}: {text!r} starts at {first}; it must be a finite number.',
  )
  return lambda epoch: float(schedule(epoch))


# Checks. Each message says what is wrong, where, and what would be accepted.


def _shortened(text: str) -> str:
  return text if len(text) <= 200 else f'{text[:100]}...'


def _check_rates(schedule: GridSchedule, config) -> None:
  """Refuses learning rates that are negative or not finite.

  Only a text of the user's can make them. It is asked at every thousandth of
  the run and where phases begin: what is shorter than that may escape.
  """
  texts = {'optim.schedule': config.optim.schedule}
  if config.grid.mode == 'ladder':
    texts = {'grid.ladder': ' '.join(str(r[3]) for r in config.grid.ladder)}
  ((field, text),) = texts.items()
  if 'optax.' not in text:
    return
  end = schedule.total_epochs
  starts = [phase.end_epoch for phase in schedule.phases[:-1]]
  for epoch in sorted({*(end * k / 1000 for k in range(1001)), *starts}):
    rate = schedule.lr_at_epoch(epoch)
    _require(
      math.isfinite(rate) and rate >= 0,
      f'{field}: the learning rate is {rate:g} at epoch {epoch:g}; it must be '
      'a finite number, 0 or more, from the first epoch to the last.',
    )


def _require(condition: Any, message: str) -> None:
  if not condition:
    raise ConfigError(message)


def _check_common(config: ml_collections.ConfigDict) -> None:
  """Refuses settings that are wrong whatever the phase."""
  data, grid, optim = config.data, config.grid, config.optim
  _require(
    grid.mode in MODES,
    f'grid.mode is {grid.mode!r}; use one of {", ".join(MODES)}.',
  )
  for name in ('num_frames', 'stride_frames', 'crop_px', 'batch_size'):
    _require(
      data[name] >= 1, f'data.{name} is {data[name]}; it must be at least 1.'
    )
  _require(
    data.crop_width_px is None or data.crop_width_px >= 1,
    f'data.crop_width_px is {data.crop_width_px}; it must be at least 1, or '
    'None for a square.',
  )
  full = full_grid(config)
  _require(
    len(data.jitter_px) == 2
    and all(map(_is_number, data.jitter_px))
    and min(full.H, full.W) <= data.jitter_px[0] <= data.jitter_px[1],
    f'data.jitter_px is {tuple(data.jitter_px)}; it must be (least, greatest) '
    f'short side, the least no smaller than the crop of {min(full.H, full.W)}.',
  )
  _require(
    data.sampling in ('dense', 'segments'),
    f"data.sampling is {data.sampling!r}; use 'dense' or 'segments'.",
  )
  _require(
    optim.total_epochs > 0,
    f'optim.total_epochs is {optim.total_epochs}; it must be positive.',
  )
  _require(
    optim.warmup_epochs >= 0,
    f'optim.warmup_epochs is {optim.warmup_epochs}; it must be 0 or more.',
  )
  _require(
    config.norm.group_clips >= 0,
    f'norm.group_clips is {config.norm.group_clips}; it must be positive, or '
    '0 for the whole batch.',
  )
  _require(
    config.norm.group_by in ('phase', 'step'),
    f"norm.group_by is {config.norm.group_by!r}; use 'phase' or 'step'.",
  )
  _require(
    config.init_from or not config.norm.frozen,
    f'norm.frozen is {config.norm.frozen!r}, but there are no weights whose '
    'batch norms could be kept: new ones have scales of zero, and no '
    "statistics; set init_from, or norm.frozen=''.",
  )
  _require(
    config.norm.precise_batches
    or not optim.ema_decay
    or config.norm.frozen == 'all',
    f'optim.ema_decay is {optim.ema_decay:g}, but norm.precise_batches is 0: '
    'running statistics belong to the current weights, so their average needs '
    'statistics of its own; set norm.precise_batches, such as 200.',
  )
  if grid.mode == 'ladder':
    _check_ladder(config)
  elif optim.schedule == 'steps':
    _check_lr_steps(
      optim.lr_steps, optim.total_epochs, needed=grid.mode in ('long', 'both')
    )
  if grid.mode in ('short', 'long', 'both', 'progressive'):
    _require(
      _is_number(grid.epoch_factor) and grid.epoch_factor > 0,
      f'grid.epoch_factor is {grid.epoch_factor}; it must be positive.',
    )
  if grid.mode in ('short', 'both'):
    _check_short_factors(grid.short_factors)
  if grid.mode in ('long', 'both'):
    _check_long_cycle(config)
  if grid.mode == 'progressive':
    _check_progressive(grid.progressive)


def _check_lr_steps(
  lr_steps: Sequence[Any], total_epochs: Real, *, needed: bool = False
) -> None:
  edges = (0, *lr_steps, total_epochs)
  _require(
    all(_is_number(e) for e in lr_steps)
    and all(a < b for a, b in itertools.pairwise(edges)),
    f'optim.lr_steps is {tuple(lr_steps)}; it must be increasing epochs, all '
    f'after 0 and before the end of the schedule at {total_epochs:g}.',
  )
  _require(
    lr_steps or not needed,
    'optim.lr_steps is empty, so long cycles have no decays to align with; '
    "name some, or use optim.schedule='constant' with grid.num_long_cycles.",
  )


def _check_short_factors(factors: Sequence[Any]) -> None:
  _require(
    len(factors) > 0 and all(_is_factor(f) for f in factors),
    f'grid.short_factors is {tuple(factors)}; it must be side factors in '
    '(0, 1], at least one.',
  )


def _check_long_cycle(config: ml_collections.ConfigDict) -> None:
  grid = config.grid
  _require(
    len(grid.long_factors) > 0
    and all(
      _is_row(row, 2) and all(map(_is_factor, row)) for row in grid.long_factors
    ),
    f'grid.long_factors is {_plain(grid.long_factors)}; it must be (frames '
    'factor, side factor) pairs, each factor in (0, 1].',
  )
  _require(
    tuple(grid.long_factors[-1]) == (1, 1),
    f'grid.long_factors ends with {_plain(grid.long_factors[-1])}; it must '
    'end with (1, 1), the full grid that the model is fine-tuned on.',
  )
  _require(
    config.optim.schedule == 'steps' or grid.num_long_cycles >= 1,
    f'grid.num_long_cycles is {grid.num_long_cycles}; it must be 1 or more.',
  )


def _check_ladder(config: ml_collections.ConfigDict) -> None:
  rungs = config.grid.ladder
  _require(
    len(rungs) > 0,
    'grid.ladder is empty; it needs a rung or more, each '
    '(frames factor, epochs, learning rate, schedule).',
  )
  for i, rung in enumerate(rungs):
    where = f'grid.ladder[{i}]'
    _require(
      _is_row(rung, 4)
      and _is_factor(rung[0])
      and _is_number(rung[1])
      and rung[1] > 0
      and _is_number(rung[2])
      and rung[2] >= 0
      and isinstance(rung[3], str),
      f'{where} is {_plain(rung)}; it must be (frames factor in (0, 1], '
      'epochs > 0, learning rate, schedule).',
    )
    if rung[3] == 'steps':
      _check_lr_steps(config.optim.lr_steps, rung[1])
  factors = [rung[0] for rung in rungs]
  _require(
    factors == sorted(factors),
    f'grid.ladder has frames factors {factors}; rungs must not lose frames.',
  )


def _check_progressive(rows: Sequence[Any]) -> None:
  _require(
    len(rows) > 0
    and all(_is_row(row, 3) and all(map(_is_factor, row)) for row in rows),
    f'grid.progressive is {_plain(rows)}; it must be (share of the epochs, '
    'frames factor, side factor) rows, each number in (0, 1].',
  )
  total = math.fsum(row[0] for row in rows)
  _require(
    math.isclose(total, 1.0, abs_tol=1e-6),
    f'grid.progressive has shares that sum to {total:g}; they must sum to 1.',
  )
  volumes = [t * side * side for _, t, side in rows]
  _require(
    volumes == sorted(volumes),
    f'grid.progressive is {_plain(rows)}; its grids must not shrink, so sort '
    'the rows from coarse to fine.',
  )


def _with_checked_groups(
  phase: Phase, number: str, config: ml_collections.ConfigDict
) -> Phase:
  """Returns the phase with its batch-norm groups.

  Source: section 3.4 of the paper: statistics are those of a fixed number of
    clips with respect to the long cycle, and grow inside the short cycle.
  """
  size = config.norm.group_clips
  if not size:
    return phase
  where = f'{number} ({describe(phase.base, full_grid(config))})'
  by_step = config.norm.group_by == 'step'
  groups = []
  for grid in phase.cycle:
    batch = grid.batch if by_step else phase.base.batch
    _require(
      batch % size == 0,
      f'{where}: a batch of {batch} clips does not divide into groups of '
      f'norm.group_clips={size}; change data.batch_size, or use a group size '
      f'such as {math.gcd(batch, size)}, or 0 for the whole batch.',
    )
    groups.append(batch // size)
  return dataclasses.replace(phase, bn_groups=tuple(groups))


def _check_phase(
  phase: Phase,
  number: str,
  config: ml_collections.ConfigDict,
  num_devices: int,
) -> None:
  """Refuses a phase whose grids cannot be trained, and names it."""
  base = phase.base
  where = f'{number} ({describe(base, full_grid(config))})'
  for grid in phase.cycle:
    crop = f'{grid.H}x{grid.W}'
    _require(
      grid.H <= base.H and grid.W <= base.W,
      f'{where}: the short cycle has a crop of {crop}, larger than the '
      f"phase's {base.H}x{base.W}; use smaller grid.short_factors or larger "
      'side factors in grid.long_factors.',
    )
    _require(
      min(grid.H, grid.W) >= MIN_CROP_PX,
      f'{where}: a crop of {crop} is too small; sides of {MIN_CROP_PX} pixels '
      'or more are accepted. Change data.crop_px or the factors in grid.',
    )
    _require(
      grid.batch >= 1,
      f'{where}: the grid {crop} gets a batch of 0 clips; change '
      'data.batch_size or the factors in grid.',
    )
    _require(
      grid.batch % num_devices == 0,
      f'{where}: a batch of {grid.batch} clips does not divide among '
      f'{num_devices} devices; use a data.batch_size that is a multiple of '
      f'{num_devices}.',
    )
  parts = config.train.micro_batches
  for grid, groups in zip(phase.cycle, phase.bn_groups, strict=True):
    _require(
      groups % parts == 0,
      f'{where}: the {groups} batch-norm groups of the grid {grid} do not '
      f'divide into train.micro_batches={parts} equal parts; use '
      f'{_divisors(groups)} micro-batches, or another norm.group_clips.',
    )
    _require(
      grid.batch % (parts * num_devices) == 0,
      f'{where}: the {grid.batch // parts} clips of a micro-batch of the grid '
      f'{grid} do not divide among {num_devices} devices; use fewer '
      f'train.micro_batches than {parts}.',
    )


def _divisors(number: int) -> str:
  """Lists the divisors: '1, 2 or 4'."""
  found = [str(d) for d in range(1, number + 1) if number % d == 0]
  return ' or '.join(filter(None, (', '.join(found[:-1]), found[-1])))


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and math.isfinite(value)


def _is_factor(value: Any) -> bool:
  return _is_number(value) and 0 < value <= 1


def _is_row(value: Any, length: int) -> bool:
  return isinstance(value, (tuple, list)) and len(value) == length


def _plain(value: Any) -> Any:
  """Returns nested lists as tuples, as configs write them."""
  if isinstance(value, (tuple, list)):
    return tuple(_plain(item) for item in value)
  return value
