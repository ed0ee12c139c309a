"""How many batches each batch norm saw: PyTorch counts them, Flax does not.

An imported run keeps the counts of its file, so that an export returns them.
"""

import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from regseg_jax.runtime.files import write_json
from regseg_jax.weights.names import read_counters

_FILE = "num_batches_tracked.json"


def save_counters(workdir: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
    """Keeps the state dict's counters with the run."""
    write_json(pathlib.Path(workdir) / _FILE, read_counters(state_dict))


def load_counters(workdir: str | os.PathLike) -> dict[str, int]:
    """What `save_counters` kept; nothing for a run that was not imported."""
    path = pathlib.Path(workdir) / _FILE
    return json.loads(path.read_text()) if path.exists() else {}
