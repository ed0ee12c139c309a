"""What goes wrong on real machines: dead processes, full disks, damaged files, two starts."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest
from small_process import (
    NUM_STEPS,
    TESTS,
    assert_same_end,
    finish,
    kill,
    start,
    start_two,
    steps_saved,
    wait_for,
)

ENDLESS = ("num_epochs=4000", "log_every_steps=1", "eval.every_epochs=4000")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(workdir))
    return workdir


def test_a_second_start_in_one_folder_is_refused(tmp_path):
    first = start(tmp_path, *ENDLESS)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists(), first)
    second = start(tmp_path, *ENDLESS)
    _, err = second.communicate(timeout=200)
    assert second.returncode == 1
    assert f"{tmp_path} is in use by another run (process {first.pid} on " in err
    kill(first)
    third = start(tmp_path, *ENDLESS)  # the killed run's lock is gone with it
    steps = max(steps_saved(tmp_path), default=0)
    wait_for(lambda: max(steps_saved(tmp_path), default=0) > steps, third)
    kill(third)


@pytest.mark.parametrize("damage", ["truncated", pytest.param("emptied", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(whole_run, tmp_path, damage):
    workdir = shutil.copytree(whole_run, tmp_path / "run")
    newest, before = sorted(steps_saved(workdir), reverse=True)[:2]
    files = [p for p in (workdir / "checkpoints" / str(newest)).rglob("*") if p.is_file()]
    if damage == "truncated":
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    else:
        for path in files:
            path.write_bytes(b"")
    _, err = finish(start(workdir))
    assert f"checkpoints/{newest} is damaged and set aside as {newest}.damaged" in err
    assert f"going on from the checkpoint of step {before}" in err
    assert (workdir / "checkpoints" / f"{newest}.damaged").is_dir()
    assert newest == NUM_STEPS
    assert_same_end(workdir, whole_run)


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(whole_run, tmp_path):
    """By a day, after the first checkpoint, in all that asks Python for the time."""
    workdir, patch = tmp_path / "run", tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import os, time\n"
        "real, real_ns = time.time, time.time_ns\n"
        "def shift():\n"
        f"    return -86400 if os.path.exists({str(workdir / 'checkpoints' / '3')!r}) else 0\n"
        "time.time = lambda: real() + shift()\n"
        "time.time_ns = lambda: real_ns() + 10**9 * shift()\n"
    )
    paths = os.pathsep.join(map(str, (patch, TESTS, TESTS.parent)))
    finish(start(workdir, PYTHONPATH=paths))
    assert_same_end(workdir, whole_run)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train/loss" in r] == [2, 4, 6, 8, 10, 12]
    # A start before the time of the checkpoints goes on from the newest of them.
    shutil.rmtree(workdir / "checkpoints" / str(NUM_STEPS))
    newest = max(steps_saved(workdir))
    _, err = finish(start(workdir, PYTHONPATH=paths))
    assert f"going on from the checkpoint of step {newest}" in err
    assert_same_end(workdir, whole_run)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB of its own; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder))
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(("umount", "--lazy", str(folder)), check=True)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_failed_save_keeps_the_last_checkpoint_and_names_the_folder(small_disk, fault):
    workdir = small_disk / "run"
    folder = str(workdir / "checkpoints")
    process = start(workdir, *ENDLESS)
    wait_for(lambda: len(steps_saved(workdir)) >= 2, process)
    if fault == "full":
        filler = os.open(small_disk / "filler", os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            while True:
                os.write(filler, bytes(4096))
        os.close(filler)
    else:
        subprocess.run(("mount", "--bind", folder, folder), check=True)
        subprocess.run(("mount", "-o", "remount,ro,bind", folder), check=True)
    saved = steps_saved(workdir)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    # Of the two files that are written at nearly the same time, the first to fail is named.
    failed = f"cannot (save a checkpoint in {folder}|write {workdir}/metrics.jsonl): "
    assert re.search(failed, err)
    assert steps_saved(workdir)
    assert max(saved) <= max(steps_saved(workdir))
    if fault == "full":
        (small_disk / "filler").unlink()
    else:
        subprocess.run(("umount", folder), check=True)
    newest = max(steps_saved(workdir))
    again = start(workdir, *ENDLESS)
    wait_for(lambda: max(steps_saved(workdir)) > newest, again)
    kill(again)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1], ids=["coordinator", "other"])
def test_when_one_of_two_processes_is_killed_the_other_ends_and_names_it(tmp_path, killed):
    processes = start_two(tmp_path, *ENDLESS)
    wait_for(lambda: max(steps_saved(tmp_path), default=0) >= 6, processes[0])
    kill(processes[killed])
    died = time.monotonic()
    survivor = processes[1 - killed]
    _, err = survivor.communicate(timeout=120)
    assert time.monotonic() - died < 60
    assert survivor.returncode != 0
    print(err)
    newest = max(steps_saved(tmp_path))
    again = start_two(tmp_path, *ENDLESS)
    wait_for(lambda: max(steps_saved(tmp_path)) > newest, again[0])
    for process in again:
        kill(process)
