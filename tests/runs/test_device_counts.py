"""A run that two processes saved goes on with other processes, devices and micro-batches."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from small_process import kill, start, start_two, steps_saved, wait_for

ENDLESS = ("num_epochs=4000", "eval.every_epochs=4000")
EACH_STEP = ("log_every_steps=1", "checkpoint_every_steps=5")
COMPARED = 2  # steps: over more, the rounding of sums in another order grows


def _read_losses(workdir: pathlib.Path) -> dict[int, float]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["step"]: record["train/loss"] for record in records}


def _leave_checkpoint(workdir: pathlib.Path, *overrides: str) -> tuple[int, list[float]]:
    """Two processes train and are killed.

    Returns:
      The newest checkpoint's step and the losses of the steps after it, which are lost.
    """
    processes = start_two(workdir, *ENDLESS, *EACH_STEP, *overrides)
    wait_for(lambda: 5 in steps_saved(workdir) and 8 in _read_losses(workdir), processes[0])
    for process in processes:
        kill(process)
    losses = _read_losses(workdir)
    step = max(step for step in steps_saved(workdir) if step + COMPARED in losses)
    for other in steps_saved(workdir):
        if other > step:
            shutil.rmtree(workdir / "checkpoints" / str(other))
    return step, [losses[step + 1 + i] for i in range(COMPARED)]


def _go_on(
    workdir: pathlib.Path, copy: pathlib.Path, step: int, *overrides: str, num_devices: int = 1
) -> tuple[list[float], str]:
    """One process goes on with a copy of the run: its first losses, and what it wrote."""
    shutil.copytree(workdir, copy)
    flags = "--xla_cpu_multi_thread_eigen=false"
    flags += f" --xla_force_host_platform_device_count={num_devices}"
    process = start(copy, *ENDLESS, *EACH_STEP, *overrides, XLA_FLAGS=flags)
    wait_for(lambda: (copy / "checkpoints" / str(step + 5)).exists(), process)
    process.kill()
    _, err = process.communicate()
    losses = _read_losses(copy)
    return [losses[step + 1 + i] for i in range(COMPARED)], err


@pytest.mark.slow
def test_two_processes_then_one_with_one_or_four_devices(tmp_path):
    step, expected = _leave_checkpoint(tmp_path / "two")
    for num_devices in (1, 4):
        losses, err = _go_on(
            tmp_path / "two", tmp_path / f"on_{num_devices}", step, num_devices=num_devices
        )
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
        assert "batch norm" not in err
        assert f"going on from the checkpoint of step {step}" in err


@pytest.mark.slow
def test_one_process_takes_the_place_of_two_by_micro_batches(tmp_path):
    """With statistics per device, nothing changes at all; without micro-batches, a warning."""
    two = tmp_path / "two"
    step, expected = _leave_checkpoint(two, "batch_norm_per_device=1")
    both = ("batch_norm_per_device=1", "accumulation_steps=2")
    losses, err = _go_on(two, tmp_path / "micro", step, *both)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert "batch norm" not in err
    losses, err = _go_on(two, tmp_path / "whole", step, "batch_norm_per_device=1")
    assert "batch norm's statistics were over 2 images and are over 4" in err
    assert abs(losses[0] / expected[0] - 1) > 1e-4


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused_before_the_folder_is_made(tmp_path):
    process = start(tmp_path / "run", "accumulation_steps=3")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "config.global_batch_size is 4, which does not divide over 1 devices with config." in err
    assert not (tmp_path / "run").exists()
