"""Precise batch norm: running statistics of the current weights alone."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from regseg_jax.models.layers import BATCH_NORM_UPDATE
from regseg_jax.models.regseg import RegSeg
from regseg_jax.training.sharding import BATCH_AXIS, replicated, shard_batch
from regseg_jax.training.steps import AugmentFn, augment_batch, split_batch
from regseg_jax.training.train_state import TrainState

CreateBatches = Callable[..., contextlib.AbstractContextManager[Iterator[dict[str, np.ndarray]]]]


class PreciseBatchNorm:
    """Replaces a state's running statistics by the mean over batches of training images.

    The running statistics lag behind the weights: they still hold the statistics of batches
    that earlier weights saw. Training does not read them, so replacing them changes evaluation
    alone. The batches are always the run's first ones, augmented as they were then.

    Args:
      model: of the run.
      augment_fn: of training.
      rng: of the training steps.
      create_batches: makes an iterator over the batches of steps start_step to num_steps - 1.
      mesh: of the run.
      num_steps: batches to average over; 0: states are left as they are.
      accumulation_steps: as in training, see `steps.create_train_step`.
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
        accumulation_steps: int = 1,
    ):
        self._create_batches = create_batches
        self._mesh = mesh
        self._num_steps = num_steps
        self._add_batch = jax.jit(
            create_add_batch(
                model,
                augment_fn,
                rng,
                mesh,
                num_steps=num_steps,
                accumulation_steps=accumulation_steps,
            ),
            donate_argnums=0,
            out_shardings=replicated(mesh),
        )

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


def create_add_batch(
    model: RegSeg,
    augment_fn: AugmentFn,
    rng: Array,
    mesh: Mesh,
    *,
    num_steps: int,
    accumulation_steps: int = 1,
) -> Callable[[Any, Any, dict[str, Array], Array], Any]:
    """Builds the computation of a batch, for the caller to jit; arguments as above.

    Returns:
      A function of (total, params, batch, step) to total plus the statistics of the step's batch,
      divided by num_steps.
    """
    model = model.clone(axis_name=BATCH_AXIS)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(), P(BATCH_AXIS)), out_specs=P())
    def update_stats(params: Any, batch_stats: Any, images: Array) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}

        def update(images: Array) -> Any:
            _, mutated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return mutated["batch_stats"]

        stats = lax.map(update, split_batch(images, accumulation_steps))
        return jax.tree.map(lambda x: x.mean(0), stats)

    def add_batch(total: Any, params: Any, batch: dict[str, Array], step: Array) -> Any:
        images, _ = augment_batch(augment_fn, batch, rng, step, accumulation_steps)
        # From statistics of 0, an update is the batch's own ones times a known factor.
        updated = update_stats(params, jax.tree.map(jnp.zeros_like, total), images)
        return optax.tree.add_scale(total, 1 / (BATCH_NORM_UPDATE * num_steps), updated)

    return add_batch
