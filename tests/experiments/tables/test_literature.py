"""Published numbers have a source and a certainty."""

import csv

import pytest

from experiments.tables import literature
from mgjax.recipes import segments
from tests.experiments.rows import rows_of


def test_a_published_number_has_its_source_in_its_row(made):
  for table in made.values():
    published = [c for c in table.columns if '[published]' in c]
    assert bool(published) == ('source' in table.columns), table.name
    for row in rows_of(table):
      known = any(row[column] for column in published)
      for column in ('source', 'how sure') if published else ():
        assert bool(row[column]) == known, (table.name, row)


def test_every_published_number_is_in_a_table(made):
  with literature.FILE.open(newline='') as file:
    for line in csv.DictReader(file):
      # End epochs are a row each.
      values = line['value'].split(', ' if 'epochs' in line['column'] else '\n')
      for value in values:
        assert any(
          any(cell == value or cell.endswith(f': {value}') for cell in row)
          and any(line['source'] in cell for cell in row)
          for row in made[line['table']].rows
        ), line


def test_every_published_number_has_one_of_four_certainties():
  with literature.FILE.open(newline='') as file:
    found = [line['certainty'] for line in csv.DictReader(file)]
  assert set(found) == {'primary', 'third party', 'hearsay', 'inferred'}


@pytest.mark.parametrize(
  'quotes,allowed',
  [
    ('leaderboard', {'hearsay'}),
    (' issue ', {'hearsay'}),
    ('notes on', {'hearsay'}),
    ('review of', {'hearsay'}),
    ('open-mmlab/', {'third party'}),
    ('PaddlePaddle/', {'third party'}),
    # Its networks of others' papers are not primary.
    ('SlowFast 287ec00', {'primary', 'third party'}),
  ],
)
def test_who_says_a_number_decides_how_sure_it_is(quotes, allowed):
  with literature.FILE.open(newline='') as file:
    found = [line for line in csv.DictReader(file) if quotes in line['source']]
  assert found
  assert {line['certainty'] for line in found} == allowed


def test_sources_have_their_certainties_in_their_order():
  cells = [
    literature.Published('1', 'paper', 'primary'),
    literature.Published('2', 'issue', 'hearsay'),
    literature.Published('3', 'its code', 'primary'),
  ]
  assert literature.sources(cells) == (
    'paper; issue; its code',
    'primary; hearsay; primary',
  )
  assert literature.sources(cells[::2]) == ('paper; its code', 'primary')
  assert literature.sources([literature.BLANK]) == ('', '')


def test_a_certainty_that_is_none_is_refused(monkeypatch, tmp_path):
  path = tmp_path / 'published.csv'
  path.write_text(
    'table,row,column,value,source,certainty\nt,r,c,1,somewhere,surely\n'
  )
  monkeypatch.setattr(literature, 'FILE', path)
  with pytest.raises(ValueError, match="certainty 'surely'; accepted are"):
    literature.cells('t')


def test_rows_with_a_network_are_rows_of_the_published_table():
  table = 'something_something_blvnet'
  networks = literature.networks(table)
  assert set(networks) == {row for row, _ in literature.cells(table)}
  assert networks['bLVNet-TAM-101 32x2'] == ('blvnet_tam_101', 64) + (
    'bLVNet-TAM-101',
  )
  # Of a network that costs.py does not know, a row says no cost.
  assert networks['I3D-R50 32, 2 x 3 views'].model == ''
  known = {network.model for network in networks.values() if network.model}
  assert known <= set(segments.MODELS)


def test_what_users_report_of_broken_weights_is_not_drawn():
  networks = literature.networks('something_something_blvnet')
  undrawn = [row for row, network in networks.items() if not network.curve]
  assert [row for row in undrawn if networks[row].model] == [
    'bLVNet-TAM-101 8x2, by users, ImageNet weights not loaded'
  ]
