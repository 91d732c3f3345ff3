"""How far the code has come since a record was made.

Git's history says it. Where there is none (an archive) or not enough (a shallow
clone), nothing is known of a record's code but its commit, and tables are made
all the same.
"""

import contextlib
import functools
import subprocess

from experiments.runs import record

_PACKAGE = 'mgjax'


def code_of(entries: list[dict]) -> str:
  """The code of some records, for a cell of a table.

  Args:
    entries: Loaded records.

  Returns:
    Their commits, '49e0f87, 0901c1d' from the oldest record that says its date;
    '49e0f87*' where files had been changed since that commit.
  """
  names = []
  for entry in sorted(entries, key=lambda entry: entry.get('date', '')):
    commit = entry.get('commit', '')[:7]
    names.append(commit + ('*' if entry.get('changed_files') else ''))
  return ', '.join(dict.fromkeys(names))


def age(entry: dict) -> str:
  """What has become of the package since a record was made.

  Args:
    entry: A loaded record.

  Returns:
    '' where today's package is the record's; else such as '12 commits to mgjax
    since', or why that is not known.
  """
  try:
    today = _today()
  except (OSError, subprocess.CalledProcessError):
    return 'no history to compare with'
  commit = entry.get('commit', '')
  tree = entry.get('package_tree')
  if not tree and not entry.get('changed_files'):  # Records before those trees.
    tree = _tree_of(commit)
  if tree == today:
    return ''
  number = _commits_since(commit)
  if number is None:
    return 'a commit that is not in the history here'
  changed = ' and changes' if entry.get('changed_files') else ''
  return f'{number} commits{changed} to mgjax since'


@functools.cache
def _today() -> str:
  return record.tree_on_disk(_PACKAGE)


@functools.cache
def _tree_of(commit: str) -> str | None:
  with contextlib.suppress(subprocess.CalledProcessError):
    return record.git('rev-parse', '--verify', f'{commit}:{_PACKAGE}')
  return None


@functools.cache
def _commits_since(commit: str) -> int | None:
  with contextlib.suppress(subprocess.CalledProcessError):
    # Not of a commit on another branch, whose distance says nothing.
    record.git('merge-base', '--is-ancestor', commit, 'HEAD')
    span = f'{commit}..HEAD'
    return int(record.git('rev-list', '--count', span, '--', _PACKAGE))
  return None
