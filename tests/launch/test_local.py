"""launch/local.sh: two processes on one machine, stopped and started again."""

import os
import signal
import subprocess

import pytest
from small_process import steps_saved, wait_for
from tiny_run import CONFIG, NUM_STEPS, ROOT, SECONDS, VARIABLES, find_free_port, write_python

SCRIPT = ROOT / "launch" / "local.sh"


def start(tmp_path, *arguments: str) -> subprocess.Popen:
    python = write_python(tmp_path / "python")
    variables = {"PYTHON": str(python), "PORT": str(find_free_port())}
    return subprocess.Popen(
        [SCRIPT, *arguments],
        env=os.environ | VARIABLES | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_number_of_processes_is_needed(tmp_path):
    script = start(tmp_path)
    assert "usage: launch/local.sh NUM_PROCESSES" in script.communicate()[0]
    assert script.returncode != 0


@pytest.mark.slow
def test_one_sigterm_stops_all_and_they_go_on(tmp_path):
    workdir = tmp_path / "run"
    script = start(tmp_path, "2", *CONFIG, f"--workdir={workdir}")
    wait_for(lambda: steps_saved(workdir), script, SECONDS)
    script.send_signal(signal.SIGTERM)
    log = script.communicate(timeout=SECONDS)[0]
    assert script.returncode == 143, log
    assert "stopped by request at step" in log
    script = start(tmp_path, "2", *CONFIG, f"--workdir={workdir}")
    log = script.communicate(timeout=SECONDS)[0]
    assert script.returncode == 0, log
    assert max(steps_saved(workdir)) == NUM_STEPS


@pytest.mark.slow
def test_the_first_to_fail_ends_the_others(tmp_path):
    script = start(tmp_path, "2", *CONFIG, f"--workdir={tmp_path}", "--config.global_batch_size=3")
    log = script.communicate(timeout=SECONDS)[0]
    assert script.returncode == 1, log
    assert "config.global_batch_size is 3" in log
