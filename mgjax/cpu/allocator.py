"""Keeps the memory that one training step frees for the next, on CPUs.

XLA's CPU backend allocates the temporary arrays of a program anew at every
call. glibc takes allocations of that size from the kernel and gives them back,
so every step begins with fresh, zeroed pages, and a page fault for each; not
with `keep`.

Only the heap of the main thread ("arena") can be told to keep arrays of any
size; the others map what is larger than 64 MB. So programs have to run in the
thread that calls them, not in one of JAX's ("asynchronous dispatch"). That also
leaves one step's temporary arrays in memory, not those of all steps that the
host is ahead. One heap for all threads would keep them, too, but then thousands
of small buffers per step are searched for in long lists, which is slower.
"""

import ctypes
import importlib.metadata
import importlib.util

import jax

# <malloc.h>: parameters of mallopt and their values here.
_OPTIONS = {
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
  """Tells glibc to keep freed memory.

  Call it in the main thread, which is to run the programs, before JAX's first
  use. Does nothing where JAX will use an accelerator or the C library is
  another.

  Returns:
    Whether it did.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None or not will_use_cpu():
    return False
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  return all([mallopt(*option) for option in _OPTIONS.values()])


def environment() -> dict[str, str]:
  """Variables with which another process does what `keep` does in this one."""
  return {
    f'{name.replace("M_", "MALLOC_", 1)}_': str(value)
    for name, (_, value) in _OPTIONS.items()
  }
