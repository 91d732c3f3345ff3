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
    'cpu_model': cpu_model(),
    'num_cpus': num_cpus(),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'jaxlib': jaxlib.__version__,
    'flax': flax.__version__,
    'numpy': np.__version__,
  }


def cpu_name() -> str:
  """The processor's name, where Linux says it."""
  return _cpu_info().get('model name') or platform.processor()


def cpu_model() -> str | None:
  """Numbers of the processor, such as '25/17/1'; None: they are not told.

  They are family, model and stepping. Machines of a cloud have names like
  'AMD EPYC', which processors of several years share.
  """
  info = _cpu_info()
  numbers = [info.get(name) for name in ('cpu family', 'model', 'stepping')]
  return '/'.join(n for n in numbers if n) if all(numbers) else None


def _cpu_info() -> dict[str, str]:
  """What Linux says of the first core; {} elsewhere."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    return {}
  found = {}
  for line in text.splitlines():
    name, colon, value = line.partition(':')
    if colon:
      found.setdefault(name.strip(), value.strip())
  return found


def cpus() -> list[int]:
  """The cores that this thread may use, by number."""
  if hasattr(os, 'sched_getaffinity'):  # Not on macOS.
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def num_cpus() -> int:
  """Number of cores that this process may use."""
  return len(cpus())
