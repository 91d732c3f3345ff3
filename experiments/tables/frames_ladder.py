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
from experiments.runs import generated
from experiments.tables import measured

TABLE = 'frames_ladder'


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, generated.FRAMES_LADDER)]


def picture(path: pathlib.Path) -> None:
  """Accuracy against training time, a point for each run."""
  measured.save_over_time(
    path, {run.row: [run] for run in generated.FRAMES_LADDER}
  )


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
