"""The device mesh, how arrays are sharded over it, and the processes of a run."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from regseg_jax.ops.height_shards import HEIGHT_AXIS, HeightShards, use_height_shards

BATCH_AXIS = "data"

# A process that is silent for this long is dead: the others end with a message that names it.
HEARTBEAT_TIMEOUT_SECONDS = 30
# For how long the first process to end waits for the others, which may still be saving.
SHUTDOWN_TIMEOUT_SECONDS = 300


def join_processes() -> None:
    """Connects to the other processes of the run.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who, and then nothing
    else is asked. Without them JAX itself recognises Slurm and TPU pods.
    """
    numbers = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    num_processes, process_id = (None if number is None else int(number) for number in numbers)
    is_told = "JAX_COORDINATOR_ADDRESS" in os.environ and None not in numbers
    jax.distributed.initialize(
        num_processes=num_processes,
        process_id=process_id,
        cluster_detection_method="deactivate" if is_told else None,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_SECONDS,
    )


def create_mesh(
    batch_size: int,
    key: str = "global_batch_size",
    *,
    accumulation_steps: int = 1,
    spatial_devices: int = 1,
) -> Mesh:
    """A mesh over every device of every process, for data parallelism.

    Args:
      batch_size: what is sharded over the mesh's axis `BATCH_AXIS`, in images.
      key: of the config that sets it, for the message.
      accumulation_steps: parts that a device takes its images in.
      spatial_devices: that share an image's rows, along a second axis, `HEIGHT_AXIS`, if above 1.

    Raises:
      ValueError: if the devices of a process do not divide into groups of spatial_devices, or the
        batch does not divide evenly over the groups and their parts.
    """
    _check_spatial_devices(spatial_devices)
    check_divides(batch_size, key, jax.device_count(), accumulation_steps, spatial_devices)
    if spatial_devices == 1:
        return jax.make_mesh((jax.device_count(),), (BATCH_AXIS,), axis_types=(AxisType.Auto,))
    # Those of a process are neighbours: a process reads whole images.
    devices = sorted(jax.devices(), key=lambda device: device.process_index)
    return arrange_mesh(devices, spatial_devices)


def create_eval_mesh(batch_size: int, *, spatial_devices: int = 1) -> Mesh:
    """As `create_mesh`; where a batch of evaluation does not divide, more devices share an image.

    Raises:
      ValueError: if the devices of a process do not divide into such groups.
    """
    _check_spatial_devices(spatial_devices)
    for size in range(spatial_devices, jax.local_device_count() + 1, spatial_devices):
        if jax.local_device_count() % size == 0 and batch_size % (jax.device_count() // size) == 0:
            spatial_devices = size
            break
    return create_mesh(batch_size, "eval.batch_size", spatial_devices=spatial_devices)


def create_height_mesh(spatial_devices: int) -> Mesh:
    """A mesh of this process's first devices, which share every image.

    Raises:
      ValueError: if there are not as many.
    """
    if spatial_devices > jax.local_device_count():
        raise ValueError(
            f"--spatial_devices is {spatial_devices}, but there are {jax.local_device_count()} "
            "devices; set at most that many"
        )
    return arrange_mesh(jax.local_devices()[:spatial_devices], spatial_devices)


def arrange_mesh(devices: Sequence, spatial_devices: int = 1) -> Mesh:
    """The mesh of these devices, in this order, of which so many at a time share an image."""
    if spatial_devices == 1:
        return Mesh(np.array(devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))
    groups = np.array(devices).reshape(-1, spatial_devices)
    return Mesh(groups, (BATCH_AXIS, HEIGHT_AXIS), axis_types=2 * (AxisType.Auto,))


def _check_spatial_devices(spatial_devices: int) -> None:
    if jax.local_device_count() % spatial_devices:
        raise ValueError(
            f"config.spatial_devices is {spatial_devices}, which does not divide the "
            f"{jax.local_device_count()} devices of a process; set a divisor of their number"
        )


@contextlib.contextmanager
def split_height(height: int, mesh: Mesh) -> Iterator[HeightShards]:
    """The context inside `jax.shard_map` in which the mesh's devices may share images' rows."""
    shards = HeightShards(height, mesh.shape.get(HEIGHT_AXIS, 1))
    with use_height_shards(shards):
        yield shards


def check_divides(
    batch_size: int,
    key: str,
    num_devices: int,
    accumulation_steps: int = 1,
    spatial_devices: int = 1,
) -> None:
    """Raises ValueError if a batch does not divide over devices and their micro-batches."""
    parts, divisor = f"{num_devices} devices", num_devices // spatial_devices * accumulation_steps
    if spatial_devices > 1:
        parts = f"{num_devices // spatial_devices} groups of {spatial_devices} devices"
    if accumulation_steps > 1:
        parts += f" with config.accumulation_steps={accumulation_steps} on each"
    if batch_size % divisor:
        raise ValueError(
            f"config.{key} is {batch_size}, which does not divide over {parts}; "
            f"set a multiple of {divisor}"
        )


def single_device_mesh() -> Mesh:
    """The same axis over JAX's default device alone."""
    return Mesh(jax.devices()[:1], (BATCH_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of each process's own part of a batch."""
    sharding = batch_sharded(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts the same pytree on every device of every process."""
    return jax.device_put(tree, replicated(mesh))


def is_main_process() -> bool:
    """Whether this process writes logs and pictures."""
    return jax.process_index() == 0


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The other processes enter after the main one has left, and find the files that it made."""
    if not is_main_process():
        multihost_utils.sync_global_devices("main process first")
    try:
        yield
    finally:
        if is_main_process():
            multihost_utils.sync_global_devices("main process first")
