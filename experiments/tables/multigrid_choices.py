r"""What multigrid's parts are worth: one of them changed at a time.

python -m experiments.tables.multigrid_choices
python -m experiments.runs.launch --table=multigrid_choices --seeds=3 \
  --run=local --jobs=2

The ablations of the multigrid paper, on generated videos: batch-norm groups,
the fine-tuning phase, learning rates that follow the batch, another schedule of
the learning rate; and multigrid for a 2-D network on sampled frames. Speed-ups
of the runs with cosine decay and of the 2-D network are those over a baseline
of the same kind; of all others, over that of epoch_factors.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import sys

from experiments import tabulate
from experiments.runs import generated
from experiments.tables import measured

TABLE = 'multigrid_choices'


def make() -> list[tabulate.Table]:
  return [measured.table(TABLE, generated.MULTIGRID_CHOICES)]


def picture(path: pathlib.Path) -> None:
  """The accuracy of every run, with its deviation over seeds."""
  runs = generated.MULTIGRID_CHOICES
  read = measured.results(runs)

  def draw(axes):
    for run in runs:
      if found := read.get(run.name):
        axes.errorbar(
          found.mean, run.row, xerr=found.deviation or 0, fmt='ko', capsize=3
        )
    axes.invert_yaxis()  # In the table's order.
    axes.set_xlabel('top-1 [%]')

  tabulate.save_picture(draw, path)


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
