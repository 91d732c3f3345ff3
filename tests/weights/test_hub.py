"""Weights from the Hugging Face Hub; nothing is downloaded here."""

import sys
import types

import pytest

from mgjax.errors import ConfigError, RunError
from mgjax.weights import hub


class RepositoryNotFoundError(Exception):
  """As huggingface_hub calls it."""


def fake(monkeypatch, download):
  module = types.SimpleNamespace(snapshot_download=download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', module)


def test_the_files_of_a_repository_are_a_folder(monkeypatch, tmp_path):
  asked = []

  def download(repository, *, revision, allow_patterns):
    asked.append((repository, revision, *allow_patterns))
    if '*.pth' in allow_patterns:
      (tmp_path / 'x.pth').touch()
    return str(tmp_path)

  fake(monkeypatch, download)
  assert hub.local('hf://org/name-b.1@v1') == tmp_path
  # .pth only where there are no .safetensors.
  assert asked[0] == ('org/name-b.1', 'v1', '*.json', '*.safetensors')
  assert '*.pth' in asked[1]
  del asked[:]
  (tmp_path / 'model.safetensors').touch()
  assert hub.local('hf://org/name') == tmp_path
  assert asked == [('org/name', None, '*.json', '*.safetensors')]


def test_a_path_is_not_asked_for(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  assert hub.local(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
  'error,kind,words',
  [
    (RepositoryNotFoundError('404: no such'), ConfigError, '404: no such$'),
    (ConnectionError('no\nroute'), RunError, r'downloaded \(no route\)'),
    (None, ConfigError, 'has no weights'),
  ],
)
def test_what_the_hub_says_is_one_line(
  error, kind, words, monkeypatch, tmp_path
):
  def download(*args, **options):
    if error:
      raise error
    return str(tmp_path)

  fake(monkeypatch, download)
  with pytest.raises(kind, match=f'hf://org/name: .*{words}') as raised:
    hub.local('hf://org/name')
  assert '\n' not in str(raised.value)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ConfigError, match=r"pip install 'mgjax\[hub\]'"):
    hub.local('hf://org/name')


@pytest.mark.parametrize(
  'text', ['hf://name', 'hf://a/b/c', 'hf://a/b@', 'hf://']
)
def test_a_name_of_another_form_is_refused(text):
  with pytest.raises(ConfigError, match='hf://ORGANISATION/NAME@REVISION'):
    hub.local(text)
