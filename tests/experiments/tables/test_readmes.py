"""The READMEs show every table as schedules and records have it."""

import csv
import re
import sys
import types

import pytest

from experiments import tabulate
from experiments.bench import decode_speed, step_time
from experiments.runs import catalogue, record, settings
from experiments.tables import claims, readmes
from tests.experiments.rows import rows_of

DIGITS = 'configs/moving_digits.py:grid=none,seed=0'


def test_all_tables_are_current(no_counting, capsys):
  assert readmes.write(check=True) == 0, capsys.readouterr().err


def test_every_table_stands_in_a_readme():
  shown = [n for p in readmes.READMES for n in readmes.names_in(p.read_text())]
  assert sorted(shown) == sorted(readmes.contents())


def test_a_changed_number_is_noticed(monkeypatch, tmp_path, capsys):
  readmes.contents()  # Records are read before reading is another thing.
  text = (readmes.PAGES / 'blvnet_tam.md').read_text()
  path = readmes.PAGES / 'changed.md'
  monkeypatch.setattr(
    type(path), 'read_text', lambda self: text.replace('18,048', '18,049')
  )
  monkeypatch.setattr(readmes, 'READMES', (path,))
  monkeypatch.setattr(readmes, 'DRAWN', ())
  for module in (record, step_time, decode_speed):
    monkeypatch.setattr(module, 'problems', lambda: [])
  monkeypatch.setattr(catalogue, 'mismatches', lambda: [])
  assert readmes.write(check=True) == 1
  assert 'is not what schedules and records say' in capsys.readouterr().err


def test_a_picture_of_other_numbers_is_noticed_and_drawn_again(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(readmes, 'PAGES', tmp_path)
  drawn = []

  def picture(path):
    drawn.append(path)
    path.write_text('<svg>\n</svg>\n')

  def script_of(table):
    script = types.ModuleType('experiments.tables.digits')
    script.make = lambda: [tabulate.Table(table, (), ())]
    script.picture = picture
    return script

  script = script_of('blvnet_ratios')
  assert not readmes.is_drawn(script)
  readmes.draw(script)
  assert readmes.is_drawn(script)
  assert drawn == [tmp_path / 'digits.svg']
  # Its tables are others now.
  assert not readmes.is_drawn(script_of('tam_overhead'))


def test_every_claim_has_a_status_and_is_known_if_it_is_exact(made):
  rows = rows_of(made['claims'])
  assert {row['status'] for row in rows} <= {
    *(
      'exact',
      'measured on generated data',
      'needs data',
      'unknown',
      'measured',
    )
  }
  for row in rows:
    assert bool(row['here']) == row['status'].startswith(('exact', 'measured'))
    assert row['page']
  assert len(rows) >= 18


def test_a_claim_without_records_is_unknown(monkeypatch, tmp_path):
  monkeypatch.setattr(record, 'RECORDS', tmp_path)
  (table,) = claims.make()
  found = {row['status'] for row in rows_of(table)}
  assert found == {'exact', 'needs data', 'unknown'}


def test_an_unknown_table_is_refused():
  with pytest.raises(ValueError, match='no table misspelt; known are'):
    readmes.with_tables('<!-- table misspelt -->\n<!-- end misspelt -->')


@pytest.mark.parametrize('script', readmes.SCRIPTS, ids=lambda s: s.__name__)
def test_a_script_prints_markdown_and_writes_csv_and_pictures(
  script, made, no_counting, monkeypatch, tmp_path, capsys
):
  name = script.__name__.split('.')[-1]
  monkeypatch.setattr(sys, 'argv', [f'{name}.py', f'--out={tmp_path}'])
  picture = getattr(script, 'picture', None)
  assert tabulate.main(script.make, picture) == 0
  printed = capsys.readouterr().out
  files = sorted(tmp_path.glob('*.csv'))
  assert files
  for path in files:
    table = made[path.stem]
    assert tabulate.markdown(table) in printed
    with path.open(newline='') as file:
      assert [tuple(line) for line in csv.reader(file)] == [
        table.columns,
        *table.rows,
      ]
  assert (tmp_path / f'{name}.png').exists() == (picture is not None)


def other_rate(entry, stored):
  stored['optim']['base_lr'] = 0.5
  entry['config_hash'] = settings.config_hash(stored)


@pytest.mark.parametrize(
  'change,message',
  [
    (other_rate, 'its config .* is not that of configs/moving_digits.py'),
    (
      lambda entry, stored: stored['optim'].update(base_lr=0.5),
      'its config .* is not that of',
    ),
    (
      lambda entry, stored: entry.update(config='configs/gone.py'),
      'its config .* is not that of configs/gone.py',
    ),
    (
      lambda entry, stored: entry['data'].update(fingerprint='0' * 16),
      'fingerprint 0000000000000000 is not in data_sets.csv',
    ),
    (lambda entry, stored: entry.pop('data'), 'lacks data'),
  ],
)
def test_the_tables_fail_on_a_record_that_is_not_known(
  records, change, message, capsys
):
  records('digits/a', DIGITS, change=change)
  assert readmes.write(check=True) == 1
  assert re.search(
    f'error: record digits/a: .*{message}', capsys.readouterr().err
  )
