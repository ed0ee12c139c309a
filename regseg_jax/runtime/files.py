"""Atomic file writes. Imports nothing but Python: one benchmark runs without JAX."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, which becomes `path` when the block ends without error.

    Atomic: readers of `path` see the old file or the complete new one, and an error leaves no
    trace. The folder is created if it is missing.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes plain data as JSON, atomically."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def check_new(path: str | os.PathLike | None) -> None:
    """Raises ValueError if the file exists already; None stands for no file."""
    if path is not None and os.path.exists(path):
        raise ValueError(f"{path} exists already; choose another output, or move it away first")
