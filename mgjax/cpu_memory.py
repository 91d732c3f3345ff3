"""Keeps the memory that one training step frees for the next, on CPUs.

XLA's CPU backend allocates the temporary arrays of a program anew at every
call. glibc takes allocations of that size from the kernel and gives them back,
so every step begins with fresh, zeroed pages: for TSN-R50 at 2 x 16 x 112^2,
198,000 page faults and 0.45 of 4.2 CPU seconds per step; none with `keep`.
"""

import ctypes
import importlib.metadata
import importlib.util

import jax

# <malloc.h>: parameters of mallopt and their values here.
_OPTIONS = {
  'M_ARENA_MAX': (-8, 1),  # Other arenas cannot grow beyond 64 MB.
  'M_MMAP_MAX': (-4, 0),  # No allocation is a mapping of its own.
  'M_TRIM_THRESHOLD': (-1, 2**31 - 1),  # Freed memory is kept, up to 2 GB.
}


def will_use_cpu() -> bool:
  """Whether JAX will choose the CPU backend; does not start it."""
  if jax.config.jax_platforms:
    return jax.config.jax_platforms == 'cpu'
  packages = ('jax_plugins', 'libtpu')  # Where JAX looks for accelerators.
  return not (
    importlib.metadata.entry_points(group='jax_plugins')
    or any(importlib.util.find_spec(name) for name in packages)
  )


def keep() -> bool:
  """Tells glibc to keep freed memory; call it before JAX's first use.

  Threads that exist already go on as before. Does nothing where JAX will use
  an accelerator (there it would only make decoding threads wait for each
  other) or the C library is another.

  Returns:
    Whether it did.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None or not will_use_cpu():
    return False
  return all([mallopt(*option) for option in _OPTIONS.values()])
