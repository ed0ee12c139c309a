import pathlib
import subprocess
import sys

import regseg_jax

PACKAGE = pathlib.Path(regseg_jax.__file__).parent
COMMANDS = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__main__")
    for path in PACKAGE.rglob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text()
)
# One process for all commands: importing JAX and PyTorch is what takes the time.
ASK_EACH_FOR_HELP = """
import runpy, sys
from absl import app, flags

app.define_help_flags()
before = set(flags.FLAGS)
for command in sys.argv[1:]:
    print("##", command, flush=True)
    sys.argv = [command, "--help"]
    try:
        runpy.run_module(command, run_name="__main__")
    except SystemExit:
        pass
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
"""


def test_every_command_says_how_it_is_used():
    assert {"regseg_jax.main", "regseg_jax.predict", "regseg_jax.export"} <= set(COMMANDS)
    result = subprocess.run(
        [sys.executable, "-c", ASK_EACH_FOR_HELP, *COMMANDS],
        capture_output=True,
        text=True,
        check=True,
    )
    parts = [part.partition("\n") for part in result.stdout.split("## ")[1:]]
    assert [command for command, _, _ in parts] == COMMANDS
    for command, _, usage in parts:
        assert "usage" in usage.lower(), command
        assert "--" in usage, command
