"""Devices: the mesh, how arrays lie on it, and batches that span hosts."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# The mesh has one axis: clips of a batch.
BATCH_AXIS = 'data'


def make_mesh(num_devices: int | None = None) -> Mesh:
  """A one-axis mesh over all devices of all hosts (or the first few)."""
  devices = jax.devices()[:num_devices]
  return jax.make_mesh(
    (len(devices),),
    (BATCH_AXIS,),
    axis_types=(AxisType.Auto,),
    devices=devices,
  )


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


def to_host(array: jax.Array) -> np.ndarray:
  """Copies a global array to every host, the shards of others included."""
  if jax.process_count() == 1:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)
