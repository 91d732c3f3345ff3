"""How tests have programs compiled: quickly, since each runs a few times.

tests/test_same_parameters.py and the demo have the compiler's own settings.
"""

QUICK = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)
