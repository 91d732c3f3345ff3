"""Devices that programs are compiled for without being there.

TPUs' compiler is in the package libtpu, that of NVIDIA's GPUs in JAX's CUDA
plugin. Both compile on any machine, from a description of the devices.
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
from typing import Any, NamedTuple

from mgjax.errors import ConfigError


class Rates(NamedTuple):
  """What a device can do at best, in one second.

  Attributes:
    bfloat16_flops: Of matrix products, in bfloat16; a multiply-add is two.
    float32_flops: Of matrix products of float32 as JAX computes them by
      default: on GPUs in TF32, on TPUs in one pass of bfloat16.
    bytes_per_s: To and from the device's memory.
  """

  bfloat16_flops: float
  float32_flops: float
  bytes_per_s: float


class _TPU(NamedTuple):
  gib: int  # Of a device.
  bfloat16_tflops: float
  gbytes_per_s: float


# Of a chip, in which JAX sees one device, but two in one of TPU7x: halves.
# Source: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x.
_TPUS = {
  'v4': _TPU(32, 275, 1200),
  'v5e': _TPU(16, 197, 819),
  'v5p': _TPU(95, 459, 2765),
  'v6e': _TPU(32, 918, 1600),
  'tpu7x': _TPU(96, 2307 / 2, 7380 / 2),
}

# What JAX calls devices of these kinds; GPUs have their name in theirs.
_TPU_KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU7x': 'tpu7x',
}

# Tera-operations a second of products in bfloat16 and in TF32, not of sparse
# matrices; the rest is in the descriptions of gpus/, which XLA has, too.
# Source: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM.
_GPU_TFLOPS = {
  'a100': (312.0, 156.0),
  'h100': (989.4, 494.7),
  'h200': (989.4, 494.7),
}
_GPUS_OF_A_HOST = 8
# What JAX takes of a GPU's memory for arrays, unless told otherwise.
_GPU_SHARE = 0.75

_ENVIRONMENT = {
  # Google Cloud's metadata server, which is not there, is not waited for.
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  # Several commands may compile at once: none holds a device.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
_XLA_FLAGS = (
  # There is no GPU on which to time kernels;
  '--xla_gpu_autotune_level=0',
  # and without times Triton's products find no tiles.
  '--xla_gpu_enable_triton_gemm=false',
)


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices that a program is compiled for.

  Attributes:
    name: As it was asked for.
    platform: 'cpu', 'gpu' or 'tpu'.
    devices: As JAX describes them.
    device_bytes: Memory of each that a run can have; 0: unknown.
    rates: What each can do; None: unknown.
  """

  name: str
  platform: str
  devices: tuple
  device_bytes: int
  rates: Rates | None

  def as_json(self) -> dict[str, Any]:
    """What a plan says of it."""
    return {
      'name': self.name,
      'platform': self.platform,
      'device': self.devices[0].device_kind,
      'num_devices': len(self.devices),
      'device_bytes': self.device_bytes,
      'rates': self.rates and self.rates._asdict(),
    }


def bfloat16_flops(device_kind: str) -> float:
  """Operations a second of a device's matrix products; 0: not known.

  Args:
    device_kind: As JAX says it, such as 'TPU v5 lite' or 'NVIDIA H200'.
  """
  if tpu := _TPU_KINDS.get(device_kind):
    return _TPUS[tpu].bfloat16_tflops * 1e12
  words = device_kind.lower().replace('-', ' ').split()
  return next((r[0] * 1e12 for g, r in _GPU_TFLOPS.items() if g in words), 0.0)


def accepted() -> str:
  """The names of targets, in words."""
  tpus, gpus = ', '.join(_TPUS), ', '.join(_GPU_TFLOPS)
  return (
    f"'cpu', TPUs such as v5e:2x4 or v4:2x2x1 ({tpus}), and GPUs such as "
    f'h100x8 ({gpus})'
  )


def prepare(name: str) -> None:
  """Sets the environment for `find`; must come before JAX is imported.

  Args:
    name: Of a target.

  Raises:
    ConfigError: There is no such target, or its compiler is not installed.
  """
  kind, _ = _parse(name)
  os.environ['JAX_PLATFORMS'] = 'cpu'
  if kind in _TPUS:
    _check_installed(name, 'libtpu', 'tpu')
    for variable, value in _ENVIRONMENT.items():
      os.environ.setdefault(variable, value)
  elif kind in _GPU_TFLOPS:
    _check_installed(name, 'jax_plugins.xla_cuda12', 'cuda')
    given = os.environ.get('XLA_FLAGS', '')
    # XLA takes the last of two: the user's.
    os.environ['XLA_FLAGS'] = ' '.join([*_XLA_FLAGS, given]).strip()


