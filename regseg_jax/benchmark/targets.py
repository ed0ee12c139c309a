"""Devices that are not here, as the compilers know them."""

import dataclasses
import math
import os
import re

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from regseg_jax.benchmark.devices import ACCELERATORS, Accelerator
from regseg_jax.runtime.packages import require_packages
from regseg_jax.training.sharding import BATCH_AXIS

_MAX_GPUS = 8  # of one machine
# What JAX allocates of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_GPU_MEMORY_FRACTION = 0.75
# Chips that a v4 or v5p slice's name counts double: their type names count cores.
_TWO_CORES = ("v4", "v5p")
_TYPE_PREFIXES = {"v5e": "v5litepod"}


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Attributes:
      name: as the user typed it.
      accelerator: what each device is, or is a core of.
      platform: JAX's name.
      devices: that do not exist; programs can be compiled for them.
    """

    name: str
    accelerator: Accelerator
    platform: str
    devices: tuple

    @property
    def mesh(self) -> Mesh:
        """One axis over the devices, as `training.sharding` makes it of real ones."""
        return Mesh(np.array(self.devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))

    @property
    def _devices_per_chip(self) -> int:
        if self.platform == "cuda":
            return 1
        return len(self.devices) // len({tuple(device.coords) for device in self.devices})

    @property
    def grid(self) -> tuple[int, ...]:
        """Devices along each axis in which they are linked: one ring of GPUs, a TPU's two or three.

        Axes of a single chip are left out.
        """
        if self.platform == "cuda":
            return (len(self.devices),) if len(self.devices) > 1 else ()
        sides = (len(set(axis)) for axis in zip(*(x.coords for x in self.devices), strict=True))
        return tuple(side for side in sides if side > 1)

    @property
    def bandwidth(self) -> float:
        """Of a device's memory, bytes/s."""
        return self.accelerator.bandwidth / self._devices_per_chip

    @property
    def memory_limit(self) -> int:
        """Bytes that a program may have on a device."""
        fraction = _GPU_MEMORY_FRACTION if self.platform == "cuda" else 1 / self._devices_per_chip
        return int(fraction * self.accelerator.memory_bytes)

    def get_peak(self, precision: str) -> float | None:
        """FLOP/s of a device; None if the data sheets do not tell."""
        peak = self.accelerator.peaks.get(precision)
        return None if peak is None else 1e12 * peak / self._devices_per_chip


def create_target(name: str) -> Target:
    """Reads a target: a GPU, `h100` or `h100:8`, or a TPU, `v5e` or `v5e:2x2`.

    Raises:
      ValueError: if there is no such target, or its compiler is not installed or refuses it.
    """
    kind, _, shape = name.partition(":")
    accelerator = next((a for a in ACCELERATORS if a.name == kind), None)
    if accelerator is None:
        known = ", ".join(accelerator.name for accelerator in ACCELERATORS)
        raise ValueError(f"--target is {name!r}; known are {known}")
    if accelerator.units:
        return _create_gpus(name, accelerator, shape or "1")
    return _create_tpus(name, accelerator, shape)


def _create_gpus(name: str, accelerator: Accelerator, count: str) -> Target:
    if not count.isdecimal() or not 1 <= int(count) <= _MAX_GPUS:
        raise ValueError(
            f"--target is {name!r}; give 1 to {_MAX_GPUS} GPUs, as {accelerator.name}:4"
        )
    require_packages(
        f"--target={name}",
        ("jax_cuda12_plugin",),
        "'regseg_jax[aot-gpu]' (jax-cuda12-plugin[with-cuda] of JAX's version)",
    )
    topology = f"1x{int(count)}x1"  # machines x GPUs x 1
    description = topologies.get_topology_desc(
        topology, "cuda", topology=topology, target_config=format_gpu(accelerator)
    )
    return Target(name, accelerator, "cuda", tuple(description.devices))


def format_gpu(accelerator: Accelerator) -> str:
    """A GPU's figures as XLA's `GpuTargetConfigProto`, in protobuf's text format."""
    units = accelerator.units
    shared = units.shared_kib * 1024
    has_reserve = units.capability >= (8, 0)
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": shared - 1024 * has_reserve,
        "threads_per_core_limit": units.threads,
        "core_count": units.multiprocessors,
        "fpus_per_core": units.float32_lanes,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "memory_bandwidth": int(accelerator.bandwidth),
        "l2_cache_size": units.l2_mib * 2**20,
        "clock_rate_ghz": accelerator.clock_ghz,
        "device_memory_size": accelerator.memory_bytes,
    }
    major, minor = units.capability
    lines = [f"  {key}: {value}" for key, value in fields.items()]
    lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
    return "\n".join(
        [
            *("gpu_device_info {", *lines, "}", 'platform_name: "CUDA"'),
            "dnn_version_info { major: 9 minor: 10 patch: 0 }",
            f'device_description_str: "{accelerator.name}"',
        ]
    )


def _create_tpus(name: str, accelerator: Accelerator, shape: str) -> Target:
    kind = accelerator.name
    if shape and not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ValueError(
            f"--target is {name!r}; give the chips as a grid, {kind}:2x2, or one, {kind}"
        )
    require_packages(f"--target={name}", ("libtpu",), "'regseg_jax[aot-tpu]' (libtpu)")
    chips = math.prod(int(side) for side in shape.split("x")) if shape else 1
    cores = chips * (2 if kind in _TWO_CORES else 1)
    os.environ |= {  # the library otherwise asks the cloud where it is
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{_TYPE_PREFIXES.get(kind, kind)}-{cores}",
    }
    options = {}
    if not shape:
        shape = "1x1x1" if kind in _TWO_CORES else "1x1"
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        description = topologies.get_topology_desc(f"{kind}:{shape}", "tpu", **options)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--target={name}: the TPU compiler refuses it: {reason}") from None
    return Target(name, accelerator, "tpu", tuple(description.devices))
