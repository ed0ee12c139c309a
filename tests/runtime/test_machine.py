import platform
import subprocess
import sys

import pytest

from regseg_jax.runtime import machine


def test_run_says_what_when_and_how_busy(monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["/elsewhere/bin/python3", "-m", "tool", "a b"])
    run = machine.describe_run()
    assert run["command"] == "python -m tool 'a b'"
    assert run["date"].endswith("+00:00")
    assert run["load_average"] >= 0
    assert machine.read_cpu_name()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc")
@pytest.mark.parametrize("tunables", [None, "glibc.malloc.hugetlb=0"])
def test_freed_memory_is_kept_unless_the_user_chose_otherwise(tunables, monkeypatch):
    code = """
from regseg_jax.runtime.machine import keep_freed_memory
keep_freed_memory()
block = bytearray(200_000_000)
del block
print(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])
"""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if tunables:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert (int(run.stdout) > 190_000) == (tunables is None)
