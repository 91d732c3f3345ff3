"""The machine and the versions that a result was made with."""

import os
import pathlib
import platform
from typing import Any


def describe() -> dict[str, Any]:
  """What times and last digits depend on, for summaries and records."""
  # They take seconds to import, and preparing data needs none of them.
  import flax
  import jax
  import jaxlib
  import numpy as np

  return {
    'backend': jax.devices()[0].platform,
    'device': jax.devices()[0].device_kind,
    'num_devices': jax.device_count(),
    'num_processes': jax.process_count(),
    'machine': platform.machine(),
    'cpu': cpu_name(),
    'num_cpus': num_cpus(),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'jaxlib': jaxlib.__version__,
    'flax': flax.__version__,
    'numpy': np.__version__,
  }


def cpu_name() -> str:
  """The processor's name, where Linux says it."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [s.split(':')[1].strip() for s in lines if s.startswith('model name')]
  return names[0] if names else platform.processor()


def cpus() -> list[int]:
  """The cores that this thread may use, by number."""
  if hasattr(os, 'sched_getaffinity'):  # Not on macOS.
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def num_cpus() -> int:
  """Number of cores that this process may use."""
  return len(cpus())
