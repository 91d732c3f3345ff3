"""Compiles programs, each with what the compiler of its devices is told."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import jax

from mgjax.errors import ConfigError
from mgjax.files import size_text

# By platform, as `jax.Device.platform` names it. A line is here for what was
# measured; another platform's compiler is told nothing.
_OPTIONS: dict[str, dict[str, str | int]] = {
  'cpu': {
    # An XLA pass that removes `lax.optimization_barrier` before fusion. Without
    # it a barrier means: write this to memory (cpu/folded.py, `materialize`).
    'xla_disable_hlo_passes': 'cse_barrier_expander',
    # What XLA:CPU gives to the library YNNPACK: of its default list, all but
    # convolutions. YNNPACK's take one core below 128 outputs, and their
    # kernels' gradients are slow; Eigen's take all cores.
    'xla_cpu_experimental_ynn_fusion_type': (
      'LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'
    ),
    # LLVM's. The compiler's own is 3, whose programs take a fifth longer to
    # make, for steps that are 1 % faster (docs/speed.md).
    'xla_backend_optimization_level': 2,
  },
  # The compiler lays all convolutions out as NCDHW. With
  # xla_gpu_force_conv_nhwc=true all are NDHWC; an H100's memory and traffic are
  # 2 % apart (SlowFast-R50 8x8; docs/speed.md). No time of
  # either was measured, so the choice is the compiler's.
  'gpu': {},
}

# What runs once takes longer to compile than to run.
_ONCE: dict[str, dict[str, int | bool]] = {
  'cpu': {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  },
}


class OutOfMemory(ConfigError):
  """A program takes more memory than its devices have.

  Attributes:
    needed: Bytes of each device; 0: the compiler does not say.
  """

  def __init__(self, needed: int, available: int, program: Any = 'the program'):
    """Says so.

    Args:
      needed: See above.
      available: Bytes that each device has; 0: unknown.
      program: Its name.
    """
    self.needed, self._available = needed, available
    super().__init__(
      f'{program} needs {size_text(needed) if needed else "more"} of each '
      f'device, which has {size_text(available) if available else "less"}; '
      "train.micro_batches, train.remat='block', model.dtype='bfloat16', a "
      'smaller batch and more devices need less'
    )

  def of(self, program: Any) -> 'OutOfMemory':
    """The same with the program's name."""
    return OutOfMemory(self.needed, self._available, program)


def compile_program(
  lowered: Any, platform: str, *, device_bytes: int = 0
) -> Any:
  """Compiles a lowered program.

  Args:
    lowered: A jax.stages.Lowered, or what wraps one as nnx.jit's does.
    platform: Of the devices that it was lowered for, as `hosts.parallel.
      platform` says it of a mesh.
    device_bytes: Memory of each of them; 0: not compared with the program's.

  Returns:
    A jax.stages.Compiled, or what wraps it.

  Raises:
    OutOfMemory: The program does not fit the devices.
  """
  try:
    compiled = lowered.compile(compiler_options=options(platform) or None)
  except jax.errors.JaxRuntimeError as error:
    # XLA:TPU compiles no program that does not fit the chip.
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    sizes = [
      int(float(number) * 2 ** (30 if unit == 'G' else 20))
      for number, unit in re.findall(r'\b(\d+(?:\.\d+)?)([GM])\b', str(error))
    ]
    raise OutOfMemory(*[*sizes, 0, device_bytes][:2]) from error
  if device_bytes and (needed := needed_bytes(compiled)) > device_bytes:
    raise OutOfMemory(needed, device_bytes)
  return compiled


def needed_bytes(executable: Any) -> int:
  """Bytes of a device's memory that a compiled program takes.

  Its arguments, results and temporary arrays, where what is donated counts
  once: the runtime allocates each as a whole before the program starts, the
  temporary arrays in one piece with the gaps between them. XLA's own peak
  (`peak_memory_in_bytes`) is of what is alive at once. It is smaller for most
  programs, and XLA:CPU's leaves temporary arrays out; it is greater for some.
  So the greater of the two.

  Args:
    executable: A jax.stages.Compiled, or what wraps it.
  """
  found = executable.memory_analysis()
  return max(
    found.peak_memory_in_bytes,
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
    - found.alias_size_in_bytes,
  )


@functools.cache
def options(platform: str) -> dict[str, str | int]:
  """What the compiler of a platform is told, but for what XLA_FLAGS says.

  The options are not part of JAX's interface: another version may drop one, and
  then programs are slower but the same. So each is tried, once per process.

  Args:
    platform: As JAX names it.
  """
  return _accepted(platform, _OPTIONS)


@functools.cache
def options_once(platform: str) -> dict[str, int | bool]:
  """What the compiler of a platform is told of a program that runs once."""
  return _accepted(platform, _ONCE)


def once_on_cpu(function: Callable) -> Callable:
  """Compiles a function that runs once or twice, for the CPU.

  Products of float32 are exact there; other devices round their factors.

  Args:
    function: Of arrays, which need not be on any device.

  Returns:
    A function that returns NumPy arrays. Where JAX_PLATFORMS excludes CPUs, it
    is compiled for the device that there is.
  """
  try:
    device = jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    device = jax.local_devices()[0]
  options = options_once(device.platform)
  compiled = jax.jit(function, compiler_options=options or None)

  def run(*arrays):
    with jax.default_device(device):
      return jax.device_get(compiled(*arrays))

  return run


def _accepted(platform: str, table: dict[str, dict]) -> dict:
  """The options of a platform that its compiler takes."""
  # What the user tells the compiler stands; an option of a program would win.
  told = re.findall(r'--(\w+)', os.environ.get('XLA_FLAGS', ''))
  return {
    name: value
    for name, value in table.get(platform, {}).items()
    if name not in told and _is_accepted(platform, {name: value})
  }


def _is_accepted(platform: str, option: dict[str, str | int | bool]) -> bool:
  try:
    device = jax.local_devices(backend=platform)[0]
  except RuntimeError:
    return (
      True  # Compiled for a device that is elsewhere: nothing to try it on.
    )
  here = jax.sharding.SingleDeviceSharding(device)
  try:
    jax.jit(lambda: 0, out_shardings=here).lower().compile(
      compiler_options=option
    )
  except jax.errors.JaxRuntimeError:
    return False
  return True
