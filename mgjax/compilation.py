"""Compiles programs, each with what its backend needs to make it fast."""

import jax

# An XLA pass that removes `lax.optimization_barrier` before fusion. Without it
# a barrier means: write this to memory (models/conv.py, `materialize`). The
# steps of TSN-R50 and bLVNet-TAM-50 take 6 % less time so on two cores. A name
# that XLA does not know is ignored.
_CPU_OPTIONS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}


def compile_program(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles a lowered program for the default backend."""
  options = _CPU_OPTIONS if jax.default_backend() == 'cpu' else None
  return lowered.compile(compiler_options=options)
