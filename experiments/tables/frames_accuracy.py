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
from experiments.runs import generated
from experiments.tables import literature, measured

TABLE = 'frames_accuracy'

# The same network with each of the modules.
_MODULES = [
  run
  for run in generated.FRAMES_ACCURACY
  if run.frames == 8 and run.model in ('tsn', 'tsm', 'tam')
]


def _by_frames(model: str | None) -> dict[int, measured.Result]:
  """What the records of a network say, by number of frames."""
  runs = [run for run in generated.FRAMES_ACCURACY if run.model == model]
  read = measured.results(runs)
  return {run.frames: read[run.name] for run in runs if run.name in read}


def _gain() -> tabulate.Table:
  """What aggregation adds to shifts, on one network."""
  name, row = 'temporal_module_gain', 'TAM over TSM'
  published = literature.cell(name, row, 'gain')
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
    [(row, published.value, *literature.sources([published]), *ours)],
  )


def _trends() -> tabulate.Table:
  """What more frames do to each network, in the paper's figure and here."""
  name = 'frames_trends'
  cells = literature.cells(name)
  columns = list(dict.fromkeys(column for _, column in cells))
  blank = literature.BLANK
  rows = []
  titles = {title: model for model, title in generated.MODELS.items()}
  for title in dict.fromkeys((*titles, *(row for row, _ in cells))):
    model = titles.get(title)
    published = [cells.get((title, column), blank) for column in columns]
    ours = _by_frames(model).values()
    rows.append(
      (
        title,
        *(cell.value for cell in published),
        *literature.sources(published),
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
    measured.accuracy_table(TABLE, generated.FRAMES_ACCURACY),
    _trends(),
    measured.accuracy_table('temporal_modules', _MODULES),
    _gain(),
    measured.accuracy_table(
      'resolutions',
      [
        *generated.RESOLUTIONS,
        _MODULES[-1]._replace(row='TAM, 48 x 48 pixels'),
      ],
    ),
  ]


def picture(path: pathlib.Path) -> None:
  frames = generated.FRAMES
  lines = {
    title: _by_frames(model) for model, title in generated.MODELS.items()
  }

  def draw(axes):
    measured.draw(axes, {title: line for title, line in lines.items() if line})
    axes.set_xscale('log', base=2)
    axes.set_xticks(frames, map(str, frames))
    axes.set_xlabel('frames')

  tabulate.save_picture(draw, path)


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
