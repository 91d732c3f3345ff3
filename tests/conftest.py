"""Fixtures that several test modules share."""

import os
import tempfile

from tests import compiling

# Before JAX starts. Two devices, so that every test of training is one of
# data parallelism too; compiled programs are shared by all tests.
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} {compiling.QUICK} '
  '--xla_force_host_platform_device_count=2'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'PYTEST_XDIST_WORKER' not in os.environ:  # Workers inherit the folder.
  _PROGRAMS = tempfile.TemporaryDirectory(prefix='mgjax-programs-')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _PROGRAMS.name

import pytest  # noqa: E402

from configs import moving_digits as config_file  # noqa: E402
from mgjax.data import moving_digits  # noqa: E402

# A worker has the whole of a file: those that take minutes begin first.
_FIRST = (
  'tests/test_readme.py',
  'tests/run/test_resume.py',
  'tests/weights/test_import_weights.py',
  'tests/data/test_read_ahead.py',
  'tests/models/test_vit.py',
  'tests/experiments/tables/test_readmes.py',
  'tests/run/test_train.py',
)


def pytest_collection_modifyitems(items):
  """Puts the tests of these files before all others."""
  rank = {name: i for i, name in enumerate(_FIRST)}
  items.sort(key=lambda t: rank.get(t.nodeid.partition('::')[0], len(rank)))


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """Folder with the data set of `tiny_config`."""
  folder = tmp_path_factory.mktemp('data')
  moving_digits.prepare(folder, 'motion_tiny', num_workers=2, progress=False)
  return folder


@pytest.fixture
def tiny_config(data_dir):
  """A config whose training takes seconds; unlocked, for tests to change."""
  config = config_file.get_config('grid=both,size=tiny')
  config.data.dir = str(data_dir)
  config.unlock()
  return config
