"""Processes that train `small_run.py`'s model, and what they leave behind."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

TESTS = pathlib.Path(__file__).parent
NUM_STEPS = 12  # of a run without overrides


def start_script(script: str, *arguments: object, **variables: str) -> subprocess.Popen:
    """A Python script of this folder, with these variables added to the environment."""
    # One device and one thread (small_run.py also keeps to one core): with more threads, XLA's
    # sums on a busy CPU were seen to round differently from one start to the next.
    flags = "--xla_cpu_multi_thread_eigen=false"
    paths = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    return subprocess.Popen(
        [sys.executable, str(TESTS / script), *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths, **variables},
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(workdir: pathlib.Path, *overrides: str, **variables: str) -> subprocess.Popen:
    """The run of small_run.py."""
    return start_script("small_run.py", workdir, *overrides, **variables)


def start_two(workdir: pathlib.Path, *overrides: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [start(workdir, *overrides, **variables, JAX_PROCESS_ID=str(i)) for i in range(2)]


def finish(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out, err


def wait_for(condition, process: subprocess.Popen, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        if time.monotonic() > end:
            kill(process)
            pytest.fail("waited in vain")
        time.sleep(0.002)


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def read_state(workdir: pathlib.Path, step: int) -> dict:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir.absolute() / "checkpoints" / str(step) / "default")


def steps_saved(workdir: pathlib.Path) -> set[int]:
    folder = workdir / "checkpoints"
    return {int(p.name) for p in folder.iterdir() if p.name.isdigit()} if folder.is_dir() else set()


def assert_same_end(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    old, new = read_state(expected, NUM_STEPS), read_state(workdir, NUM_STEPS)
    assert jax.tree.structure(old) == jax.tree.structure(new)
    for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
