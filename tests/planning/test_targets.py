"""Devices that programs are compiled for without being there."""

import os

import pytest

from mgjax.errors import ConfigError
from mgjax.planning import targets


@pytest.fixture
def nothing_installed(monkeypatch):
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: None)


@pytest.fixture
def all_installed(monkeypatch):
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('XLA_FLAGS', '--xla_a=1')
  for name in targets._ENVIRONMENT:
    monkeypatch.setenv(name, '')
    monkeypatch.delenv(name)


@pytest.mark.parametrize(
  'name',
  [
    *('', 'v9:2x4', 'v5e', 'v5e:8', 'v5e:2x0', 'v5e:2x2x2x2', 'V5e:2x4'),
    *('h100', 'h100x0', 'h100x', 'b200x8', 'h100:2x4', 'cpux8', 'gpu'),
  ],
)
def test_an_unknown_target_lists_what_is_accepted(name):
  with pytest.raises(ConfigError, match="accepted are 'cpu'.*v5e:2x4.*h100x8"):
    targets.prepare(name)


@pytest.mark.parametrize(
  'name,package',
  [
    ('v5e:2x4', r'jax\[tpu\]'),
    ('v4:2x2x1', r'jax\[tpu\]'),
    ('a100x8', r'jax\[cuda12\]'),
  ],
)
def test_a_compiler_that_is_not_installed_is_named(
  name, package, nothing_installed
):
  with pytest.raises(ConfigError, match=f"{name}.*pip install '{package}'"):
    targets.prepare(name)


def test_gpus_of_several_hosts_are_whole_hosts(all_installed):
  targets.prepare('h100x16')
  with pytest.raises(ConfigError, match='h100x12: .* whole hosts of 8'):
    targets.prepare('h100x12')


def test_the_environment_of_a_gpu_leaves_the_users_flags_the_last_word(
  all_installed,
):
  targets.prepare('h100x8')
  flags = os.environ['XLA_FLAGS'].split()
  assert '--xla_gpu_autotune_level=0' in flags
  assert flags[-1] == '--xla_a=1'


def test_the_environment_of_a_tpu_asks_no_server(all_installed):
  targets.prepare('v5e:2x4')
  assert os.environ['TPU_SKIP_MDS_QUERY'] == '1'
  assert os.environ['XLA_FLAGS'] == '--xla_a=1'


@pytest.mark.parametrize(
  'kind,gib', [('a100', 79.3), ('h100', 79.1), ('h200', 141.0)]
)
def test_a_gpu_has_the_memory_of_its_description(kind, gib, monkeypatch):
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '1')
  text = targets.gpu_description(kind)
  assert text.startswith('# From github.com/openxla/xla')
  found = targets._gpu_target(f'{kind}x8', text, ())
  assert found.device_bytes / 2**30 == pytest.approx(gib, abs=0.1)
  assert found.rates.bfloat16_flops == 2 * found.rates.float32_flops
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION')
  # What JAX takes, where nothing else is said.
  share = targets._gpu_target(f'{kind}x8', text, ()).device_bytes
  assert share == pytest.approx(0.75 * found.device_bytes, abs=1)


@pytest.mark.parametrize(
  'kind,teraflops',
  [
    ('NVIDIA H200', 989.4),
    ('NVIDIA A100-SXM4-80GB', 312.0),
    ('TPU v5 lite', 197.0),
    ('TPU v5', 459.0),
    ('cpu', 0.0),
    ('NVIDIA H20', 0.0),
  ],
)
def test_rates_are_found_by_what_jax_calls_a_device(kind, teraflops):
  assert targets.bfloat16_flops(kind) == teraflops * 1e12
