"""Learning rates as functions of the epoch.

A schedule is written in baseline epochs: epochs of a training on the full grid
alone. Multigrid runs the same schedule over another number of epochs
(`stretched`) and multiplies it by the batch of a phase (table.py).
"""

import ast
import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from mgjax.errors import ConfigError

# Whole numbers may be written without a point, and remain whole numbers.
Real = int | float

LrFunction = Callable[[Real], float]


@dataclasses.dataclass(frozen=True)
class LearningRate:
  """How the learning rate of the baseline falls.

  Attributes:
    base_lr: Rate of the full grid's batch, before any decay; 0 or more.
    schedule: 'steps', 'cosine' or 'constant'; or a call of an optax schedule
      whose count is baseline epochs, as `optax_schedule` reads it.
    steps: Baseline epochs at which 'steps' decays, increasing.
    gamma: Factor of each decay.
    end_lr: Rate at the end of 'cosine'.
    name: What an error calls `schedule`.
  """

  base_lr: Real
  schedule: str
  steps: Sequence[Real] = ()
  gamma: Real = 0.1
  end_lr: Real = 0.0
  name: str = 'lr_schedule'

  def over(self, total_epochs: Real) -> LrFunction:
    """Returns the rate as a function of baseline epochs.

    Args:
      total_epochs: Baseline epochs at which 'cosine' reaches `end_lr`.

    Raises:
      ConfigError: The schedule cannot be read.
    """
    if self.schedule == 'steps':
      return step_decay(self.base_lr, self.steps, self.gamma)
    if self.schedule == 'cosine':
      return cosine(self.base_lr, self.end_lr, total_epochs)
    if self.schedule == 'constant':
      return lambda _: self.base_lr
    return optax_schedule(self.schedule, self.name)


def step_decay(base_lr: Real, steps: Sequence[Real], gamma: Real) -> LrFunction:
  """Returns `base_lr`, multiplied by `gamma` at each of the steps (epochs)."""
  scales = [gamma**k for k in range(len(steps) + 1)]
  return lambda e: base_lr * scales[bisect.bisect_right(steps, e)]


def cosine(base_lr: Real, end_lr: Real, total_epochs: Real) -> LrFunction:
  """Returns half a cosine from `base_lr` to `end_lr`, which then stays.

  Source: PySlowFast lr_policy.py, lr_func_cosine without an offset.
  """

  def lr_at_epoch(epoch):
    progress = min(epoch / total_epochs, 1.0)
    wave = math.cos(math.pi * progress) + 1.0
    return end_lr + (base_lr - end_lr) * wave * 0.5

  return lr_at_epoch


def stretched(
  policy: LrFunction, baseline_epochs: Real, run_epochs: Real
) -> LrFunction:
  """Runs a policy of baseline epochs over the run's own number of epochs."""
  if not run_epochs:
    return policy  # `make_schedule` refuses a run without an epoch.
  return lambda e: policy(min(e / run_epochs, 1.0) * baseline_epochs)


def straight_lines(points: Sequence[tuple[Real, Real]]) -> LrFunction:
  """Returns the rate on straight lines between (epoch, rate) points.

  Args:
    points: Two or more, in order of their epochs. Where two have the same
      epoch, the rate jumps to the second one.
  """
  epochs = [epoch for epoch, _ in points]

  def lr_at_epoch(epoch):
    i = min(max(bisect.bisect_right(epochs, epoch), 1), len(points) - 1)
    (start, first), (end, last) = points[i - 1 : i + 1]
    if end == start:
      return last
    return first + (last - first) * min((epoch - start) / (end - start), 1.0)

  return lr_at_epoch


def with_warmup(
  policy: LrFunction, *, warmup_epochs: Real, warmup_lr: Real
) -> LrFunction:
  """Starts linearly, towards the policy's own value where the warm-up ends.

  Args:
    policy: What follows the warm-up.
    warmup_epochs: Epochs of the run, which no epoch factor stretches; 0: no
      warm-up.
    warmup_lr: Rate of the first step.

  Source: PySlowFast lr_policy.py, get_lr_at_epoch.
  """
  if not warmup_epochs:
    return policy
  slope = (policy(warmup_epochs) - warmup_lr) / warmup_epochs
  return lambda e: e * slope + warmup_lr if e < warmup_epochs else policy(e)


