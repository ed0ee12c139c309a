"""What a number was measured on: hardware, versions, date, command."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import sys
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "torch")


def describe_environment() -> dict[str, Any]:
    """Returns plain data: `date`, `command`, `python`, `processor`, `cores`, `devices`, `versions`.

    Only packages that are installed are in `versions`.
    """
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "versions": versions,
    }


def _processor() -> str:
    """The processor's name: Python's own is empty or just the architecture on Linux."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
