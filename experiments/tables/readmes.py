"""Writes the tables of the READMEs, pages and docs, and their pictures.

python -m experiments.tables          writes them
python -m experiments.tables --check  exit code 1 where one is not current

Tables of our runs come from records; those of the papers are computed exactly.

Either way, it fails on a record whose config or data set is not known, and says
on stderr which rows rest on other code than today's.
"""

import functools
import hashlib
import pathlib
import re
import sys
import types

from absl import flags

from experiments import costs, tabulate
from experiments.bench import (
  compile_seconds,
  compiled_layouts,
  decode_speed,
  grid_step_times,
  own_videos,
  small_sets,
  step_time,
  stream_speed,
)
from experiments.runs import catalogue, history, planned, record
from experiments.tables import (
  activation_memory,
  blvnet_costs,
  claims,
  class_balance,
  decisions,
  epoch_factors,
  frames_accuracy,
  frames_ladder,
  front,
  judged,
  multigrid_accuracy,
  multigrid_choices,
  multigrid_grids,
  multigrid_io,
  multigrid_savings,
  multigrid_schedules,
  published_accuracy,
  successors,
  transformers,
)
from mgjax import cli

_ROOT = pathlib.Path(__file__).parents[2]
README = _ROOT / 'README.md'
EXPERIMENTS = _ROOT / 'experiments/README.md'
PAGES = _ROOT / 'experiments/pages'
READMES = (
  *(README, EXPERIMENTS, _ROOT / 'docs/data.md', _ROOT / 'docs/speed.md'),
  *sorted(PAGES.glob('*.md')),
)
# Of the tables between marks in those files.
SCRIPTS = (
  claims,
  multigrid_accuracy,
  epoch_factors,
  frames_accuracy,
  frames_ladder,
  multigrid_choices,
  class_balance,
  front,
  judged,
  grid_step_times,
  decode_speed,
  multigrid_grids,
  multigrid_schedules,
  multigrid_savings,
  multigrid_io,
  blvnet_costs,
  activation_memory,
  successors,
  published_accuracy,
  transformers,
  compiled_layouts,
  compile_seconds,
  small_sets,
  own_videos,
  stream_speed,
)


# Those whose pictures stand in these files, as PAGES/NAME.svg.
DRAWN = (
  front,
  epoch_factors,
  multigrid_grids,
  multigrid_schedules,
  blvnet_costs,
)


@functools.cache
def made(script: types.ModuleType) -> tuple[tabulate.Table, ...]:
  """The tables of a script, made once: those of schedules take seconds."""
  return tuple(script.make())


@functools.cache
def contents() -> dict[str, str]:
  """All tables by name, as Markdown."""
  found = {
    'headline': decisions.headline(),
    step_time.EXPERIMENT: step_time.table(step_time.load()),
  }
  for script in SCRIPTS:
    for table in made(script):
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


def path_of(script: types.ModuleType) -> pathlib.Path:
  """Where the picture of a script lies."""
  return PAGES / f'{script.__name__.rpartition(".")[-1]}.svg'


def _mark(script: types.ModuleType) -> str:
  """What a picture of the script's present tables ends with."""
  tables = [contents()[table.name] for table in made(script)]
  digest = hashlib.sha256('\n'.join(tables).encode()).hexdigest()
  return f'<!-- numbers {digest[:16]} -->\n'


def is_drawn(script: types.ModuleType) -> bool:
  """Whether the picture of a script is one of its present tables."""
  path = path_of(script)
  return path.exists() and path.read_text().endswith(_mark(script))


def draw(script: types.ModuleType) -> None:
  """Draws the picture of a script."""
  path = path_of(script)
  script.picture(path)
  lines = [line.rstrip() for line in path.read_text().splitlines()]
  path.write_text('\n'.join(lines) + '\n' + _mark(script))


def _stale(path: pathlib.Path) -> str:
  name = path.relative_to(_ROOT)
  return f'error: {name} is not what schedules and records say; run make tables'


def define_flags(values: flags.FlagValues) -> None:
  text = 'Write nothing; say what is not current.'
  cli.define_flag(values, 'check', bool, False, text)


def main(values: flags.FlagValues) -> None:
  """Runs the command with its flags.

  Raises:
    SystemExit: Something is not current, or a record is not known.
  """
  sys.exit(write(check=values.check))


def rows_of_other_code() -> list[str]:
  """Says which rows of our runs rest on other code than today's, and how old.

  It is not in the tables: they would change with every commit.
  """
  found = []
  for table, runs in catalogue.RUNS.items():
    for run in runs:
      ages = [history.age(entry) for entry in record.load(f'{run.name}-seed*')]
      if told := ', '.join(dict.fromkeys(filter(None, ages))):
        found.append(f'{table}, {run.row!r} ({run.name}-seed*): {told}')
  return found


def write(*, check: bool) -> int:
  """Writes the tables and the pictures.

  Args:
    check: Whether to say on stderr what is not current instead.

  Returns:
    The exit code.
  """
  problems = [
    *record.problems(),
    *step_time.problems(),
    *decode_speed.problems(),
  ]
  if not problems:
    problems = catalogue.mismatches()
  for problem in problems:
    print(f'error: record {problem}', file=sys.stderr)
  if problems:
    return 1
  for row in rows_of_other_code():
    print(f"note: other code than today's: {row}", file=sys.stderr)
  status = 0
  for path in READMES:
    old = path.read_text()
    new = with_tables(old)
    if not check:
      path.write_text(new)
    elif new != old:
      print(_stale(path), file=sys.stderr)
      status = 1
  # Another version of Matplotlib draws other bytes; the numbers count.
  for script in DRAWN:
    if is_drawn(script):
      continue
    if check:
      print(_stale(path_of(script)), file=sys.stderr)
      status = 1
    else:
      draw(script)
  if not check:
    # What runs will cost is kept as well.
    for table in catalogue.RUNS:
      planned.runs_to_make(table, 1)
    costs.save()
  return status
