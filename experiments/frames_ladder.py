"""Few frames first, then more, against all frames from the start.

python -m experiments.frames_ladder
python -m experiments.launch --table=frames_ladder --seeds=3 --run=local

The training recipe of the bLVNet-TAM paper (8x2 frames, then 16x2), at half its
frames, on generated videos.
"""

import sys

from experiments import measured, tabulate
from experiments.measured import Run

TABLE = 'frames_ladder'
_CONFIG = 'configs/moving_digits.py:size=small,model=blvnet_tam'
# As many epochs as the ladder's rungs have together.
_COSINE = (
  '--config.optim.schedule=cosine',
  '--config.optim.total_epochs=9',
)

RUNS = [
  Run(f'{TABLE}/16', '8x2 frames', f'{_CONFIG},grid=none,frames=16', _COSINE),
  Run(
    f'{TABLE}/8-16', '4x2, then 8x2 frames', f'{_CONFIG},grid=ladder,frames=16'
  ),
  Run(f'{TABLE}/8', '4x2 frames', f'{_CONFIG},grid=none,frames=8', _COSINE),
]


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, RUNS, baseline=RUNS[0].name)]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