def _check_installed(target: str, module: str, extra: str) -> None:
  parent = module.partition('.')[0]
  if importlib.util.find_spec(parent) and importlib.util.find_spec(module):
    return
  package = {'tpu': 'jax[tpu]', 'cuda': 'jax[cuda12]'}[extra]
  raise ConfigError(
    f'--target={target}: its compiler is not installed; type pip install '
    f"'{package}', which needs no such device"
  )


def _parse(name: str) -> tuple[str, str]:
  """Splits a target's name into its kind and what stands behind it.

  Raises:
    ConfigError: It is none.
  """
  if name == 'cpu':
    return name, ''
  if found := re.fullmatch(r'(\w+):(\d+(?:x\d+){1,2})', name):
    if found[1] in _TPUS and math.prod(map(int, found[2].split('x'))):
      return found[1], found[2]
  if found := re.fullmatch(r'([a-z]+\d+)x([1-9]\d*)', name):
    number = int(found[2])
    whole = number <= _GPUS_OF_A_HOST or number % _GPUS_OF_A_HOST == 0
    if found[1] in _GPU_TFLOPS and not whole:
      raise ConfigError(
        f'--target={name}: more than {_GPUS_OF_A_HOST} GPUs are whole hosts '
        f'of {_GPUS_OF_A_HOST}; give a multiple'
      )
    if found[1] in _GPU_TFLOPS:
      return found[1], found[2]
  raise ConfigError(f'--target={name}: unknown; accepted are {accepted()}')


def find(name: str) -> Target:
  """Describes the devices of a target.

  Args:
    name: Of a target that `prepare` has had.

  Raises:
    ConfigError: The compiler does not know devices of this arrangement.
  """
  import jax
  from jax.experimental import topologies

  kind, shape = _parse(name)
  if kind == 'cpu':
    return Target(name, 'cpu', tuple(jax.devices('cpu')), 0, None)
  try:
    if kind in _TPUS:
      # The two cores of a v4 are one device on Cloud TPUs; the others are so
      # without being told.
      cores = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
      found = topologies.get_topology_desc(
        platform='tpu', topology_name=name, **cores
      )
      return _tpu_target(name, tuple(found.devices))
    text = gpu_description(kind)
    number = int(shape)
    hosts = max(number // _GPUS_OF_A_HOST, 1)
    found = topologies.get_topology_desc(
      platform='cuda',
      topology_name='',
      target_config=text,
      # Slices, hosts of each, and GPUs of each of those.
      topology=f'1x{hosts}x{number // hosts}',
    )
    return _gpu_target(name, text, tuple(found.devices))
  # What the plugins raise has no common type.
  except Exception as error:
    reason = ' '.join(str(error).split())[:200]
    raise ConfigError(
      f'--target={name}: the compiler does not take it ({reason})'
    ) from error


def gpu_description(kind: str) -> str:
  """The description of a GPU, in XLA's format."""
  path = pathlib.Path(__file__).parent / 'gpus' / f'{kind}.txtpb'
  return path.read_text()


def _tpu_target(name: str, devices: tuple) -> Target:
  tpu = _TPUS[_parse(name)[0]]
  flops = tpu.bfloat16_tflops * 1e12
  rates = Rates(flops, flops, tpu.gbytes_per_s * 1e9)
  return Target(name, 'tpu', devices, tpu.gib << 30, rates)


def _gpu_target(name: str, description: str, devices: tuple) -> Target:
  number = lambda field: int(re.search(rf'\b{field}: (\d+)', description)[1])
  bfloat16, tf32 = _GPU_TFLOPS[_parse(name)[0]]
  rates = Rates(bfloat16 * 1e12, tf32 * 1e12, number('memory_bandwidth'))
  share = float(
    os.environ.get('XLA_CLIENT_MEM_FRACTION')
    or os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION')
    or _GPU_SHARE
  )
  size = int(share * number('device_memory_size'))
  return Target(name, 'gpu', devices, size, rates)
