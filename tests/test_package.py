"""mgjax installs, and works far from its checkout."""

import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import pytest

import mgjax

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']


def requirements(name):
  """The requirements in a file, without comments, and the files it names."""
  lines = (ROOT / name).read_text().splitlines()
  lines = [re.split(r'(?:^|\s+)#', line)[0].strip() for line in lines]
  files = {line[3:].strip() for line in lines if line.startswith('-r ')}
  return {line for line in lines if line and not line.startswith('-r ')}, files


def test_requirements_txt_and_the_package_say_the_same():
  wanted = {*PROJECT['dependencies'], *EXTRAS['test'], *EXTRAS['examples']}
  assert requirements('requirements.txt') == (wanted, set())


@pytest.mark.parametrize('extra', ['beam', 'cuda', 'hub', 'onnx', 'tpu'])
def test_the_requirements_of_an_extra_say_the_same(extra):
  wanted = (set(EXTRAS[extra]), {'requirements.txt'})
  assert requirements(f'requirements-{extra}.txt') == wanted


def run(command, cwd, **environment):
  """Runs a command as a user does: nothing of this process leads to ROOT."""
  inherited = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  result = subprocess.run(
    list(map(str, command)),
    cwd=cwd,
    env={**inherited, 'PIP_DISABLE_PIP_VERSION_CHECK': '1', **environment},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  return result.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Built without a network: the build backend is one of the requirements."""
  folder = tmp_path_factory.mktemp('wheel')
  options = ['--no-deps', '--no-index', '--no-build-isolation', '--quiet']
  run([sys.executable, '-m', 'pip', 'wheel', ROOT, *options], cwd=folder)
  (path,) = folder.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
  """Of a new environment with the wheel, and this environment's packages."""
  folder = tmp_path_factory.mktemp('environment')
  run([sys.executable, '-m', 'venv', '--without-pip', folder], cwd=folder)
  python = folder / 'bin' / 'python'
  pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet']
  run([*pip, '--no-deps', '--no-index', wheel], cwd=folder)
  (site,) = folder.glob('lib/python*/site-packages')
  # Instead of minutes of downloads. What is installed there comes first.
  (site / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
  return python


@pytest.fixture
def elsewhere(tmp_path):
  """A project with a package `configs` of its own."""
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / '__init__.py').write_text('raise SystemExit(9)\n')
  return tmp_path


def test_the_wheel_holds_the_package_and_the_recipes_only(wheel):
  with zipfile.ZipFile(wheel) as file:
    names = {name for name in file.namelist() if '.dist-info/' not in name}
  here = {
    str(path.relative_to(ROOT))
    for ending in ('py', 'txtpb')  # Descriptions of GPUs.
    for path in (ROOT / 'mgjax').rglob(f'*.{ending}')
  } | {
    f'mgjax/{path.relative_to(ROOT)}'
    for path in (ROOT / 'configs').rglob('*.py')
  }
  assert names == here


def test_an_installed_mgjax_says_its_version_and_where_its_fields_are(
  python, elsewhere
):
  script = """
import importlib.metadata, pathlib
import mgjax
from mgjax.config import config_file, schedule_files
print(mgjax.__file__)
print(mgjax.__version__, importlib.metadata.version('mgjax'))
print(pathlib.Path(config_file.fields_path()).is_file())
print(*config_file.recipes())
print(*schedule_files.schedules())
"""
  where, versions, fields, recipes, schedules = run(
    [python, '-c', script], cwd=elsewhere
  ).splitlines()
  assert pathlib.Path(where).is_relative_to(python.parent.parent)
  assert versions.split() == [mgjax.__version__] * 2
  assert fields == 'True'
  assert recipes.split() == sorted(
    path.stem for path in ROOT.glob('configs/[a-z]*.py')
  )
  assert schedules.split() == sorted(
    path.stem for path in ROOT.glob('configs/schedules/*.py')
  )


def test_an_installed_mgjax_plans_and_trains_beside_another_configs(
  python, elsewhere, data_dir
):
  plan = [python, '-m', 'mgjax.plan', '--config=kinetics400:grid=both']
  assert 'kinetics400, slowfast, grid.mode=both' in run(plan, cwd=elsewhere)
  table = ['--config=kinetics400:grid=table', '--config.grid.table=tpt']
  assert 'grid.mode=table' in run([*plan[:3], *table], cwd=elsewhere)
  # On one grid: three programs to compile instead of ten.
  recipe = 'moving_digits:size=tiny,grid=none'
  train = [python, '-m', 'mgjax.train', f'--config={recipe}']
  run([*train, '--workdir=run', f'--config.data.dir={data_dir}'], cwd=elsewhere)
  run([python, '-m', 'mgjax.evaluate', '--workdir=run'], cwd=elsewhere)
  assert (elsewhere / 'run' / 'eval.json').is_file()


@pytest.mark.slow
def test_pip_installs_it_with_its_dependencies_in_an_empty_environment(
  wheel, elsewhere, tmp_path_factory
):
  folder = tmp_path_factory.mktemp('empty')
  run([sys.executable, '-m', 'venv', folder], cwd=folder)
  python = folder / 'bin' / 'python'
  run([python, '-m', 'pip', 'install', '--quiet', wheel], cwd=folder)
  for module in ('plan --config=kinetics400:grid=both', 'train --help'):
    run([python, '-m', *f'mgjax.{module}'.split()], cwd=elsewhere)
