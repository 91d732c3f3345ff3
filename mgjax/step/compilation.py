"""Compiles programs, each with what its backend needs to make it fast."""

import functools
from typing import Any

import jax

_CPU_OPTIONS = {
  # An XLA pass that removes `lax.optimization_barrier` before fusion. Without
  # it a barrier means: write this to memory (folded.py, `materialize`).
  'xla_disable_hlo_passes': 'cse_barrier_expander',
  # What XLA:CPU gives to the library YNNPACK: of its default list, all but
  # convolutions. YNNPACK's take one core below 128 outputs, and their kernels'
  # gradients are slow; Eigen's take all cores (folded.py has times).
  'xla_cpu_experimental_ynn_fusion_type': (
    'LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'
  ),
}


def compile_program(lowered: Any) -> Any:
  """Compiles a lowered program for the default backend.

  Args:
    lowered: A jax.stages.Lowered, or what wraps one as nnx.jit's does.

  Returns:
    A jax.stages.Compiled, or what wraps it.
  """
  return lowered.compile(compiler_options=options() or None)


# What runs once takes longer to compile than to run.
_ONCE_OPTIONS = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


@functools.cache
def options_once() -> dict[str, int | bool]:
  """What the compiler is told of a program that runs once."""
  if jax.default_backend() != 'cpu':
    return {}
  return {
    name: value
    for name, value in _ONCE_OPTIONS.items()
    if _is_accepted({name: value})
  }


@functools.cache
def options() -> dict[str, str]:
  """What the default backend's compiler is told.

  The options are not part of JAX's interface: another version may drop one, and
  then programs are slower but the same. So each is tried, once per process.
  """
  if jax.default_backend() != 'cpu':
    return {}
  return {
    name: value
    for name, value in _CPU_OPTIONS.items()
    if _is_accepted({name: value})
  }


def _is_accepted(options: dict[str, str | int | bool]) -> bool:
  try:
    jax.jit(lambda: 0).lower().compile(compiler_options=options)
  except jax.errors.JaxRuntimeError:
    return False
  return True
