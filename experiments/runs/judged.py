"""The runs that PROTOCOL.md governs: tuned on validation, judged on test."""

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
TUNING_SEEDS = 1
FRONT_SEEDS = 3
# What tuning took.
RATE = {'none': 0.05, 'both': 0.05}

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
  if rate != 0.05:
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
FRONT_80 = _front('front_80', 80)

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

RUNS = {
  'tuning': TUNING,
  'front': FRONT,
  'front_80': FRONT_80,
  'cliff': CLIFF,
}
