"""Runs <-> PyTorch files: the state dict under "model", and plain data beside it."""

import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from regseg_jax.export.torch_model import (
    RegSeg,
    create_torch_model,
    load_state_dict_file,
    load_weights,
)
from regseg_jax.export.torch_weights import to_torch
from regseg_jax.runs.trained import TrainedRun
from regseg_jax.runtime.files import write_json

# PyTorch counts the batches that each batch norm saw; Flax has no place for it. A run that was
# imported keeps the counts that it came with in this file, by their names in the state dict.
_COUNTERS_FILE = "num_batches_tracked.json"


def create_trained_torch_model(
    trained: TrainedRun, counters: Mapping[str, int] | None = None
) -> RegSeg:
    """The run's model in PyTorch: float32, on the CPU, in evaluation mode.

    Args:
      trained: the run.
      counters: see `load_counters`; the steps taken since are added to them.

    Raises:
      ValueError: if PyTorch has no such model.
    """
    state_dict = to_torch(trained.variables, num_batches_tracked=trained.step)
    for name, count in (counters or {}).items():
        state_dict[name] = state_dict[name] + count
    model = create_torch_model(trained.model.variant.name, trained.model.num_classes).eval()
    load_weights(model, {name: torch.tensor(array) for name, array in state_dict.items()})
    return model


def serialize(model: RegSeg, metadata: Mapping[str, Any]) -> bytes:
    """A file for `torch.load(weights_only=True)`: {"model": state dict, **metadata}."""
    buffer = io.BytesIO()
    torch.save({"model": dict(model.state_dict()), **metadata}, buffer)
    return buffer.getvalue()


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a state dict as `load_state_dict_file` does, floats of any precision as float32."""
    return {
        name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in load_state_dict_file(path).items()
    }


def save_counters(workdir: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
    """Keeps the state dict's `num_batches_tracked` with the run."""
    counters = {
        name: int(count)
        for name, count in state_dict.items()
        if name.endswith(".num_batches_tracked")
    }
    write_json(pathlib.Path(workdir) / _COUNTERS_FILE, counters)


def load_counters(workdir: str | os.PathLike) -> dict[str, int]:
    """What `save_counters` kept; nothing for a run that was not imported."""
    path = pathlib.Path(workdir) / _COUNTERS_FILE
    return json.loads(path.read_text()) if path.exists() else {}
