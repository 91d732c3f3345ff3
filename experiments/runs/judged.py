"""The runs that PROTOCOL.md governs: tuned on validation, judged on test."""

from typing import NamedTuple

from experiments.runs import generated
from experiments.runs.run import Run

ARMS = ('none', 'both')
# Of the baseline's epochs.
LENGTHS = {
  'none': (0.25, 0.5, 0.75, 1.0, 1.5),
  'both': (0.75, 1.0, 1.5, 2.0, 3.0),
}
# Those of the arms' configs, at which they are tuned.
TUNED_LENGTH = {'none': 1.0, 'both': 1.5}
RATES = (0.025, 0.05, 0.1)
PRESENT_RATE = 0.05  # That of the config.
TUNING_SEEDS = 1
FRONT_SEEDS = 3
# What tuning took.
RATE = {'none': PRESENT_RATE, 'both': PRESENT_RATE}

# That of `both` that the headline judges, by `chosen` of tables/decisions.py;
# None while the front is not complete.
HEADLINE_LENGTH: float | None = 3.0
# After so many pairs, each of a baseline and that point, and if that leaves it
# open, after all.
HEADLINE_LOOKS = (8, 16)
MARGIN = 0.5  # Points of top-1.
HEADLINE_FIRST_SEED = 10

_SIZE_PX = 64
# The smallest crops of `both` are half of these.
_CLIFF_PX = (56, 64, 80, 96)


def _run(
  name: str,
  arm: str,
  length: float,
  *,
  pixels: int = _SIZE_PX,
  rate: float | None = None,
  first_seed: int = 0,
  test_split: str = 'test',
  baseline: str = '',
) -> Run:
  """Makes a run of an arm in so many times the baseline's epochs."""
  overrides = generated.of_epochs(arm, length)
  if arm == 'none' and length < 1:
    # An epoch is too long a warm-up for two.
    overrides += (f'--config.optim.warmup_epochs={length}',)
  rate = RATE[arm] if rate is None else rate
  if rate != PRESENT_RATE:
    overrides += (f'--config.optim.base_lr={rate}',)
  if pixels != _SIZE_PX:
    overrides += generated.in_pixels(pixels)
  if pixels > _SIZE_PX:
    # Videos with as many more pixels, so that there is something to see.
    overrides += (
      f'--config.data.name=moving_digits/motion_{5 * pixels // 4}px',
    )
  return generated.run_of(
    name,
    f'{arm}, {length:g} x the epochs',
    grid=arm,
    size='demo',
    overrides=overrides,
    baseline=baseline,
  )._replace(first_seed=first_seed, test_split=test_split)


def pixels_of(run: Run) -> int:
  """Height and width of a run's clips."""
  for override in run.overrides:
    name, _, value = override.partition('=')
    if name == '--config.data.crop_px':
      return int(value)
  return _SIZE_PX


TUNING = [
  _run(
    f'tuning/{arm}-{rate}',
    arm,
    TUNED_LENGTH[arm],
    rate=rate,
    first_seed=100,
    test_split='',
  )._replace(row=f'{arm}, optim.base_lr={rate}')
  for arm in ARMS
  for rate in RATES
]


def _front(table: str, pixels: int) -> list[Run]:
  return [
    _run(
      f'{table}/{arm}-{length:g}',
      arm,
      length,
      pixels=pixels,
      baseline=f'{table}/none-1',
    )
    for arm in ARMS
    for length in LENGTHS[arm]
  ]


FRONT = _front('front', 64)
# The shortest of each arm once more: what a cache of programs spares.
FRONT_COLD = [
  run._replace(
    name=run.name.replace('front/', 'front_cold/'), baseline='', is_cold=True
  )
  for run in FRONT
  if run.name in ('front/none-0.25', 'front/both-0.75')
]
FRONT_80 = _front('front_80', 80)


def headline(length: float) -> list[Run]:
  """Two baselines and then a point of `both`, at seeds that chose nothing."""
  return [
    _run(
      f'headline/{arm}-{times:g}',
      arm,
      times,
      first_seed=HEADLINE_FIRST_SEED,
      baseline='headline/none-1',
    )
    for arm, times in (('none', 1.0), ('none', 1.5), ('both', length))
  ]


HEADLINE = headline(HEADLINE_LENGTH) if HEADLINE_LENGTH else []

