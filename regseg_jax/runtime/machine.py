"""The command that runs and the machine it runs on. Needs Python alone."""

import contextlib
import ctypes
import datetime
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Lets this process reuse the memory that it frees, where the C library is glibc.

    A training step on a CPU allocates all that it needs as one block, of half a gigabyte and more.
    glibc returns such a block when it is freed, so that the system has to clear every page again
    for the next step, a third of its time. In return compilation takes longer, its threads waiting
    for one heap. If GLIBC_TUNABLES is set, nothing is changed: the Makefile, whose runs are
    short, sets it to take huge pages, which are cleared faster.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)  # large blocks are of the heap too,
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # which never shrinks,
    libc.mallopt(_M_ARENA_MAX, 1)  # and is one for all threads


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
