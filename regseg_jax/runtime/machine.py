"""The command that runs and the machine it runs on. Needs Python alone."""

import contextlib
import datetime
import os
import pathlib
import platform
import shlex
import sys
from typing import Any


def describe_run() -> dict[str, Any]:
    """The command that runs, the time, and how busy the machine is."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
    }


def read_cpu_name() -> str:
    """The processor's name, as Linux or Python gives it."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
