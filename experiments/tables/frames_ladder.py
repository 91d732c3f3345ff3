r"""Few frames first, then more, against all frames from the start.

python -m experiments.tables.frames_ladder
python -m experiments.runs.launch --table=frames_ladder --seeds=3 --run=local \
  --jobs=2

The training recipe of the bLVNet-TAM paper (8x2 frames, then 16x2), on
generated videos of 34 frames: clips of 32 take all but two of them, and those
of 16 cover the same time.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import sys

from experiments import tabulate
from experiments.tables import measured
from experiments.tables.measured import Run

TABLE = 'frames_ladder'
_BASELINE = f'{TABLE}/32'
_CONFIG = 'configs/moving_digits.py:size=small,model=blvnet_tam'
# As many epochs as the ladder's rungs have together.
_COSINE = (
  '--config.optim.schedule=cosine',
  '--config.optim.total_epochs=9',
)

RUNS = [
  Run(
    f'{TABLE}/32',
    '16x2 frames',
    f'{_CONFIG},grid=none,frames=32',
    _COSINE,
    baseline=_BASELINE,
  ),
  Run(
    f'{TABLE}/16-32',
    '8x2, then 16x2 frames',
    f'{_CONFIG},grid=ladder,frames=32',
    baseline=_BASELINE,
  ),
  Run(
    f'{TABLE}/16',
    '8x2 frames',
    f'{_CONFIG},grid=none,frames=16',
    _COSINE,
    baseline=_BASELINE,
  ),
]


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, RUNS)]


def picture(path: pathlib.Path) -> None:
  """Accuracy against training time, a point for each run."""
  measured.save_over_time(path, {run.row: [run] for run in RUNS})


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
