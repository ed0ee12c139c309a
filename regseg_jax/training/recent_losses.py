"""The losses since the last log record; a loss that is not finite stops the run."""

import collections
import math
import os

import jax
import numpy as np

# Steps that the host may be ahead of the device: enough to hide its work, few enough that a
# non-finite loss is seen soon and that the time spent waiting for input is measured right.
_STEPS_AHEAD = 2
# float16: a loss scale below this means that the loss itself has overflowed for good.
_MIN_LOSS_SCALE = 2.0**-10


class RecentLosses:
    """The metrics of the steps since the last record, read a few steps behind the device."""

    def __init__(self, workdir: str | os.PathLike):
        self._workdir = workdir
        self._pending = collections.deque()
        self._done: list[dict[str, float]] = []

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds a step's metrics and waits for those of the step `_STEPS_AHEAD` before it."""
        self._pending.append((step, metrics))
        while len(self._pending) > _STEPS_AHEAD:
            self._read_one()

    def wait(self) -> None:
        """Waits for every step so far."""
        while self._pending:
            self._read_one()

    def summarize(self) -> dict[str, float]:
        """Means since the last call, and the learning rate and loss scale of the last step."""
        self.wait()
        done, self._done = self._done, []
        taken = [metrics for metrics in done if not metrics["skipped"]]
        means = {k: float(np.mean([m[k] for m in taken])) for k in ("loss", "grad_norm") if taken}
        last = {k: done[-1][k] for k in ("learning_rate", "loss_scale")}
        return means | last | {"skipped_steps": len(done) - len(taken)}

    def _read_one(self) -> None:
        step, metrics = self._pending.popleft()
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        overflowed = metrics["skipped"] and metrics["loss_scale"] < _MIN_LOSS_SCALE
        if (not finite and not metrics["skipped"]) or overflowed:
            raise FloatingPointError(
                f"the loss of step {step} is {metrics['loss']} (gradient norm "
                f"{metrics['grad_norm']}); the last good checkpoint is kept in {self._workdir}. "
                "Lower config.optimizer.learning_rate, lengthen the warm-up, or use "
                "config.precision=float32"
            )
        self._done.append(metrics)
