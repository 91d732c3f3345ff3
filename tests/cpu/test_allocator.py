"""Memory that a program frees is there for its next call."""

import subprocess
import sys
import types

import pytest

from mgjax.cpu import allocator

# Prints the page faults of a call that needs 108 MB of temporary arrays: the
# fewest of several, as a thread that was idle so far meets fresh memory, too.
PROGRAM = """
import resource, sys
import jax
import jax.numpy as jnp
from mgjax.cpu import allocator

if sys.argv[1] == 'keep':
  assert allocator.keep()
f = jax.jit(lambda x: ((x @ x) * jnp.tanh(x) @ x).sum())
x = jnp.ones((3000, 3000))
counts = []
for _ in range(6):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  f(x).block_until_ready()
  counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts))
"""


def page_faults(mode):
  result = subprocess.run(
    [sys.executable, '-c', PROGRAM, mode],
    capture_output=True,
    text=True,
    check=True,
  )
  return int(result.stdout)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc only')
def test_a_program_reuses_the_memory_of_its_last_call():
  # The fewest of several processes, too: in one of many, a thread of the pool
  # had 36 MB of its own at every call, which `keep` does not promise to hold.
  kept = min(page_faults('keep') for _ in range(3))
  assert kept < page_faults('leave') / 100


@pytest.mark.parametrize(
  'platforms,uses_cpu', [('cpu', True), ('cuda', False), ('cuda,cpu', False)]
)
def test_an_accelerator_is_left_alone(monkeypatch, platforms, uses_cpu):
  config = types.SimpleNamespace(jax_platforms=platforms)
  monkeypatch.setattr(allocator, 'jax', types.SimpleNamespace(config=config))
  assert allocator.will_use_cpu() is uses_cpu
