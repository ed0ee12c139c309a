"""Trained weights as a PyTorch state dict of numpy arrays."""

import numpy as np

from regseg_jax.runs.trained import Trained
from regseg_jax.weights.names import to_torch


def create_state_dict(trained: Trained) -> dict[str, np.ndarray]:
    """The weights by PyTorch's names and in its layout; its counters of batches go on."""
    state_dict = to_torch(trained.variables, num_batches_tracked=trained.step)
    return state_dict | {name: state_dict[name] + n for name, n in trained.counters.items()}
