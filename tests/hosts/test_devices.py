"""A device that is not there is an error of the settings, not a bug."""

import jax
import pytest

from mgjax import cli, import_weights, replay
from mgjax.cli import ConfigError
from mgjax.hosts import parallel
from mgjax.run import replaying
from mgjax.weights import command


@pytest.fixture
def no_device(monkeypatch):
  # What JAX says, word for word.
  error = RuntimeError(
    "Unable to initialize backend 'cuda': no device found (you may need to "
    'uninstall the failing plugin package, or set JAX_PLATFORMS=cpu to skip '
    'this backend.)'
  )
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')

  def fail(*unused):
    raise error

  monkeypatch.setattr(jax, 'devices', fail)


def test_the_platform_and_the_reason_are_named(no_device):
  with pytest.raises(ConfigError) as caught:
    parallel.make_mesh()
  assert str(caught.value).startswith(
    "JAX finds no device for JAX_PLATFORMS='cuda' (Unable to initialize "
    "backend 'cuda': no device found); leave it unset"
  )


def test_a_platform_that_is_not_installed_is_an_assertion_of_jax(monkeypatch):
  def fail(*unused):
    raise AssertionError

  monkeypatch.setattr(jax, 'devices', fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
  with pytest.raises(ConfigError, match="JAX_PLATFORMS='tpu'; leave it unset"):
    parallel.find_devices()


@pytest.mark.parametrize('name', ['replay', 'import_weights'])
def test_commands_ask_before_they_work(no_device, name, tmp_path, capsys):
  config = '--config=configs/moving_digits.py:size=tiny'
  if name == 'replay':
    (tmp_path / 'failure.json').write_text('{}')
    argv = ['replay', config, f'--bundle={tmp_path}']
    code = cli.run(replaying.main, replay.define_flags, argv)
  else:
    argv = ['import_weights', config, 'x.pth', f'--out={tmp_path / "out"}']
    code = cli.run(
      command.main,
      import_weights.define_flags,
      argv,
      arguments='FILE',
    )
  assert code == 2
  said = capsys.readouterr().err
  assert said.startswith('error: JAX finds no device') and said.count('\n') == 1
