"""Writes the tables of both READMEs: ours from records, the papers' exactly.

python -m experiments.tables          writes them
python -m experiments.tables --check  exit code 1 where a table is not current

Either way, it fails on a record whose config or data set is not known.
"""

import functools
import pathlib
import re
import statistics
import sys

from experiments import (
  activation_memory,
  blvnet_costs,
  compare,
  costs,
  multigrid_grids,
  multigrid_io,
  multigrid_savings,
  multigrid_schedules,
  published_accuracy,
  record,
  step_time,
  successors,
  tabulate,
)

_FOLDER = pathlib.Path(__file__).parent
README = _FOLDER.parent / 'README.md'
READMES = (README, _FOLDER / 'README.md')

# Of the tables between marks in the READMEs.
SCRIPTS = (
  multigrid_grids,
  multigrid_schedules,
  multigrid_savings,
  multigrid_io,
  blvnet_costs,
  activation_memory,
  successors,
  published_accuracy,
)


def multigrid_table(records: list[dict]) -> str:
  """Accuracy and time of the baseline and of multigrid, as Markdown.

  Args:
    records: Of several seeds per mode; the baseline's mode is 'none'.

  Returns:
    The table. Accuracy is mean ± standard deviation over seeds; times are
    medians (a machine is at times busy with something else); speed-ups are
    ratios to the baseline: measured, of the training seconds; predicted, of
    the plan's multiply-adds. They are blank while there is no baseline.
  """
  if not records:
    return 'No records yet.'
  modes = {}
  for entry in records:
    modes.setdefault(entry['summary']['mode'], []).append(entry['summary'])
  rows = [
    '| grid | top-1 [%] | seeds | steps | clips | training [s] | compiling [s]'
    ' | evaluating [s] | speed-up measured | predicted (MACs) |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  seconds = lambda mode: statistics.median(s['train_s'] for s in modes[mode])
  for mode in sorted(modes, key=lambda m: m != 'none'):
    runs = modes[mode]
    median = lambda field, runs=runs: statistics.median(s[field] for s in runs)
    measured = ''
    if 'none' in modes:
      measured = f'{seconds("none") / seconds(mode):.2f}'
    top1 = [s['top1'] for s in runs]
    spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
    rows.append(
      f'| {mode} | {statistics.mean(top1):.1f} ± {spread:.1f} | {len(runs)} '
      f'| {median("steps"):,.0f} | {median("clips"):,.0f} '
      f'| {median("train_s"):.0f} | {median("compile_s"):.0f} '
      f'| {median("eval_s"):.0f} | {measured} '
      f'| {runs[0]["predicted_speedup"]["macs"]:.2f} |'
    )
  return '\n'.join(rows)


@functools.cache
def contents() -> dict[str, str]:
  """All tables by name, as Markdown."""
  found = {compare.EXPERIMENT: multigrid_table(record.load(compare.EXPERIMENT))}
  found[step_time.EXPERIMENT] = step_time.table(step_time.load())
  for script in SCRIPTS:
    for table in script.make():
      assert table.name not in found, table.name
      found[table.name] = tabulate.markdown(table)
  return found


def names_in(text: str) -> list[str]:
  """The tables that a text has marks of, in its order."""
  return re.findall(r'<!-- table (\w+) -->', text)


def with_tables(text: str) -> str:
  """Replaces what stands between the marks of each table.

  Args:
    text: With marks <!-- table NAME --> and <!-- end NAME -->.

  Raises:
    ValueError: A table is unknown, or its end is not marked.
  """
  for name in names_in(text):
    if name not in contents():
      raise ValueError(
        f'There is no table {name}; known are {", ".join(contents())}.'
      )
    begin, end = f'<!-- table {name} -->', f'<!-- end {name} -->'
    if end not in text:
      raise ValueError(f'The end of table {name} lacks its mark, {end}.')
    before, rest = text.split(begin)
    _, after = rest.split(end)
    text = f'{before}{begin}\n{contents()[name]}\n{end}{after}'
  return text


def main(argv: list[str]) -> int:
  problems = record.problems()
  for problem in problems:
    print(f'error: record {problem}', file=sys.stderr)
  if problems:
    return 1
  status = 0
  for path in READMES:
    old = path.read_text()
    new = with_tables(old)
    if '--check' not in argv:
      path.write_text(new)
    elif new != old:
      name = path.relative_to(_FOLDER.parent)
      print(
        f'error: {name} is not what schedules and records say; run make tables',
        file=sys.stderr,
      )
      status = 1
  if '--check' not in argv:
    costs.save()
  return status


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
