import pathlib
import subprocess
import sys

import pytest

import regseg_jax

PACKAGE = pathlib.Path(regseg_jax.__file__).parent
COMMANDS = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__main__")
    for path in PACKAGE.rglob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text()
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_how_it_is_used(command):
    result = subprocess.run(
        [sys.executable, "-m", command, "--help"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr, result.stderr
    assert "--" in result.stdout
