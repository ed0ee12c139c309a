"""The device mesh, how arrays are sharded over it, and the processes of a run."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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
    batch_size: int, key: str = "global_batch_size", *, accumulation_steps: int = 1
) -> Mesh:
    """A one-axis mesh over every device of every process, for data parallelism.

    Args:
      batch_size: what is sharded over the mesh, in images.
      key: of the config that sets it, for the message.
      accumulation_steps: parts that a device takes its images in.

    Raises:
      ValueError: if the batch does not divide evenly over the devices and their parts.
    """
    num_devices = jax.device_count()
    check_divides(batch_size, key, num_devices, accumulation_steps)
    return jax.make_mesh((num_devices,), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def check_divides(batch_size: int, key: str, num_devices: int, accumulation_steps: int = 1) -> None:
    """Raises ValueError if a batch does not divide over devices and their micro-batches."""
    parts, divisor = f"{num_devices} devices", num_devices * accumulation_steps
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
