"""PyTorch files: the state dict under "model", and metadata next to it."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from regseg_jax.export.state_dict import create_state_dict
from regseg_jax.export.torch_model import RegSeg, create_torch_model, load_weights
from regseg_jax.runs.trained import TrainedRun


def create_trained_torch_model(
    trained: TrainedRun, counters: Mapping[str, int] | None = None
) -> RegSeg:
    """The run's model in PyTorch: float32, on the CPU, in evaluation mode."""
    state_dict = create_state_dict(trained, counters)
    return create_loaded_model(trained.model.variant.name, trained.model.num_classes, state_dict)


def create_loaded_model(
    name: str, num_classes: int, state_dict: Mapping[str, np.ndarray]
) -> RegSeg:
    """A variant in PyTorch with these weights: float32, on the CPU, in evaluation mode."""
    model = create_torch_model(name, num_classes).eval()
    load_weights(model, {name: torch.tensor(array) for name, array in state_dict.items()})
    return model


def serialize(model: RegSeg, metadata: Mapping[str, Any]) -> bytes:
    """A file for `torch.load(weights_only=True)`: {"model": state dict, **metadata}."""
    buffer = io.BytesIO()
    torch.save({"model": dict(model.state_dict()), **metadata}, buffer)
    return buffer.getvalue()
