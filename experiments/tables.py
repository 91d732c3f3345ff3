"""Writes the tables of the README from the records.

python -m experiments.tables          writes them
python -m experiments.tables --check  exit code 1 where a table is not current
"""

import pathlib
import statistics
import sys

from experiments import compare, record

README = pathlib.Path(__file__).parent.parent / 'README.md'


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


TABLES = {
  'moving_digits': lambda: multigrid_table(record.load(compare.EXPERIMENT)),
}


def with_tables(text: str) -> str:
  """Replaces what stands between the marks of each table.

  Raises:
    ValueError: A mark is missing.
  """
  for name, make in TABLES.items():
    begin, end = f'<!-- table {name} -->', f'<!-- end {name} -->'
    if begin not in text or end not in text:
      raise ValueError(f'README.md lacks {begin} or {end}.')
    before, rest = text.split(begin)
    _, after = rest.split(end)
    text = f'{before}{begin}\n{make()}\n{end}{after}'
  return text


def main(argv: list[str]) -> int:
  old = README.read_text()
  new = with_tables(old)
  if '--check' in argv:
    if new != old:
      print('README.md is not what the records say; run make tables')
      return 1
    return 0
  README.write_text(new)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
