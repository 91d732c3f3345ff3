"""Programs are compiled with what their backend needs."""

import jax
import jax.numpy as jnp

from mgjax.cpu import folded
from mgjax.models import conv
from mgjax.step import compilation


def test_what_is_materialized_is_not_computed_again_for_each_reader():
  def readers(x):
    y = folded.materialize(x * 2 + x[0])
    return y + 1, jnp.tanh(y).T

  x = jnp.arange(12.0).reshape(3, 4)
  program = compilation.compile_program(jax.jit(readers).lower(x))
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
  monkeypatch.setattr(
    compilation, '_CPU_OPTIONS', accepted | {'xla_cpu_of_another_year': '1'}
  )
  compilation.options.cache_clear()
  try:
    assert compilation.options() == accepted
    program = compilation.compile_program(jax.jit(lambda x: x + 1).lower(1.0))
    assert program(1.0) == 2
  finally:
    compilation.options.cache_clear()