def for_batch(policy: LrFunction, batch: int, base_batch: int) -> LrFunction:
  """Multiplies rates that were chosen for another batch by the batches' ratio.

  Args:
    policy: Rates for `base_batch`, the warm-up included.
    batch: Clips of the full grid.
    base_batch: Clips that the rates are meant for; 0: `batch`.

  Source: the linear rule of Goyal et al. 2017 (arXiv:1706.02677). That the
    rate at the start of the warm-up is multiplied too is PySlowFast's
    (config/defaults.py, BASE_LR_SCALE_NUM_SHARDS).
  Differs: Goyal et al. start the warm-up from the rate of the small batch.
  """
  if not base_batch:
    return policy
  factor = batch / base_batch
  return lambda e: policy(e) * factor


def optax_schedule(text: str, name: str) -> LrFunction:
  """Returns the schedule that a text such as the one below describes.

  'optax.linear_schedule(init_value=0.1, end_value=0.0, transition_steps=20)'

  The text is parsed, never evaluated: it may only call schedules of optax,
  with literals, other such calls, and lists, tuples and dicts of them.

  Args:
    text: The call. Its count is baseline epochs.
    name: What an error calls the text.

  Raises:
    ConfigError: The text is no such call, or optax refuses the arguments.
  """
  try:
    call = ast.parse(text, mode='eval').body
    if not isinstance(call, ast.Call):
      raise SyntaxError('not a call')
    schedule = _read(call, text, name)
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
      f"`{name}` is {_shortened(text)!r}; use 'steps', 'cosine', 'constant' "
      "or a call such as 'optax.linear_schedule(init_value=0.1, "
      "end_value=0.0, transition_steps=20)' whose arguments are literals, or "
      'lists of them or of such calls.'
    ) from error
  try:
    first = float(schedule(0.0))
  except Exception as error:  # Such as a list of numbers for schedules.
    raise ConfigError(f'`{name}`: {text!r} fails: {error!r}') from error
  if not math.isfinite(first):
    raise ConfigError(
      f'`{name}`: {text!r} starts at {first}; it must be a finite number.'
    )
  return lambda epoch: float(schedule(epoch))


def _read(node: ast.expr, text: str, name: str) -> Any:
  """Returns the value of a part of the text: see `optax_schedule`."""
  read = lambda part: _read(part, text, name)
  match node:
    case ast.Call(
      func=ast.Attribute(value=ast.Name(id='optax'), attr=attribute),
      args=args,
      keywords=words,
    ) if all(word.arg for word in words):  # Not **words.
      makers = _optax_makers()
      if attribute not in makers:
        raise ConfigError(
          f'`{name}`: optax has no schedule {attribute!r}; it has '
          f'{", ".join(sorted(makers))}.'
        )
      arguments = [read(arg) for arg in args]
      named = {str(word.arg): read(word.value) for word in words}
      try:
        return makers[attribute](*arguments, **named)
      except Exception as error:  # Whatever optax makes of wrong arguments.
        raise ConfigError(f'`{name}`: {text!r} fails: {error!r}') from error
    case ast.List(elts=items) | ast.Tuple(elts=items):
      return [read(item) for item in items]
    case ast.Dict(keys=keys, values=values):
      return {
        ast.literal_eval(key): read(value)
        for key, value in zip(keys, values, strict=True)
      }
  return ast.literal_eval(node)


def _optax_makers() -> dict[str, Callable[..., LrFunction]]:
  """Returns the functions of optax that make schedules, by name."""
  # Imports JAX, which takes a second; most schedules need neither.
  from optax import schedules

  return {
    name: maker
    for name, maker in vars(schedules).items()
    if name.endswith(('_schedule', '_schedules')) or name == 'exponential_decay'
    if callable(maker)
  }


def _shortened(text: str) -> str:
  return text if len(text) <= 200 else f'{text[:100]}...'
