"""Which version of a data set a name means."""

import pytest

from mgjax.config import own
from mgjax.data import description
from mgjax.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
  """Folder of data sets: versions of a/b, and what is no version."""
  for version in ('2.0.0', '10.0.0', '9.0.0'):
    path = tmp_path / 'a/b' / version
    path.mkdir(parents=True)
    (path / 'dataset_info.json').touch()
  (tmp_path / 'a/b/11.0.0').mkdir()  # Unfinished.
  return tmp_path


@pytest.mark.parametrize(
  'name,version', [('a/b', '10.0.0'), ('a/b:2.0.0', '2.0.0')]
)
def test_a_name_means_the_newest_version_or_that_which_it_says(
  folder, name, version
):
  assert description.needed_folder(folder, name).name == version
  assert not own.is_own(name)


@pytest.mark.parametrize('name', ['a', 'a/c', 'a/b:1.0.0', 'a/b:11.0.0'])
def test_a_version_that_is_not_there_is_none(folder, name):
  assert description.folder_of(folder, name) is None


def test_an_error_names_the_versions_that_are_there(folder):
  with pytest.raises(
    ConfigError, match=r'a/b/3\.0\.0; there is version 2.0.0, 9.0.0, 10.0.0$'
  ):
    description.needed_folder(folder, 'a/b:3.0.0')


def test_an_error_says_how_to_prepare_what_has_no_version(tmp_path):
  with pytest.raises(
    ConfigError, match=r'moving_digits --config=motion --out=/'
  ):
    description.needed_folder(tmp_path, 'moving_digits/motion:1.0.0')
