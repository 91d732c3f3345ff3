"""What the papers claim, and what is known of each claim here.

python -m experiments.tables.claims

One row for each claim. Numbers are those of the other tables: published.csv,
schedules and shapes, and records.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import sys
from collections.abc import Sequence

from experiments import tabulate
from experiments.bench import grid_step_times
from experiments.runs import catalogue, generated, recipes, record
from experiments.runs.run import Run
from experiments.tables import (
  blvnet_costs,
  decisions,
  literature,
  measured,
  multigrid_grids,
  multigrid_savings,
  multigrid_schedules,
  published_accuracy,
)

TABLE = 'claims'

EXACT = 'exact'
GENERATED = 'measured on generated data'
NEEDS_DATA = 'needs data'
UNKNOWN = 'unknown'

_MULTIGRID = 'multigrid.md'
_MEASURED = 'multigrid_measured.md'
_JUDGED = 'judged.md'
_BLVNET = 'blvnet_tam.md'
_REAL = 'real_data.md'
_TRANSFORMERS = 'transformers.md'

_Row = tuple[str, str, str, str, str]


def _rows(table: tabulate.Table) -> list[dict[str, str]]:
  return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def _published(*cells: literature.Published) -> str:
  """Published numbers, the certainty behind each: '4.5 (primary)'."""
  return ', '.join(f'{c.value} ({c.certainty})' for c in cells if c.value)


def _page(text: str, page: str, anchor: str = '') -> str:
  return f'[{text}](pages/{page}{"#" if anchor else ""}{anchor})'


def _run(name: str) -> Run:
  """The run on generated videos of that name."""
  table = generated.RUNS[name.split('/')[0]]
  return next(run for run in table if run.name == name)


def _accuracies(named: Sequence[tuple[str, str]]) -> str:
  """Top-1 of some runs: 'both: 93.9 ± 1.7; none: 97.6 ± 0.7 % (n = 3)'.

  Args:
    named: What the text calls each run, and its name.

  Returns:
    The text, with the number of seeds; '' unless all runs have records.
  """
  found = [(label, measured.result(_run(name))) for label, name in named]
  known = [(label, read.top1) for label, read in found if read]
  if len(known) < len(found):
    return ''
  seeds = [f' (n = {len(top1)})' for _, top1 in known]
  if len(set(seeds)) == 1:
    seeds[:-1] = [''] * (len(seeds) - 1)
  return '; '.join(
    f'{label}: {measured.spread(top1, 1)} %{number}'
    for (label, top1), number in zip(known, seeds, strict=True)
  )


def _status(here: str) -> str:
  return GENERATED if here else UNKNOWN


def _grids() -> _Row:
  rows = _rows(multigrid_grids.grids())
  same = [
    row['batches / B [published]']
    == ', '.join(
      shape.split('B')[0] for shape in row['short cycle [computed]'].split(', ')
    )
    for row in rows
  ]
  return (
    'The mini-batches of the long and the short cycle (figure 2)',
    f'{len(rows)} sets of three (primary)',
    f'{sum(same)} of {len(same)} are equal',
    EXACT,
    _page('grids', _MULTIGRID, 'the-grids'),
  )


def _schedule() -> _Row:
  rows = [
    row
    for row in _rows(multigrid_schedules.schedules())
    if row['end epoch [published]']
  ]
  same = [
    row['epochs [computed]'].split(' - ')[1] == row['end epoch [published]']
    for row in rows
  ]
  return (
    'The schedule of Kinetics-400: epochs at which its phases end',
    f"the first {len(rows)} phases (hearsay: a log of the authors' code)",
    f'{sum(same)} of {len(same)} are equal',
    EXACT,
    _page('schedules', _MULTIGRID, 'the-schedules'),
  )


def _iterations() -> _Row:
  found = [
    (recipe.data, multigrid_savings.ratios(recipe, 'both', 1.5))
    for recipe in recipes.SLOWFAST
  ]
  return (
    'Fewer iterations and multiply-adds at 1.5 times the epochs, SlowFast',
    '',
    ', '.join(
      f'{data}: {steps:.2f} and {macs:.2f} times'
      for data, (steps, macs) in found
    ),
    EXACT,
    _page('savings', _MULTIGRID, 'what-multigrid-training-saves'),
  )


def _wall_time() -> _Row:
  row = 'SlowFast-R50 8x8, Kinetics-400'
  cells = [
    literature.cell('multigrid_speedups', f'{row}, {what}', 'time ratio')
    for what in ('paper', 'PaddleVideo, all (baseline of 196 epochs)')
  ]
  # Runs have the batch of the config file, whatever the paper's is.
  own = recipes.KINETICS._replace(overrides=())
  here, _ = measured.speedup_of(own.config('both'), own.config('none'))
  return (
    'Times less training time, SlowFast-R50 on Kinetics-400',
    _published(*cells),
    here,
    'measured' if here else NEEDS_DATA,
    _page('savings', _MULTIGRID, 'what-multigrid-training-saves'),
  )


def _step_times() -> _Row:
  found = [
    f'{row["network"]}: {row["less time, implied by step times [measured]"]} '
    f'of {row["fewer MACs [computed]"]}'
    for row in _rows(grid_step_times.speedup_table())
    if row['schedule'].startswith('both')
  ]
  return (
    'The steps of a schedule take about the time of their multiply-adds: times '
    'less time, of times fewer multiply-adds',
    '',
    ', '.join(found),
    _status(', '.join(found)),
    _page('step times', _MEASURED, 'time-of-a-step'),
  )


def _faster() -> _Row:
  here = ''
  if pairs := decisions.compared():
    here = '; '.join(
      f'against {name.replace("-", " x ")}, '
      f'{found.look.verdict if found.look else "not judged yet"}: '
      f'{found.difference()} points, {found.in_seconds("the baseline")} '
      f'(n = {len(found.both.test)})'
      for name, found in zip(decisions.BASELINES, pairs, strict=True)
    )
    here += '; 95 % intervals'
  gain = literature.cell(
    'kinetics400_accuracy',
    'SlowFast-R50 8x8, multigrid minus baseline, paper',
    'top-1',
  )
  return (
    'Faster at equal or better accuracy',
    f'points: {_published(gain)}',
    here,
    _status(here),
    _page('judged', _JUDGED, 'the-headline'),
  )


def _lengths() -> _Row:
  here = _accuracies(
    [
      (f'{mode} x {factor:g}', f'epoch_factors/{mode}-{factor:g}')
      for mode in ('both', 'none')
      for factor in generated.FACTORS
    ]
  )
  return (
    "Accuracy by the number of epochs (of the baseline's)",
    '',
    here,
    _status(here),
    _page('lengths', _MEASURED, 'accuracy-against-the-length-of-training'),
  )


def _losses() -> _Row:
  here = _accuracies(
    [
      ('TAM on 8 segments, both', 'multigrid_choices/tam-8-both'),
      ('TAM on 8 segments, none', 'multigrid_choices/tam-8-none'),
      ('cosine, both', 'multigrid_choices/cosine-both-two-cycles'),
      ('cosine, none', 'multigrid_choices/cosine-none'),
    ]
  )
  return (
    'It serves other networks and decays of the learning rate',
    '',
    f'not these: {here}' if here else '',
    _status(here),
    _page('choices', _MEASURED, 'one-part-changed-at-a-time'),
  )


def _records(table: str) -> list[dict]:
  """All records of a table's runs."""
  return [
    entry
    for run in catalogue.RUNS[table]
    for entry in record.load(f'{run.name}-seed*')
  ]


