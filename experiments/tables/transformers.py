r"""Multigrid for a video transformer: from scratch, and from other labels.

python -m experiments.tables.transformers
python -m experiments.runs.launch --table=transformer_scratch --seeds=3 \
  --run=local --jobs=2
python -m experiments.runs.launch --table=transformer_pretraining --run=local
python -m experiments.runs.launch --table=transformer_fine_tuning --seeds=3 \
  --run=local --jobs=2 \
  --init_from=runs/transformer_pretraining/none-seed0
python -m experiments.runs.launch --table=transformer_choices --seeds=3 \
  --run=local --jobs=2

A ViT of four blocks learns motions in generated videos, in all grids at once
and coarse to fine: with weights that are drawn, and with weights that have
learnt to tell digits and motions apart in other videos. The last table changes
one part at a time: how positions act on coarse grids, and how the learning rate
follows the batch.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import sys

from experiments import tabulate
from experiments.runs import generated
from experiments.tables import measured

_TABLES = {
  'transformer_scratch': generated.TRANSFORMER_SCRATCH,
  'transformer_pretraining': generated.TRANSFORMER_PRETRAINING,
  'transformer_fine_tuning': generated.TRANSFORMER_FINE_TUNING,
  'transformer_choices': generated.TRANSFORMER_CHOICES,
}


def make() -> list[tabulate.Table]:
  return [measured.table(name, runs) for name, runs in _TABLES.items()]


def picture(path: pathlib.Path) -> None:
  """Accuracy against training time, a point for each run."""
  measured.save_over_time(
    path,
    {
      f'{run.row}, {table.removeprefix("transformer_").replace("_", " ")}': [
        run
      ]
      for table, runs in _TABLES.items()
      for run in runs
    },
  )


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
