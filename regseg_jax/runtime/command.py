"""What the commands share: flags, errors as one line, and JAX's set-up."""

import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging


def run_command(main: Callable[[list[str]], None], name: str) -> None:
    """Runs a command: `main(arguments that are no flags)`.

    A ValueError, OSError or FloatingPointError (the errors that tell a user what to mend) is
    printed as one line, and the exit code is 1.

    Args:
      main: the command.
      name: its module, for the message.
    """

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.FATAL)  # Orbax and Grain log what they also raise
        _set_up_compilation_cache()
        try:
            main(argv[1:])
        except (ValueError, OSError, FloatingPointError) as error:
            _fail(name, error)

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:  # what ConfigDict raises for --config.KEY
            _fail(name, f"unknown config key {error}; regseg_jax/config.py lists the keys")
        except (flags.Error, TypeError, ValueError, OSError) as error:
            _fail(name, error)

    app.run(guarded, flags_parser=parse)


def _fail(name: str, error: Exception | str) -> None:
    message = " ".join(str(error).split())
    print(f"{name}: error: {message}", file=sys.stderr)
    sys.exit(1)


def _set_up_compilation_cache() -> None:
    """Keeps compiled programs, so that a restart need not wait for the compiler again."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache) / "regseg_jax"))
