"""Programs are compiled with what their backend needs."""

import jax
import jax.numpy as jnp
import pytest

from mgjax.cpu import folded
from mgjax.models import conv
from mgjax.step import compilation


def test_what_is_materialized_is_not_computed_again_for_each_reader():
  def readers(x):
    y = folded.materialize(x * 2 + x[0])
    return y + 1, jnp.tanh(y).T

  x = jnp.arange(12.0).reshape(3, 4)
  program = compilation.compile_program(jax.jit(readers).lower(x), 'cpu')
  assert 'opt-barrier' in program.as_text()
  for found, expected in zip(program(x), readers(x), strict=True):
    assert jnp.allclose(found, expected, rtol=1e-6, atol=0)


def test_relu_has_no_gradient_where_it_is_zero():
  x = jnp.array([-1.0, 0.0, 2.0])
  y, vjp = jax.vjp(conv.relu, x)
  assert y.tolist() == [0, 0, 2]
  assert vjp(jnp.ones(3))[0].tolist() == [0, 0, 1]


def test_options_that_xla_does_not_have_are_left_out(monkeypatch):
  accepted = {'xla_disable_hlo_passes': 'cse_barrier_expander'}
  table = {'cpu': accepted | {'xla_cpu_of_another_year': '1'}}
  monkeypatch.setattr(compilation, '_OPTIONS', table)
  compilation.options.cache_clear()
  try:
    assert compilation.options('cpu') == accepted
    program = compilation.compile_program(
      jax.jit(lambda x: x + 1).lower(1.0), 'cpu'
    )
    assert program(1.0) == 2
  finally:
    compilation.options.cache_clear()


def test_what_the_user_tells_the_compiler_stands(monkeypatch):
  level = 'xla_backend_optimization_level'
  monkeypatch.setenv('XLA_FLAGS', '')
  compilation.options.cache_clear()
  try:
    assert compilation.options('cpu')[level] == 2
    monkeypatch.setenv('XLA_FLAGS', f'--xla_dump_to= --{level}=1')
    compilation.options.cache_clear()
    told = compilation.options('cpu')
    assert level not in told and 'xla_disable_hlo_passes' in told
  finally:
    monkeypatch.undo()
    compilation.options.cache_clear()


@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_the_compilers_of_other_devices_are_not_told_what_cpus_need(platform):
  assert compilation.options('cpu')
  told = {**compilation.options(platform), **compilation.options_once(platform)}
  assert not told.keys() & {
    *compilation.options('cpu'),
    *compilation.options_once('cpu'),
  }


def test_an_option_for_a_device_that_is_elsewhere_is_told(monkeypatch):
  option = {'xla_gpu_force_conv_nhwc': 'true'}
  monkeypatch.setattr(compilation, '_OPTIONS', {'tpu': option})
  compilation.options.cache_clear()
  try:
    assert compilation.options('tpu') == option
  finally:
    compilation.options.cache_clear()
