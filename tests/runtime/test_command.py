import subprocess
import sys

import pytest

COMMAND = """
from ml_collections import config_flags
from regseg_jax.runtime.command import run_command
config_flags.DEFINE_config_file("config", None, "A recipe.")
run_command(lambda argv: print("ran"), "a_command")
"""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config=configs/cityscape.py"],
            "a_command: error: --config=configs/cityscape.py is neither a config file nor a recipe",
        ),
        (
            ["--config", "synthetic", "--config.num_epoch=3"],
            "a_command: error: unknown config key 'num_epoch'. Did you mean \"num_epochs\" instead "
            'of "num_epoch"?; regseg_jax/config.py lists the keys',
        ),
    ],
)
def test_a_wrong_config_is_one_plain_line(flags, message):
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, *flags], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(message)
    assert "\\" not in result.stderr
