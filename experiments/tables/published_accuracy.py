"""Published accuracies and speed-ups, and ours where there are records.

python -m experiments.tables.published_accuracy

The multigrid paper with its independent reproductions, bLVNet-TAM, and the
small sets of IBM's benchmark.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import sys

from experiments import costs, tabulate
from experiments.runs import catalogue, record
from experiments.tables import literature
from experiments.tables.measured import spread

_TABLES = (
  'multigrid_speedups',
  'kinetics400_accuracy',
  'ssv2_accuracy',
  'charades_accuracy',
  'something_something_blvnet',
  'kinetics_moments_blvnet',
  'mini_sets',
  'other_methods',
)
# Tables of runs, by the table that shows them, where their names differ.
_RUNS_OF = {'mini_sets': ('mini_ssv2', 'mini_kinetics')}
_METRICS = {'top1': 'top-1', 'top5': 'top-5', 'map': 'mAP'}


def measured(entries: list[dict]) -> str:
  """Mean and standard deviation over seeds of each metric of some records."""
  texts = []
  for key, metric in _METRICS.items():
    values = [e['summary'][key] for e in entries if key in e['summary']]
    if values:
      texts.append(f'{metric} {spread(values, 2)}')
  seeds = 'seed' if len(entries) == 1 else 'seeds'
  return f'{", ".join(texts)} ({len(entries)} {seeds})'


# Classes, by the tables that say what a clip costs their networks.
_CLASSES = {'something_something_blvnet': 174}
_COST_COLUMNS = ('GMACs of a clip at 224² [computed]', 'parameters [computed]')


def _clip_cost(table: str, model: str, frames: int) -> costs.Cost:
  """What a clip costs a network, on the data set of a table."""
  return costs.cost(model, _CLASSES[table], frames, 224, 224)


def _cost_cells(table: str, model: str, frames: int) -> tuple[str, ...]:
  """Of a row; none in a table that does not say what a clip costs.

  Args:
    table: Its name.
    model: As costs.py knows it; '': it does not.
    frames: Of a clip.
  """
  if table not in _CLASSES:
    return ()
  if not model:
    return ('',) * len(_COST_COLUMNS)
  cost = _clip_cost(table, model, frames)
  return f'{cost.macs / 1e9:.1f}', f'{cost.parameters / 1e6:.1f} M'


def accuracy(name: str) -> tabulate.Table:
  """One row for each published result, then one for each run of ours."""
  cells = literature.cells(name)
  columns = list(dict.fromkeys(column for _, column in cells))
  networks, unknown = literature.networks(name), literature.Network('', 0, '')
  # Only where a run of ours could be.
  runs = [
    run
    for table in _RUNS_OF.get(name, (name,))
    for run in catalogue.RUNS.get(table, ())
  ]
  measured_columns = ('accuracy [measured]', 'record') if runs else ()
  rows = []
  for row in dict.fromkeys(row for row, _ in cells):
    found = [cells.get((row, column), literature.BLANK) for column in columns]
    rows.append(
      (
        row,
        *_cost_cells(name, *networks.get(row, unknown)[:2]),
        *(c.value for c in found),
        *literature.sources(found),
        *('' for _ in measured_columns),
      )
    )
  for run in runs:
    entries = record.load(f'{run.name}-seed*')
    if entries:
      rows.append(
        (
          f'{run.row}, mgjax',
          *_cost_cells(name, run.model, run.frames),
          *('' for _ in (*columns, 'source', 'how sure')),
          measured(entries),
          ', '.join(entry['name'] for entry in entries),
        )
      )
  return tabulate.Table(
    name,
    (
      'model',
      *(_COST_COLUMNS if name in _CLASSES else ()),
      *(f'{column} [published]' for column in columns),
      'source',
      'how sure',
      *measured_columns,
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  return [accuracy(name) for name in _TABLES]


def picture(path: pathlib.Path) -> None:
  """Published top-1 of Something-Something V2 against what a clip costs."""
  name = 'something_something_blvnet'
  networks, top1 = literature.networks(name), literature.cells(name)
  points: dict[str, list[tuple[float, float]]] = {}
  for row, network in networks.items():
    cell = top1.get((row, 'SSv2 top-1'))
    if cell and network.curve:
      gmacs = _clip_cost(name, network.model, network.frames).macs / 1e9
      points.setdefault(network.curve, []).append((gmacs, float(cell.value)))

  def draw(axes):
    for label, values in points.items():
      axes.plot(*zip(*sorted(values), strict=True), 'o-', label=label)
    axes.set(
      xlabel='GMACs of a clip at 224²',
      ylabel='SSv2 top-1, published [%]',
      xlim=(0, None),
    )
    axes.legend(frameon=False)

  tabulate.save_picture(draw, path)


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
