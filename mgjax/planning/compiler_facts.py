"""What a compiler says of a program, as a plan has it."""

from collections.abc import Mapping
from typing import Any

from mgjax.planning import program_text
from mgjax.planning.targets import Target
from mgjax.step import compilation
from mgjax.step.step_cache import Program

# What is known of every compiled program.
FIELDS = (
  *('peak_bytes', 'compile_s', 'collectives', 'convolutions', 'copies'),
  *('bytes_accessed', 'bytes_accessed_from', 'memory', 'compiler_gmacs'),
  *('optimal_s', 'error'),
)


def of(executable: Any, compile_s: float) -> dict[str, Any]:
  """What a compiled program tells of itself, as JSON data.

  Args:
    executable: A jax.stages.Compiled.
    compile_s: Seconds that it took.
  """
  size = executable.memory_analysis()
  costs = executable.cost_analysis() or {}  # There is none for GPUs.
  text = program_text.read(executable.as_text())
  accessed = costs.get('bytes accessed')
  return {
    'peak_bytes': compilation.needed_bytes(executable),
    'compile_s': compile_s,
    'collectives': {k: v._asdict() for k, v in text.collectives.items()},
    'convolutions': text.convolutions,
    'copies': text.copies._asdict(),
    'bytes_accessed': int(accessed or text.accessed_bytes),
    'bytes_accessed_from': 'compiler' if accessed else 'text',
    'memory': {
      'arguments': size.argument_size_in_bytes,
      'results': size.output_size_in_bytes,
      'donated': size.alias_size_in_bytes,
      'temporary': size.temp_size_in_bytes,
      'alive_at_once': size.peak_memory_in_bytes,
      'program': size.generated_code_size_in_bytes,
    },
    'compiler_gmacs': costs.get('flops', 0.0) / 2e9 or None,
    'optimal_s': costs.get('optimal_seconds'),
    'error': '',
  }


def of_refused(
  error: compilation.OutOfMemory, compile_s: float
) -> dict[str, Any]:
  """As `of`, of a program that the compiler has refused.

  Args:
    error: Why.
    compile_s: Seconds that that took.
  """
  return dict.fromkeys(FIELDS) | {
    'peak_bytes': error.needed,
    'compile_s': compile_s,
    'collectives': {},
    'convolutions': {},
    'copies': program_text.Traffic()._asdict(),
    'bytes_accessed': 0,
    'memory': {},
    'error': str(error),
  }


def describe(
  program: Program,
  found: Mapping[str, Any],
  *,
  gmacs_per_clip: float,
  dtype: str,
  target: Target,
) -> dict[str, Any]:
  """What a plan says of a compiled program; all of it is of one device.

  Args:
    program: The program.
    found: What `of` says of it.
    gmacs_per_clip: 1e9 multiply-adds of a clip's forward pass.
    dtype: The network's compute type.
    target: The devices that share its batch.

  Returns:
    JSON data: what was found, and:
    'gmacs': 1e9 multiply-adds of the network: a backward pass counts as two
      forward ones.
    'roofline_s': Seconds that the device needs at least, for the multiply-adds
      at its best rate or for 'bytes_accessed', whichever takes longer; None:
      its rates are not known, or the program was not compiled.
    'optimal_s': The compiler's own; None where it is negative or less than the
      multiply-adds take.
    'fits': Whether the device's memory is enough; None: unknown.
  """
  kind, grid = program
  share = grid.batch / len(target.devices)
  gmacs = (3 if kind == 'train' else 1) * share * gmacs_per_clip
  roofline_s = optimal_s = None
  if target.rates and not found['error']:
    rates = target.rates
    arithmetic_s = (
      2e9
      * gmacs
      / (rates.bfloat16_flops if dtype == 'bfloat16' else rates.float32_flops)
    )
    memory_s = found['bytes_accessed'] / rates.bytes_per_s
    roofline_s = max(arithmetic_s, memory_s)
    if (found['optimal_s'] or 0) >= arithmetic_s:
      optimal_s = found['optimal_s']
  fits = None
  if found['error'] or target.device_bytes:
    fits = not found['error'] and found['peak_bytes'] <= target.device_bytes
  return {
    'kind': kind,
    **grid._asdict(),
    **found,
    'gmacs': gmacs,
    'roofline_s': roofline_s,
    'optimal_s': optimal_s,
    'device_bytes': target.device_bytes,
    'fits': fits,
  }
