"""Accuracy against the number of frames, with and without temporal modules.

python -m experiments.tables.frames_accuracy
python -m experiments.runs.launch --table=frames_accuracy --seeds=1 --run=local

The figure of the bLVNet-TAM paper, and its comparison of temporal modules, on
generated videos whose labels are in the motion, so that TSN, which averages
frames, stays at chance (one of sixteen), however many it sees; and of smaller
pictures, whose glyphs are harder to follow. The runs were made beside other
work, so nothing here is about time.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import sys

from experiments import tabulate
from experiments.tables import measured
from experiments.tables.measured import Run

TABLE = 'frames_accuracy'
MODELS = {
  'tsn': 'TSN',
  'tsm': 'TSM',
  'tam': 'TAM',
  'blvnet_tam': 'bLVNet-TAM',
  'slowfast': 'SlowFast',
}
FRAMES = (2, 4, 8, 16)

_FRAME_RUNS = [
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
  for run in _FRAME_RUNS
  if run.name in [f'{TABLE}/{model}-8' for model in ('tsn', 'tsm', 'tam')]
]

# What small pictures cost: the same clips, in fewer pixels.
_PIXEL_RUNS = [
  Run(
    f'{TABLE}/tam-8-{pixels}px',
    f'TAM, {pixels} x {pixels} pixels',
    'configs/moving_digits.py:grid=none,size=small,model=tam',
    (
      f'--config.data.crop_px={pixels}',
      f'--config.data.jitter_px={pixels},{5 * pixels // 4}',
      f'--config.eval.crop_px={pixels}',
      f'--config.eval.short_side_px={pixels}',
    ),
  )
  for pixels in (16, 24, 34)
]
RUNS = [*_FRAME_RUNS, *_PIXEL_RUNS]


def _gain() -> tabulate.Table:
  """What aggregation adds to shifts, on one network."""
  name, row = 'temporal_module_gain', 'TAM over TSM'
  published = tabulate.published_cell(name, row, 'gain')
  _, tsm, tam = _MODULES
  found = [measured.result(run) for run in (tsm, tam)]
  ours = ('', '', '')
  if all(found):
    ours = (
      f'{found[1].mean - found[0].mean:+.1f}',
      str(min(len(result.top1) for result in found)),
      f'{tsm.name}-seed*, {tam.name}-seed*',
    )
  return tabulate.Table(
    name,
    (
      'modules',
      'top-1, points [published]',
      'source',
      'how sure',
      'top-1, points, here at 8 frames [measured]',
      'seeds',
      'record',
    ),
    [(row, published.value, *tabulate.sources([published]), *ours)],
  )


def _trends() -> tabulate.Table:
  """What more frames do to each network, in the paper's figure and here."""
  name = 'frames_trends'
  cells = tabulate.published(name)
  columns = list(dict.fromkeys(column for _, column in cells))
  blank = tabulate.Published('', '', '')
  read = measured.results(_FRAME_RUNS)
  rows = []
  titles = {title: model for model, title in MODELS.items()}
  for title in dict.fromkeys((*titles, *(row for row, _ in cells))):
    model = titles.get(title)
    published = [cells.get((title, column), blank) for column in columns]
    ours = [
      read[run]
      for frames in FRAMES
      if (run := f'{TABLE}/{model}-{frames}') in read
    ]
    rows.append(
      (
        title,
        *(cell.value for cell in published),
        *tabulate.sources(published),
        ', '.join(
          f'{result.frames}: {measured.spread(result.top1, 1)}'
          for result in ours
        ),
        str(min(len(result.top1) for result in ours)) if ours else '',
        f'{TABLE}/{model}-*' if ours else '',
      )
    )
  return tabulate.Table(
    name,
    (
      'network',
      *(f'with more frames, {column} [published]' for column in columns),
      'source',
      'how sure',
      'frames: top-1, %, here [measured]',
      'seeds',
      'record',
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  return [
    measured.accuracy_table(TABLE, _FRAME_RUNS),
    _trends(),
    measured.accuracy_table('temporal_modules', _MODULES),
    _gain(),
    measured.accuracy_table(
      'resolutions',
      [
        *_PIXEL_RUNS,
        _MODULES[-1]._replace(row='TAM, 48 x 48 pixels'),
      ],
    ),
  ]


def picture(path: pathlib.Path) -> None:
  results = measured.results(_FRAME_RUNS)

  lines = {
    title: {
      frames: results[name]
      for frames in FRAMES
      if (name := f'{TABLE}/{model}-{frames}') in results
    }
    for model, title in MODELS.items()
  }

  def draw(axes):
    measured.draw(axes, {title: line for title, line in lines.items() if line})
    axes.set_xscale('log', base=2)
    axes.set_xticks(FRAMES, [str(frames) for frames in FRAMES])
    axes.set_xlabel('frames')

  tabulate.save_picture(draw, path)


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