def _on_real_data(
  claim: str, table: str, cells: Sequence[literature.Published], anchor: str
) -> _Row:
  """A claim about accuracy on a real data set."""
  entries = _records(table)
  return (
    claim,
    _published(*cells),
    published_accuracy.measured(entries) if entries else '',
    'measured' if entries else NEEDS_DATA,
    _page('real data', _REAL, anchor),
  )


def _zoo(table: str, network: str, column: str) -> list[literature.Published]:
  """The authors' baseline and multigrid of a data set."""
  return [
    literature.cell(table, f'{network}, {words}', column)
    for words in ('baseline, PySlowFast', 'multigrid, PySlowFast')
  ]


def _multigrid_on_real_data() -> list[_Row]:
  kinetics = [
    literature.cell(
      'kinetics400_accuracy', f'SlowFast-R50 8x8, {words}', 'top-1'
    )
    for words in (
      'baseline, PySlowFast (steps)',
      'multigrid, PySlowFast (tested at 224)',
    )
  ]
  network = 'SlowFast-R50 16x8'
  return [
    _on_real_data(
      'Top-1 on Kinetics-400, SlowFast-R50: baseline, multigrid',
      *('kinetics400_accuracy', kinetics, 'kinetics-400'),
    ),
    _on_real_data(
      'Top-1 on Something-Something V2, SlowFast-R50: baseline, multigrid',
      'ssv2_accuracy',
      _zoo('ssv2_accuracy', network, 'top-1'),
      'something-something-v2',
    ),
    _on_real_data(
      'mAP on Charades, SlowFast-R50: baseline, multigrid',
      'charades_accuracy',
      _zoo('charades_accuracy', network, 'mAP'),
      'charades',
    ),
  ]


