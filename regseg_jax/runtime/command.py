"""What all commands need: flags, errors as one line, and JAX's set-up."""

import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from regseg_jax.runtime.recipes import find_config


def run_command(main: Callable[[list[str]], None], name: str) -> None:
    """Runs a command: `main(arguments other than flags)`.

    A ValueError, OSError or FloatingPointError (the errors that tell a user what to fix) is
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
        flags.FLAGS.set_gnu_getopt()  # flags may also stand behind the other arguments
        try:
            return flags.FLAGS(_resolve_config(argv))
        except (AttributeError, KeyError) as error:  # what ConfigDict raises for --config.KEY
            _fail(name, f"unknown config key {_unwrap(error)}; regseg_jax/config.py lists the keys")
        except (flags.Error, TypeError, ValueError, OSError) as error:
            _fail(name, error)

    app.run(guarded, flags_parser=parse)


def _resolve_config(argv: list[str]) -> list[str]:
    """The arguments with the path of the file that `--config` names."""
    resolved = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config") and equals:
            resolved[i] = f"{flag}={find_config(value)}"
        elif flag in ("--config", "-config") and i + 1 < len(argv):
            resolved[i + 1] = find_config(argv[i + 1])
    return resolved


def _unwrap(error: BaseException) -> str:
    """The message inside errors that were made from errors, without the quotes of each."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return str(error.args[0]).replace("\n", ". ") if error.args else str(error)


def _fail(name: str, error: Exception | str) -> None:
    message = " ".join(str(error).split())
    print(f"{name}: error: {message}", file=sys.stderr)
    sys.exit(1)


def _set_up_compilation_cache() -> None:
    """Keeps compiled programs, so that a restart need not wait for the compiler again."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(cache) / "regseg_jax"))
