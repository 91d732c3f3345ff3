"""Accuracy against the number of frames, with and without temporal modules.

python -m experiments.frames_accuracy
python -m experiments.launch --table=frames_accuracy --seeds=1 --run=local

The figure of the bLVNet-TAM paper, and its comparison of temporal modules, on
generated videos whose labels are in the motion: TSN, which averages frames,
stays at chance of the time-reversed pairs, however many frames it sees. The
runs were made beside other work, so nothing here is about time.
"""

import pathlib
import sys

from experiments import measured, tabulate
from experiments.measured import Run

TABLE = 'frames_accuracy'
MODELS = {
  'tsn': 'TSN',
  'tsm': 'TSM',
  'tam': 'TAM',
  'blvnet_tam': 'bLVNet-TAM',
  'slowfast': 'SlowFast',
}
FRAMES = (2, 4, 8, 16)

RUNS = [
  Run(
    f'{TABLE}/{model}-{frames}',
    title,
    f'configs/moving_digits.py:grid=none,size=small,model={model},frames={frames}',
  )
  for model, title in MODELS.items()
  for frames in FRAMES
]

# The same network with each of the modules.
_MODULES = [
  run
  for run in RUNS
  if run.name in [f'{TABLE}/{model}-8' for model in ('tsn', 'tsm', 'tam')]
]


def make() -> list[tabulate.Table]:
  return [
    measured.accuracy_table(TABLE, RUNS),
    measured.accuracy_table('temporal_modules', _MODULES),
  ]


def picture(path: pathlib.Path) -> None:
  results = measured.results(RUNS)

  def draw(axes):
    measured.draw(
      axes,
      {
        title: {
          frames: results[name]
          for frames in FRAMES
          if (name := f'{TABLE}/{model}-{frames}') in results
        }
        for model, title in MODELS.items()
      },
    )
    axes.set_xscale('log', base=2)
    axes.set_xticks(FRAMES, [str(frames) for frames in FRAMES])
    axes.set_xlabel('frames')

  tabulate.save_picture(draw, path)


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
