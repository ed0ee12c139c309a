"""The Cityscapes recipe on a tree in the data set's own layout and size, killed and restarted."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from cityscapes_tree import write_cityscapes

TESTS = pathlib.Path(__file__).parent
NUM_STEPS = 30  # 2 epochs of 20 crops anywhere and one around a centroid of each of 11 classes


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> pathlib.Path:
    """40 pairs of 1024 x 2048 for training: 4 drawn ones under ten names each."""
    root = tmp_path_factory.mktemp("cityscapes")
    write_cityscapes(root, num_examples={"train": 4, "val": 1}, height=1024, width=2048, drawn=4)
    for path in [*root.glob("*/train/*/*.png")]:
        city, _, rest = path.name.split("_", 2)
        for copy in range(1, 10):
            (path.parent / f"{city}_{copy:02}{path.name.split('_')[1][2:]}_{rest}").symlink_to(path)
    return root


def _start(workdir: pathlib.Path, tree: pathlib.Path) -> subprocess.Popen:
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    flags = "--xla_cpu_multi_thread_eigen=false"  # as in test_train.py
    return subprocess.Popen(
        [sys.executable, str(TESTS / "cityscapes_run.py"), str(workdir), str(tree)],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path},
        cwd=TESTS,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=1500)
    assert process.returncode == 0, err


def _losses(workdir: pathlib.Path) -> list[float]:
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [record["train/loss"] for record in records if "train/loss" in record]


@pytest.mark.slow
def test_killed_and_restarted_exactly(tree, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _finish(_start(whole, tree))
    process = _start(killed, tree)
    end = time.monotonic() + 1200
    while not any((killed / "checkpoints").glob("[69]")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = (killed / "centroids.npz").stat().st_mtime_ns
    _finish(_start(killed, tree))
    assert (killed / "centroids.npz").stat().st_mtime_ns == found  # found once
    assert len(_losses(whole)) == NUM_STEPS
    assert _losses(killed) == _losses(whole)
    states = []
    for workdir in (whole, killed):
        with ocp.StandardCheckpointer() as checkpointer:
            path = workdir / "checkpoints" / str(NUM_STEPS) / "default"
            states.append(checkpointer.restore(path.absolute()))
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
