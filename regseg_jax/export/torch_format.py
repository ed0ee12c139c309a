"""PyTorch files: the state dict under "model", and metadata next to it."""

import io
from collections.abc import Mapping
from typing import Any

import torch

from regseg_jax.export.state_dict import create_state_dict
from regseg_jax.export.torch_model import RegSeg, create_torch_model, load_weights
from regseg_jax.runs.trained import Trained


def create_trained_torch_model(trained: Trained) -> RegSeg:
    """The trained model in PyTorch: float32, on the CPU, in evaluation mode."""
    state_dict = create_state_dict(trained)
    model = create_torch_model(trained.model.variant.name, trained.model.num_classes).eval()
    load_weights(model, {name: torch.tensor(array) for name, array in state_dict.items()})
    return model


def serialize(model: RegSeg, metadata: Mapping[str, Any]) -> bytes:
    """A file for `torch.load(weights_only=True)`: {"model": state dict, **metadata}."""
    buffer = io.BytesIO()
    torch.save({"model": dict(model.state_dict()), **metadata}, buffer)
    return buffer.getvalue()
