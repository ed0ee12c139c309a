"""launch/slurm.sbatch on a real Slurm of one machine: requeued, out of time, and left alone."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"Slurm is not installed: there is no {', '.join(MISSING)}"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="starting Slurm needs root"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    script = HERE / "slurm_cluster.sh"
    subprocess.run([script, "up", folder], check=True)
    # The interpreter of the script: training with the small backbones, one thread a process.
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "small_main.py"} "$@"\n')
    python.chmod(0o755)
    yield {
        **os.environ,
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHON": str(python),
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "OMP_NUM_THREADS": "1",
        # Most of a start is compilation: all but the first find everything in the tests' cache.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    subprocess.run([script, "down", folder], check=True)


# Enough for a machine with ten times more to do than it can.
PATIENCE_SECONDS = 1800

CONFIG = (
    *("--config=configs/synthetic.py", "--config.model=small_decoder12"),
    *("--config.data.synthetic_size=(48, 64)", "--config.data.synthetic_train_examples=100"),
    *("--config.data.synthetic_eval_examples=4", "--config.augment.crop_size=(32, 48)"),
    *("--config.augment.min_shorter_side=24", "--config.augment.max_shorter_side=64"),
    *("--config.eval.batch_size=4", "--config.checkpoint_every_steps=20"),
    "--config.log_every_steps=50",
)


def _submit(cluster, folder: pathlib.Path, num_epochs: int, *options: str) -> str:
    command = (
        *("sbatch", "--parsable", "--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1"),
        *(f"--output={folder}.log", *options, "launch/slurm.sbatch", *CONFIG),
        *(f"--workdir={folder}", f"--config.num_epochs={num_epochs}"),
        f"--config.eval.every_epochs={num_epochs}",
    )
    result = subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def _read_job(cluster, job: str) -> dict[str, str]:
    command = ("scontrol", "show", "job", "--oneliner", job)
    shown = subprocess.run(command, env=cluster, capture_output=True, text=True, check=True).stdout
    return dict(field.split("=", 1) for field in shown.split() if "=" in field)


def _wait(cluster, job: str, condition, log: pathlib.Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        state = _read_job(cluster, job)
        assert state["JobState"] not in ("FAILED", "CANCELLED", "TIMEOUT"), log.read_text()
        assert time.monotonic() < end, f"waited in vain: {state}\n{log.read_text()}"
        time.sleep(0.2)


def _finish(cluster, job: str, log: pathlib.Path) -> dict[str, str]:
    _wait(cluster, job, lambda: _read_job(cluster, job)["JobState"] == "COMPLETED", log)
    return _read_job(cluster, job)


def _newest_step(folder: pathlib.Path) -> int:
    steps = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=0)


def _read_params(folder: pathlib.Path) -> dict:
    path = folder / "checkpoints" / str(_newest_step(folder)) / "default"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            checkpointer.metadata(path).item_metadata.tree,
        )
        return jax.tree.map(np.asarray, checkpointer.restore(path, like)["params"])


def test_a_requeued_job_ends_with_the_same_parameters(cluster, tmp_path):
    whole, requeued = tmp_path / "whole", tmp_path / "requeued"
    _finish(cluster, _submit(cluster, whole, 12), tmp_path / "whole.log")
    assert _newest_step(whole) == 300

    log = tmp_path / "requeued.log"
    job = _submit(cluster, requeued, 12)
    _wait(cluster, job, lambda: _newest_step(requeued) >= 20, log)
    subprocess.run(("scontrol", "requeue", job), env=cluster, check=True)
    assert _finish(cluster, job, log)["Restarts"] == "1"
    assert "stopped by request at step" in log.read_text()  # it saved on SIGTERM
    assert "going on from the checkpoint of step" in log.read_text()
    starts = json.loads((requeued / "environment.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2, 2]
    jax.tree.map(np.testing.assert_array_equal, _read_params(requeued), _read_params(whole))
    print(log.read_text())


def test_a_job_out_of_time_saves_and_is_queued_again(cluster, tmp_path):
    log, folder = tmp_path / "run.log", tmp_path / "run"
    job = _submit(cluster, folder, 100_000)
    _wait(cluster, job, lambda: _newest_step(folder) >= 20, log)
    # The warning is due 120 s before the limit: now.
    hours, minutes, _ = _read_job(cluster, job)["RunTime"].split(":")
    _set_time_limit(cluster, job, 60 * int(hours) + int(minutes) + 2)
    _wait(cluster, job, lambda: _read_job(cluster, job)["Restarts"] == "1", log)
    _set_time_limit(cluster, job, 1440)
    assert "stopped by request at step" in log.read_text()
    saved = _newest_step(folder)
    _wait(cluster, job, lambda: _newest_step(folder) > saved, log)
    assert f"going on from the checkpoint of step {saved}" in log.read_text()
    subprocess.run(("scancel", job), env=cluster, check=True)
    print(log.read_text())


def _set_time_limit(cluster, job: str, minutes: int) -> None:
    command = ("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    subprocess.run(command, env=cluster, check=True)
