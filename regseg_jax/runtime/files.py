"""Files that are whole or not there. Needs Python alone, for one benchmark runs without JAX."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, which becomes `path` when the block ends well.

    Whoever reads `path` sees the old file or the whole new one; an error leaves no trace. The
    folder is created where missing.
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
    """Writes plain data as JSON, a whole file or none."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def check_new(path: str | os.PathLike | None) -> None:
    """Raises ValueError if there is such a file already; None stands for no file."""
    if path is not None and os.path.exists(path):
        raise ValueError(f"{path} exists already; choose another output, or move it away first")
