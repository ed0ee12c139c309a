"""A run's weights as a PyTorch state dict of numpy arrays."""

from collections.abc import Mapping

import numpy as np

from regseg_jax.runs.trained import TrainedRun
from regseg_jax.weights.names import to_torch


def create_state_dict(
    trained: TrainedRun, counters: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """The run's weights by PyTorch's names and in its layout.

    Args:
      trained: the run.
      counters: see `runs.counters`; the steps taken since are added to them.
    """
    state_dict = to_torch(trained.variables, num_batches_tracked=trained.step)
    return state_dict | {name: state_dict[name] + count for name, count in (counters or {}).items()}
