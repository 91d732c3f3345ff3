"""The README's tables are what the records say."""

from experiments import tables


def entry(mode, top1, train_s):
  return {
    'summary': {
      'mode': mode,
      'top1': top1,
      'steps': 10,
      'clips': 100,
      'train_s': train_s,
      'compile_s': 5,
      'eval_s': 1,
      'predicted_speedup': {'macs': 3.0},
    }
  }


def test_the_table_shows_mean_deviation_and_speedup_by_hand():
  table = tables.multigrid_table(
    [
      entry('both', 80, 20),
      entry('both', 82, 30),
      entry('none', 70, 100),
      entry('none', 74, 100),
    ]
  )
  none, both = table.splitlines()[2:]
  assert '72.0 ± 2.8' in none and '| 1.00 |' in none
  assert '81.0 ± 1.4' in both and '| 4.00 |' in both and '| 3.00 |' in both


def test_the_readme_is_current():
  text = tables.README.read_text()
  assert tables.with_tables(text) == text