def _blvnet_costs() -> list[_Row]:
  by_depth = _rows(blvnet_costs.ratios())
  here = lambda column: ', '.join(
    f'depth {row["depth"]}: {row[f"{column} [computed]"]}' for row in by_depth
  )
  published = lambda column: _published(
    literature.cell('blvnet_ratios', 'bLVNet-TAM against TSN', column)
  )
  tam = {row['network']: row for row in _rows(blvnet_costs.overhead())}
  costs = _page('costs', _BLVNET, 'costs')
  return [
    (
      'bLVNet-TAM: times fewer multiply-adds than TSN at equal frames',
      published('MACs'),
      here('MACs'),
      EXACT,
      costs,
    ),
    (
      'bLVNet-TAM: times less memory than TSN (activations)',
      published('memory'),
      here('activations'),
      EXACT,
      costs,
    ),
    (
      'Temporal aggregation costs next to nothing: its share of the '
      'multiply-adds',
      '',
      ', '.join(
        f'{name}: {row["MACs of TAM, of the network [computed]"]}'
        for name, row in tam.items()
      ),
      EXACT,
      costs,
    ),
  ]


def _blvnet_measured() -> list[_Row]:
  ends = (min(generated.FRAMES), max(generated.FRAMES))
  frames = _accuracies(
    [
      (f'{title}, {n} frames', f'frames_accuracy/{model}-{n}')
      for title, model in (('bLVNet-TAM', 'blvnet_tam'), ('TSN', 'tsn'))
      for n in ends
    ]
  )
  trends = [
    literature.cell('frames_trends', row, 'Something-Something')
    for row in ('bLVNet-TAM', 'TSN')
  ]
  modules = _accuracies(
    [
      (name.upper(), f'frames_accuracy/{name}-8')
      for name in ('tsn', 'tsm', 'tam')
    ]
  )
  ladder = _accuracies(
    [
      ('8x2, then 16x2', 'frames_ladder/16-32'),
      ('16x2', 'frames_ladder/32'),
    ]
  )
  more = _page('frames', _BLVNET, 'frames-and-temporal-modules-measured')
  return [
    (
      'More frames help bLVNet-TAM, and not TSN',
      _published(*trends),
      frames,
      _status(frames),
      more,
    ),
    (
      'Aggregation is better than shifts (8 frames)',
      'points: '
      + _published(
        literature.cell('temporal_module_gain', 'TAM over TSM', 'gain')
      ),
      modules,
      _status(modules),
      more,
    ),
    (
      'Few frames first, then more: as accurate as all frames from the start',
      '',
      ladder,
      _status(ladder),
      _page('ladder', _BLVNET, 'few-frames-first-measured'),
    ),
  ]


def _blvnet_on_real_data() -> list[_Row]:
  name, row = 'something_something_blvnet', 'bLVNet-TAM-101 32x2'
  return [
    _on_real_data(
      'bLVNet-TAM-101 32x2, top-1 on Something-Something: V1, V2',
      name,
      [literature.cell(name, row, f'{v} top-1') for v in ('SSv1', 'SSv2')],
      'blvnet-tam-on-something-something',
    ),
    _on_real_data(
      'bLVNet-TAM, top-1 on Kinetics-400 (50, 24x2) and Moments in Time',
      'kinetics_moments_blvnet',
      [
        literature.cell(
          'kinetics_moments_blvnet',
          'bLVNet-TAM-50 24x2, 3x3 views at 256',
          'Kinetics-400 top-1',
        ),
        literature.cell(
          'kinetics_moments_blvnet',
          'bLVNet-TAM, the best',
          'Moments in Time top-1',
        ),
      ],
      'blvnet-tam-on-kinetics-400-and-moments-in-time',
    ),
  ]


def _transformer() -> _Row:
  here = _accuracies(
    [
      ('both x 1.5', 'transformer_scratch/both-1.5'),
      ('both x 3', 'transformer_scratch/both-3'),
      ('none', 'transformer_scratch/none'),
    ]
  )
  return (
    'Multigrid for a video transformer (no paper has it)',
    '',
    here,
    _status(here),
    _page('transformers', _TRANSFORMERS, 'from-scratch'),
  )


def make() -> list[tabulate.Table]:
  rows = [
    _grids(),
    _schedule(),
    _iterations(),
    _step_times(),
    _wall_time(),
    _faster(),
    _lengths(),
    _losses(),
    *_multigrid_on_real_data(),
    *_blvnet_costs(),
    *_blvnet_measured(),
    *_blvnet_on_real_data(),
    _transformer(),
  ]
  columns = ('claim', 'published', 'here', 'status', 'page')
  return [tabulate.Table(TABLE, columns, rows)]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
