"""Precise batch norm: running statistics that are those of the present weights alone."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from regseg_jax.models.layers import BATCH_NORM_UPDATE
from regseg_jax.models.regseg import RegSeg
from regseg_jax.training.sharding import replicated, shard_batch
from regseg_jax.training.steps import AugmentFn
from regseg_jax.training.train_state import TrainState

CreateBatches = Callable[..., contextlib.AbstractContextManager[Iterator[dict[str, np.ndarray]]]]


class PreciseBatchNorm:
    """Replaces a state's running statistics by the mean over batches of training images.

    The running statistics lag behind the weights: they remember batches that weights long gone
    have seen. Training does not read them, so replacing them changes evaluation alone. The
    batches are always the run's first ones, augmented as they were then.

    Args:
      model: of the run.
      augment_fn: of training.
      rng: of the training steps.
      create_batches: makes an iterator over the batches of steps start_step to num_steps - 1.
      mesh: of the run.
      num_steps: batches to average over; 0: states are left as they are.
    """

    def __init__(
        self,
        model: RegSeg,
        augment_fn: AugmentFn,
        rng: Array,
        create_batches: CreateBatches,
        mesh: Mesh,
        *,
        num_steps: int,
    ):
        self._create_batches = create_batches
        self._mesh = mesh
        self._num_steps = num_steps

        def add_batch(
            total: Any, params: Any, batch: dict[str, Array], step: Array
        ) -> dict[str, Any]:
            placing = {k: v for k, v in batch.items() if k not in ("image", "label")}
            step_rng = jax.random.fold_in(rng, step)
            images, _ = augment_fn(batch["image"], batch["label"], step_rng, **placing)
            # From statistics of 0, an update is the batch's own ones times a known factor.
            _, mutated = model.apply(
                {"params": params, "batch_stats": jax.tree.map(jnp.zeros_like, total)},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            share = BATCH_NORM_UPDATE * num_steps
            return jax.tree.map(lambda t, new: t + new / share, total, mutated["batch_stats"])

        self._add_batch = jax.jit(add_batch, donate_argnums=0, out_shardings=replicated(mesh))

    def __call__(self, state: TrainState) -> TrainState:
        """The state with new statistics, also those of the averaged weights if it has some."""
        if not self._num_steps:
            return state
        state = state.replace(batch_stats=self._compute(state.params, state.batch_stats))
        if state.ema_variables is None:
            return state
        params = state.ema_variables["params"]
        batch_stats = self._compute(params, state.ema_variables["batch_stats"])
        return state.replace(ema_variables={"params": params, "batch_stats": batch_stats})

    def _compute(self, params: Any, like: Any) -> Any:
        total = jax.tree.map(jnp.zeros_like, like)
        with self._create_batches(start_step=0, num_steps=self._num_steps) as batches:
            for step, batch in enumerate(batches):
                total = self._add_batch(total, params, shard_batch(batch, self._mesh), step)
        return total
