"""What a number was measured on: hardware, versions, date, command."""

import importlib.metadata
import os
import platform
from typing import Any

import jax

from regseg_jax.runtime.machine import describe_run, read_cpu_name

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "torch")
_PACKAGES += ("libtpu", "jax-cuda12-plugin")  # compilers


def describe_environment() -> dict[str, Any]:
    """Gathers plain data for a JSON file; only packages that are installed are in `versions`."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        **describe_run(),
        "python": platform.python_version(),
        "processor": read_cpu_name(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "versions": versions,
    }
