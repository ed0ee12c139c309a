"""launch/Dockerfile: the linter's opinion, and what goes in; no image is built here."""

import pathlib
import re
import subprocess
import sysconfig
import tomllib

from tiny_run import ROOT

DOCKERFILE = ROOT / "launch" / "Dockerfile"
TEXT = DOCKERFILE.read_text()


def test_the_linter_finds_nothing():
    hadolint = pathlib.Path(sysconfig.get_path("scripts"), "hadolint")
    command = [hadolint, "--failure-threshold=style", DOCKERFILE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    bad = TEXT.replace("python -m pip install", "cd / && pip install")
    result = subprocess.run(
        [*command[:-1], "-"], input=bad, capture_output=True, text=True, check=False
    )
    assert "DL3003" in result.stdout


def test_what_is_copied_is_there_and_not_ignored():
    copied = [path for line in re.findall("^COPY (.*) /", TEXT, re.M) for path in line.split()]
    ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{path}" for path in copied} == {line for line in ignored if line.startswith("!")}
    for path in copied:
        assert (ROOT / path).exists()
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert set(copied) >= set(wheel["targets"]["wheel"]["only-include"])


def test_every_accelerator_is_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (names,) = re.findall(r"^ +([a-z |]+)\) extra=\"\[\$ACCELERATOR\]\"", TEXT, re.M)
    assert set(names.split(" | ")) == {"cuda", "tpu"} <= extras.keys()
