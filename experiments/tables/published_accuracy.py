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
from experiments.runs import launch, record
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


def _cost(name: str, row: str) -> tuple[str, ...]:
  """What a clip costs the network of a row, where the table says it."""
  if name not in _CLASSES:
    return ()
  network = launch.network_of(row)
  if not network:
    return '', ''
  model, frames = network
  cost = costs.cost(model, _CLASSES[name], frames, 224, 224)
  return f'{cost.macs / 1e9:.1f}', f'{cost.parameters / 1e6:.1f} M'


def accuracy(name: str) -> tabulate.Table:
  """One row for each published result, then one for each run of ours."""
  cells = tabulate.published(name)
  columns = list(dict.fromkeys(column for _, column in cells))
  blank = tabulate.Published('', '', '')
  # Only where a run of ours could be.
  measured_columns = (
    ('accuracy [measured]', 'record') if name in launch.RUNS else ()
  )
  rows = []
  for row in dict.fromkeys(row for row, _ in cells):
    found = [cells.get((row, column), blank) for column in columns]
    rows.append(
      (
        row,
        *_cost(name, row),
        *(c.value for c in found),
        *tabulate.sources(found),
        *('' for _ in measured_columns),
      )
    )
  for run in launch.RUNS.get(name, ()):
    entries = record.load(f'{run.name}-seed*')
    if entries:
      rows.append(
        (
          f'{run.row}, mgjax',
          *_cost(name, run.row),
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
  table = accuracy('something_something_blvnet')
  points: dict[str, list[tuple[float, float]]] = {}
  for cells in table.rows:
    row = dict(zip(table.columns, cells, strict=True))
    top1, gmacs = row['SSv2 top-1 [published]'], row[_COST_COLUMNS[0]]
    # Networks and views are the first two parts of a row; what users report of
    # broken weights is not a result.
    network, *views = row['model'].split(', ')
    if top1 and gmacs and 'by users' not in views:
      label = ', '.join([network.rsplit(' ', 1)[0], *views])
      points.setdefault(label, []).append((float(gmacs), float(top1)))

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