# At equal epochs. Sizes of the fronts are not trained twice.
CLIFF = [
  next(
    (run for run in front if run.name == f'{table}/{arm}-1'),
    _run(
      f'cliff/{arm}-{pixels}px',
      arm,
      1.0,
      pixels=pixels,
      baseline=f'cliff/none-{pixels}px',
    ),
  )._replace(row=f'{arm}, {pixels} x {pixels} pixels')
  for pixels in _CLIFF_PX
  for table, front in [
    {64: ('front', FRONT), 80: ('front_80', FRONT_80)}.get(pixels, ('', []))
  ]
  for arm in ARMS
]

# Schedules at the multiply-adds of the baseline in a part of its epochs: by
# network, that part, and the lengths of the others that come nearest. Those of
# `none`, FastDINOv2 and Mix & Match are whole epochs.


class _Budget(NamedTuple):
  none_epochs: int
  both_factor: float
  progressive_factor: float
  fastdinov2_epochs: int
  mix_and_match_epochs: int


_BUDGETS = {
  'slowfast': _Budget(3, 1.71, 0.857, 7, 5),
  'vit': _Budget(6, 2.87, 1.217, 15, 12),
}


def _schedules(table: str, model: str) -> list[Run]:
  budget = _BUDGETS[model]

  def epochs(number: int) -> tuple[str, ...]:
    # The rate falls after three quarters, as in the config.
    return (
      f'--config.optim.total_epochs={number}',
      f'--config.optim.lr_steps=({0.75 * number:g},)',
    )

  def factor(value: float) -> tuple[str, ...]:
    return (f'--config.grid.epoch_factor={value}',)

  def of_table(name: str, number: int, *overrides: str) -> tuple[str, ...]:
    path = f'configs/schedules/{name}'
    return (f'--config.grid.table={path}', *epochs(number), *overrides)

  # Its batches are no multiples of the groups.
  no_groups = ('--config.norm.group_clips=0',) if model == 'slowfast' else ()
  return [
    generated.run_of(
      f'{table}/{name}',
      row,
      grid=grid,
      size='demo' if model == 'slowfast' else 'small',
      model=model,
      overrides=overrides,
      baseline=f'{table}/none',
    )._replace(test_split='test')
    for name, row, grid, overrides in (
      ('none', 'none', 'none', epochs(budget.none_epochs)),
      ('both', 'multigrid (both)', 'both', factor(budget.both_factor)),
      (
        *('progressive', 'progressive', 'progressive'),
        factor(budget.progressive_factor),
      ),
      (
        *('fastdinov2', "FastDINOv2's two phases", 'table'),
        of_table('fastdinov2.py:rates=run', budget.fastdinov2_epochs),
      ),
      (
        *('mix-and-match', 'random sizes (Mix & Match)', 'table'),
        of_table('mix_and_match.py', budget.mix_and_match_epochs, *no_groups),
      ),
    )
  ]


SCHEDULES = _schedules('schedules', 'slowfast')
SCHEDULES_VIT = _schedules('schedules_vit', 'vit')

# Rows of older tables that experiments/README.md speaks of: there they have one
# or two seeds, and no test.
_CLAIMED = {
  'frames': (
    *('tsn-2', 'tsn-8', 'tsn-16', 'tsm-8', 'tam-8'),
    *('blvnet_tam-2', 'blvnet_tam-16'),
  ),
  'ladder': ('32', '16-32'),
  'choices': (
    *('cosine-none', 'cosine-both-two-cycles', 'tam-8-none', 'tam-8-both'),
  ),
}
_OLDER = {
  'frames': generated.FRAMES_ACCURACY,
  'ladder': generated.FRAMES_LADDER,
  'choices': generated.MULTIGRID_CHOICES,
}


def _claimed(kind: str, name: str) -> Run:
  run = next(r for r in _OLDER[kind] if r.name.endswith(f'/{name}'))
  title = generated.MODELS[run.model]
  row = {
    'frames': f'{title}, {run.frames} frames',
    'ladder': f'{title}, {run.row}',
    # Rows of TAM begin with it.
    'choices': run.row if run.model == 'tam' else f'{title}, {run.row}',
  }[kind]
  baseline = run.baseline.rpartition('/')[2]
  return run._replace(
    name=f'claims/{kind}-{name}',
    row=row,
    baseline=f'claims/{kind}-{baseline}' if baseline else '',
    test_split='test',
  )


CLAIMS = [
  _claimed(kind, name) for kind, names in _CLAIMED.items() for name in names
]

RUNS = {
  'tuning': TUNING,
  'front': FRONT,
  'front_cold': FRONT_COLD,
  'front_80': FRONT_80,
  **({'headline': HEADLINE} if HEADLINE else {}),
  'cliff': CLIFF,
  'schedules': SCHEDULES,
  'schedules_vit': SCHEDULES_VIT,
  'claims': CLAIMS,
}
