"""How many batches each batch norm saw: PyTorch counts them, Flax does not.

An imported run keeps the counts of its file, so that an export returns them.
"""

import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from regseg_jax.runtime.files import write_json

_FILE = "num_batches_tracked.json"


def save_counters(workdir: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
    """Keeps the state dict's `num_batches_tracked` with the run, by their names."""
    counters = {
        name: int(count)
        for name, count in state_dict.items()
        if name.endswith(".num_batches_tracked")
    }
    write_json(pathlib.Path(workdir) / _FILE, counters)


def load_counters(workdir: str | os.PathLike) -> dict[str, int]:
    """What `save_counters` kept; nothing for a run that was not imported."""
    path = pathlib.Path(workdir) / _FILE
    return json.loads(path.read_text()) if path.exists() else {}
