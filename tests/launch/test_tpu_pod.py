"""launch/tpu_pod.sh with a stand-in for gcloud: the pod's hosts are two folders here."""

import os
import pathlib
import subprocess
import sys

import pytest
from small_process import steps_saved
from tiny_run import CONFIG, NUM_STEPS, ROOT, SECONDS, VARIABLES, find_free_port, write_python

HERE = pathlib.Path(__file__).parent
# A host's Python: environments are made in no time and get no packages; pip says what it is asked.
HOST_PYTHON = f"""#!/bin/sh
case "$1 $2" in
  "-m venv")
    mkdir -p "$3/bin"
    ln -sf {{small_python}} "$3/bin/python"
    printf '#!/bin/sh\\necho pip "$@"\\n' >"$3/bin/pip"
    chmod +x "$3/bin/pip" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def launch(tmp_path):
    """Runs the script with arguments and variables; the hosts are in tmp_path / "hosts"."""
    for name in ("a", "b"):
        (tmp_path / "hosts" / name).mkdir(parents=True)
    python, small_python = tmp_path / "python", write_python(tmp_path / "small_python")
    python.write_text(HOST_PYTHON.format(small_python=small_python))
    python.chmod(0o755)

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = os.environ | VARIABLES | {"PATH": f"{HERE}:{os.environ['PATH']}"}
        environment |= {"TPU_HOSTS": str(tmp_path / "hosts"), "PORT": str(find_free_port())}
        return subprocess.run(
            [ROOT / "launch" / "tpu_pod.sh", *arguments],
            cwd=tmp_path,
            env=environment | {"PYTHON": str(python), "ZONE": "zone-b"} | variables,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    return run


def test_a_name_and_a_zone_are_needed(launch):
    assert "set ZONE" in launch("pod-7", ZONE="").stderr
    assert "usage: " in launch().stderr


def test_hosts_with_a_python_that_does_not_fit_start_nothing(launch, tmp_path):
    result = launch("pod-7", "--config=configs/synthetic.py", PYTHON="false")
    assert result.returncode != 0
    for host in (tmp_path / "hosts").iterdir():
        assert (host / "regseg_jax" / "regseg_jax" / "main.py").is_file()  # what is committed
        assert not (host / "regseg_jax" / ".venv").exists()


@pytest.mark.slow
def test_a_run_on_two_hosts(launch, tmp_path):
    result = launch("pod-7", *CONFIG, f"--workdir={tmp_path / 'a run'}")
    logs = [(host / "log").read_text() for host in sorted((tmp_path / "hosts").iterdir())]
    assert result.returncode == 0, (result.stderr, logs)
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ("what is not committed is not copied" in result.stderr) == bool(changed.stdout)
    for log in logs:
        assert "pip install -q -r requirements.txt jax[tpu]" in log
    assert max(steps_saved(tmp_path / "a run")) == NUM_STEPS
    environment = (tmp_path / "a run" / "environment.json").read_text()
    assert '"processes": 2' in environment
