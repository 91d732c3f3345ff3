"""Devices and processes: the start of a run on several hosts, and the mesh."""

import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

# Not public, but `jax.distributed.initialize` offers no way to know who would
# take part before it waits for them, and aborts the process where one is late.
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mgjax.errors import ConfigError
from mgjax.hosts.meeting import meet
from mgjax.hosts.peers import Peers, end

# The mesh has one axis: clips of a batch.
BATCH_AXIS = 'data'


def start(values: flags.FlagValues, settings: Mapping[str, str]) -> Peers:
  """Joins the processes of a run; must come before any use of a device.

  Without a cluster around it and without flags, a process is alone, and
  nothing happens.

  Args:
    values: Parsed flags, those of `peers.define_flags` among them.
    settings: What must be the same in all processes, by name.

  Returns:
    The processes; `close` it at the end.

  Raises:
    ConfigError: The flags contradict each other, the processes were started
      with different settings, or there is no device.
    RunError: Processes are missing.
  """
  address, count, index, local_devices = _find_cluster(values)
  if count == 1:
    find_devices()
    return Peers()
  timeout_s = float(values.start_timeout_s)
  settings = {**settings, 'the version of JAX': jax.__version__}
  peers = meet(address, count, index, settings=settings, timeout_s=timeout_s)
  # Its handler would swallow SIGTERM; train.py has its own.
  jax.config.update('jax_enable_preemption_service', False)
  with peers.guard():
    jax.distributed.initialize(
      address,
      count,
      index,
      local_devices,
      initialization_timeout=values.start_timeout_s,
      coordinator_bind_address=peers.bound,
    )
    find_devices()
    _try_collective(peers, timeout_s)
  return peers


def leave(peers: Peers, code: int) -> None:
  """Ends the process at once, though threads of it are at work.

  Python's own way out would take away what they work with.

  Args:
    peers: The processes of the run, all of which end.
    code: Exit code.
  """
  peers.close()
  if peers.count > 1:  # JAX's service ends once all processes have left it.
    jax.distributed.shutdown()
  end(code)


def _find_cluster(values: flags.FlagValues) -> tuple:
  """Returns address, number of processes, own number and local devices."""
  names = ('coordinator_address', 'num_processes', 'process_id')
  given = {name: getattr(values, name) for name in names}
  if given['num_processes'] == 1:
    return None, 1, 0, None
  if all(value is not None for value in given.values()):
    address, count, index = given.values()
    _check_address(address)
    if index >= count:
      raise ConfigError(
        f'--process_id={index} must be below --num_processes={count}'
      )
    return address, count, index, None
  if any(value is not None for value in given.values()):
    absent = [f'--{name}' for name, value in given.items() if value is None]
    raise ConfigError(
      f'{" and ".join(absent)} missing: give all of --coordinator_address, '
      '--num_processes and --process_id, or none of them'
    )
  address, count, index, local = (
    ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, None, None, values.start_timeout_s
    )
  )
  return address, count or 1, index, local


def _check_address(address: str) -> None:
  host, _, port = address.rpartition(':')
  try:
    host.encode('idna')  # As it is before a name is looked up.
    if host and 0 < int(port) < 2**16:
      return
  except ValueError:
    pass
  raise ConfigError(
    f"--coordinator_address={address!r} must have the form 'host:port', with a "
    'port from 1 to 65535'
  )


def _try_collective(peers: Peers, timeout_s: float) -> None:
  """Adds a number over all devices, so that a broken network shows here."""

  def give_up():
    print(
      f'error: a first sum over the devices of {peers.count} processes has not '
      f'ended within {timeout_s:g} s, though all processes are there: can the '
      'hosts reach each other at all ports?',
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)

  timer = threading.Timer(timeout_s, give_up)
  timer.daemon = True
  timer.start()
  multihost_utils.sync_global_devices('start')
  timer.cancel()


def find_devices() -> list[jax.Device]:
  """All devices of all processes.

  Every command asks here before it uses one: JAX has no error of its own for a
  platform that it does not find.

  Raises:
    ConfigError: There is none of the platforms that JAX_PLATFORMS asks for.
  """
  try:
    return jax.devices()
  # An assertion fails where the platform that is asked for is not installed.
  except (RuntimeError, AssertionError) as error:
    reason = re.split(
      r' \((?:you may need|set JAX_PLATFORMS)', str(error).strip()
    )[0]
    raise ConfigError(
      f'JAX finds no device for JAX_PLATFORMS='
      f'{os.environ.get("JAX_PLATFORMS", "")!r}'
      + (f' ({reason.strip().rstrip(".")})' if reason else '')
      + '; leave it unset to use what there is, set it to cpu, or install '
      "the driver and 'jax[cuda12]' (GPUs) or 'jax[tpu]'"
    ) from error


def make_mesh(num_devices: int | None = None) -> Mesh:
  """A one-axis mesh over all devices of all processes, or the first few.

  Process after process, so that each holds consecutive clips of a batch: the
  order of clips, hence batch-norm groups and dropout, is the same everywhere.

  Args:
    num_devices: How many; None: all.

  Raises:
    ConfigError: There is no device.
  """
  devices = sorted(find_devices(), key=lambda d: (d.process_index, d.id))
  return mesh_of(devices[:num_devices])


def mesh_of(devices: Sequence[Any]) -> Mesh:
  """A one-axis mesh over devices, which may be ones to compile for only."""
  return Mesh(np.array(devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def device_bytes(known_gib: float) -> int:
  """Returns the memory of a device in bytes; 0 where it is unknown.

  Args:
    known_gib: What is known of it, in GiB; 0: what the devices say. GPUs and
      TPUs do, CPUs do not.
  """
  if known_gib:
    return int(known_gib * 2**30)
  # None on CPUs.
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  return min(found.get('bytes_limit', 0) for found in stats)


def platform(mesh: Mesh) -> str:
  """What a mesh's devices are: 'cpu', 'gpu' or 'tpu'.

  Programs depend on it, and not on what JAX finds on this machine: devices of a
  mesh may be ones that it compiles for only.
  """
  return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
  """Sharding of an array whose first axis is cut over the devices."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Moves this host's share of a batch to its devices.

  Args:
    mesh: The mesh.
    batch: NumPy arrays whose first axis is this host's share of the clips.

  Returns:
    Global arrays, sharded along their first axis.
  """
  sharding = sharded(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }


def put_replicated(mesh: Mesh, tree: Any) -> Any:
  """Moves arrays that all processes have alike to every device.

  Differs: jax.device_put compares them between the processes first, which
    costs a collective every time.
  """
  sharding = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    tree,
  )


def make_key(mesh: Mesh, seed: int) -> jax.Array:
  """Makes a random key that every device has."""
  # An argument: another seed is no other program to compile.
  make = jax.jit(jax.random.key, out_shardings=replicated(mesh))
  return make(np.uint32(seed))


def to_host(array: jax.Array) -> np.ndarray:
  """Copies a global array to every host, the shards of others included."""
  if jax.process_count() == 1:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)
