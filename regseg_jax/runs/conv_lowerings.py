"""The table of measured convolution lowerings that a run was started with."""

import json
import os
import pathlib

from regseg_jax.ops.lowerings import LoweringTable
from regseg_jax.runtime.files import write_json

_COPY = "conv_lowerings.json"


def load_conv_lowerings(
    path: str, workdir: str | os.PathLike, *, write: bool = True
) -> LoweringTable | None:
    """Reads `config.conv_lowerings`, and keeps a copy in the run's folder, which restarts use.

    Args:
      path: of the table, as `benchmark.convolutions --tune` writes it; "" for none. It may
        be gone once the folder has its copy.
      workdir: of the run.
      write: False for all processes but the main one.

    Raises:
      ValueError: if the file cannot be read, is not such a table, or is not the one that the run
        began with.
    """
    if not path:
        return None
    copy, kept = pathlib.Path(workdir) / _COPY, load_kept_lowerings(workdir)
    if kept is not None and not os.path.exists(path):
        return kept
    table = read_lowerings(path)
    if kept is None and write:
        write_json(copy, table.to_json())
    if kept not in (None, table):
        raise ValueError(
            f"config.conv_lowerings is {path}, which is not the table that the run began with, "
            f"{copy}; put that one back, or choose another workdir"
        )
    return table


def load_kept_lowerings(workdir: str | os.PathLike) -> LoweringTable | None:
    """The table that a run was started with, from its folder; None where it had none."""
    copy = pathlib.Path(workdir) / _COPY
    return read_lowerings(copy) if copy.exists() else None


def read_lowerings(path: str | os.PathLike) -> LoweringTable:
    """Reads a table.

    Raises:
      ValueError: if it cannot be read or is not a table.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"config.conv_lowerings: cannot read {path}: {error}") from None
    return LoweringTable.from_json(content, str(path))
