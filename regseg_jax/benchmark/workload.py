"""What every row of the benchmark computes, and how its output is judged."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.models.regseg import RegSeg
from regseg_jax.reports.model_table import count_rows

MODES = ("inference", "train")
# Largest difference to float32, see `compare`. Rounding gives a small part of these.
TOLERANCES = {
    "inference": {"float32": 0.02, "bfloat16": 0.3, "float16": 0.1},
    "train": {"float32": 0.002, "bfloat16": 0.05, "float16": 0.05},
}
NUM_LOSSES = 3
LEARNING_RATE = 0.05
# A loss scale at which no step overflows: a skipped step has nothing to compare.
LOSS_SCALE = 2.0**10


@dataclasses.dataclass(frozen=True)
class Workload:
    """What every row computes.

    Attributes:
      mode: one of `MODES`.
      model: its dtype is replaced by each row's precision.
      images: f32[B, H, W, 3], noise.
      labels: i32[B, H, W], noise; some are ignored.
    """

    mode: str
    model: RegSeg
    images: np.ndarray
    labels: np.ndarray

    @property
    def flops(self) -> int:
        """Floating-point operations of the convolutions; a backward pass counts as two forward."""
        batch_size, height, width, _ = self.images.shape
        macs = batch_size * sum(row.macs for row in count_rows(self.model, (height, width)))
        return 2 * macs * (3 if self.mode == "train" else 1)


def create_workload(mode: str, model: RegSeg, size: tuple[int, int], batch_size: int) -> Workload:
    """Draws images and labels, the same at each call."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, *size, 3), np.float32)
    labels = rng.integers(0, model.num_classes, (batch_size, *size), np.int32)
    labels[rng.random(labels.shape) < 0.05] = IGNORE_LABEL
    return Workload(mode, model, images, labels)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A row that is ready to be timed.

    Attributes:
      run: computes the workload once and waits for the result: logits or the loss.
      output: float32 logits [B, H, W, num_classes] of the first run, or the losses of the first
        three training steps, which depend on two updates.
      compile_seconds: JAX's compilation; PyTorch's first run.
      memory_bytes: the peak; None if it is not known.
    """

    run: Callable[[], Any]
    output: np.ndarray
    compile_seconds: float
    memory_bytes: int | None


def compare(output: np.ndarray, reference: np.ndarray, mode: str) -> dict[str, float]:
    """How an output differs from the float32 one.

    Returns:
      `max_difference`; `relative_difference`, the root mean square in units of the logits'
      standard deviation or of the losses' mean; for inference `differing_pixels`, the fraction of
      pixels whose class is another.
    """
    difference = output - reference
    scale = reference.std() if mode == "inference" else reference.mean()
    agreement = {
        "max_difference": float(np.abs(difference).max()),
        "relative_difference": float(np.sqrt(np.square(difference).mean()) / scale),
    }
    if mode == "inference":
        agreement["differing_pixels"] = float((output.argmax(-1) != reference.argmax(-1)).mean())
    return agreement
