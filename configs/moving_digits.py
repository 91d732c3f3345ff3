r"""A small SlowFast learns motions from generated videos, on a laptop.

python -m mgjax.train --config=configs/moving_digits.py:grid=both \
  --workdir=runs/digits

Arguments after the colon: grid=none|short|long|both|ladder|progressive, seed=N.
"""

from configs import default


def get_config(arg: str = ''):
  args = default.parse_args(arg, grid='both', seed=0)
  config = default.base()
  config.seed = args.seed
  config.grid.mode = args.grid
  return config
