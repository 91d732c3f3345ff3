"""Text and JSON are read whole or refused; outputs are tried before work."""

import os

import pytest

from mgjax import files
from mgjax.cli import ConfigError


@pytest.mark.parametrize(
  'content,words',
  [
    ('{"a": 1, "a": 2}', "'a' is there twice"),
    ('{"a": ' + 99 * '[' + 99 * ']' + '}', ''),
    ('{"a": ' + 100 * '[' + 100 * ']' + '}', 'more than 100 brackets'),
    ('{"a": ' + 100_000 * '[', 'more than 100 brackets'),
    ('{"a": ' + 5000 * '9' + '}', 'is not JSON'),
    ('{"a": 1', 'is not JSON'),
    ('', 'is not JSON'),
    ('[1]', 'holds a JSON list; it must be an object'),
    (b'\xef\xbb\xbf{"a": 1}', ''),  # As some editors save it.
    (b'{\n"caf\xe9": 1}', 'line 2: byte 0xe9 is no text'),
    ('{"a": 1}'.encode('utf-16'), 'is no text'),
  ],
)
def test_json_that_cannot_be_meant_is_refused(tmp_path, content, words):
  path = tmp_path / 'a.json'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  if not words:
    assert list(files.read_json(path)) == ['a']
    return
  with pytest.raises(ConfigError, match=words) as caught:
    files.read_json(path)
  assert str(path) in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  path.write_text('{}' + 100 * ' ')
  monkeypatch.setattr(files, '_MAX_BYTES', 100)
  with pytest.raises(ConfigError, match='GiB'):
    files.read_json(path)


def test_what_is_no_file_is_not_read(tmp_path):
  for path in (tmp_path, tmp_path / 'no', '/dev/zero'):
    with pytest.raises(ConfigError, match=str(path)):
      files.read_text(path)


def test_a_folder_for_output_is_made_and_tried(tmp_path):
  files.make_folder(tmp_path / 'a/b', '--out=a/b')
  assert list((tmp_path / 'a/b').iterdir()) == []
  (tmp_path / 'file').touch()
  for path in ('file', 'file/b', '/proc/no'):
    with pytest.raises(ConfigError, match='--out=x cannot be written'):
      files.make_folder(tmp_path / path, '--out=x')


def test_a_file_for_output_lies_in_a_folder_and_is_none(tmp_path):
  files.check_output(tmp_path / 'plan.png', '--output=x')
  assert list(tmp_path.iterdir()) == []
  for path, words in ((tmp_path, 'is a folder'), ('no/a', 'is not a folder')):
    with pytest.raises(ConfigError, match=f'--output=x.*{words}'):
      files.check_output(path, '--output=x')


def test_a_file_is_replaced_whole_once_it_is_on_the_disk(tmp_path, monkeypatch):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  at_sync = []
  sync = os.fsync

  def look(number):
    new = os.pread(number, 100, 0).decode()
    at_sync.append((new, path.read_text()))
    sync(number)

  monkeypatch.setattr(os, 'fsync', look)
  files.write_text(path, 'neü')
  assert at_sync == [('neü', 'old')]
  assert path.read_bytes() == 'neü'.encode()
  assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_finished_replaces_nothing(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(RuntimeError, match='half way'):
    with files.replacing(path) as temporary:
      temporary.write_text('ne')
      raise RuntimeError('half way')
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_a_file_are_not_in_each_others_way(tmp_path):
  path = tmp_path / 'a.txt'
  with files.replacing(path) as first, files.replacing(path) as second:
    first.write_text('first')
    second.write_text('second')
  assert path.read_text() == 'first'  # The inner block ended first.
  assert list(tmp_path.iterdir()) == [path]
