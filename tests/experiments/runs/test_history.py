"""Rows say which code made them, and the tables what has changed since."""

import subprocess

import pytest

from experiments.runs import history, record
from experiments.tables import readmes


@pytest.fixture
def repository(monkeypatch, tmp_path):
  """Returns a function that commits a text of mgjax and gives the commit."""
  folder = tmp_path / 'repository'
  (folder / 'mgjax').mkdir(parents=True)
  monkeypatch.setattr(record, '_ROOT', folder)

  def run(*arguments):
    subprocess.run(['git', *arguments], cwd=folder, check=True)

  def commit(text, name='mgjax/a.py'):
    (folder / name).write_text(text)
    run('add', '.')
    author = ('-c', 'user.name=a', '-c', 'user.email=a@b')
    run(*author, 'commit', '--quiet', '--message=x')
    for cached in (history._today, history._tree_of, history._commits_since):
      cached.cache_clear()
    return record.git('rev-parse', 'HEAD')

  run('init', '--quiet')
  yield commit
  for cached in (history._today, history._tree_of, history._commits_since):
    cached.cache_clear()


def test_a_record_is_as_old_as_the_commits_to_the_package(repository):
  first = {'commit': repository('1'), 'changed_files': ''}
  assert history.age(first) == ''
  repository('a page', 'README.md')
  assert history.age(first) == ''
  repository('2')
  repository('3')
  assert history.age(first) == '2 commits to mgjax since'
  # The same code again is the same code.
  repository('1')
  assert history.age(first) == ''


def test_a_record_that_says_its_tree_is_known_by_that(repository):
  commit = repository('1')
  tree = record.tree_on_disk('mgjax')
  entry = {'commit': commit, 'changed_files': ' M mgjax/a.py'}
  assert history.age({**entry, 'package_tree': tree}) == ''
  assert history.age({**entry, 'package_tree': 'other'}) == (
    '0 commits and changes to mgjax since'
  )
  # Without, changed files may be anything.
  assert history.age(entry) == '0 commits and changes to mgjax since'


def test_a_commit_of_another_branch_has_no_distance(repository):
  first = repository('1')
  entry = {'commit': repository('2'), 'changed_files': ''}
  record.git('reset', '--quiet', '--hard', first)
  repository('3')
  assert history.age(entry) == 'a commit that is not in the history here'


def test_without_enough_history_nothing_is_known_but_the_commit(
  repository, monkeypatch, tmp_path
):
  repository('1')
  entry = {'commit': 'a' * 40, 'changed_files': ''}
  assert history.age(entry) == 'a commit that is not in the history here'
  monkeypatch.setattr(record, '_ROOT', tmp_path)  # No repository.
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
  history._today.cache_clear()
  assert history.age(entry) == 'no history to compare with'
  assert history.code_of([entry]) == 'aaaaaaa'


def test_a_row_names_all_commits_of_its_records_once():
  entries = [
    {'commit': 'b' * 40, 'date': '2026-12-02T00:00:00Z'},
    {
      'commit': 'a' * 40,
      'date': '2026-12-01T00:00:00Z',
      'changed_files': 'M x',
    },
    {'commit': 'b' * 40, 'date': '2026-12-03T00:00:00Z'},
  ]
  assert history.code_of(entries) == 'aaaaaaa*, bbbbbbb'
  assert history.code_of([{}]) == ''


def test_the_tables_name_rows_of_other_code(records, monkeypatch):
  records('moving_digits/none-seed0', 'configs/moving_digits.py:grid=none')
  monkeypatch.setattr(history, 'age', lambda entry: '3 commits to mgjax since')
  assert readmes.rows_of_other_code() == [
    "moving_digits, 'none' (moving_digits/none-seed*): 3 commits to mgjax since"
  ]
  monkeypatch.setattr(history, 'age', lambda entry: '')
  assert readmes.rows_of_other_code() == []
