"""The training step: a pure function, for the caller to jit.

It is parallel explicitly: inside `jax.shard_map` every device computes on its own shard of the
batch, and what concerns the global batch is a sum over the mesh. Devices that share an image are
all given the whole one, and each takes its own rows (see `ops.height_shards`). Left to XLA's
partitioner, grouped convolutions on GPUs would gather the global batch on every device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training.dynamic_scale import DynamicScale
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.models.regseg import RegSeg
from regseg_jax.ops.barrier import gpu_common
from regseg_jax.ops.space_to_depth import choose_width, use_space_to_depth
from regseg_jax.training.losses import CrossEntropy
from regseg_jax.training.optimizer import Schedule
from regseg_jax.training.sharding import BATCH_AXIS, split_height
from regseg_jax.training.train_state import TrainState

Batch = dict[str, Array]
AugmentFn = Callable[..., tuple[Array, Array]]


def augment_batch(
    augment_fn: AugmentFn, batch: Batch, rng: Array, step: Array, num_parts: int = 1
) -> tuple[Array, Array]:
    """Images and labels of a step; batches' other entries are passed on by name.

    In num_parts one after another, to save memory; the result is the same.
    """
    crop_parameters = {k: v for k, v in batch.items() if k not in ("image", "label")}
    step_rng = jax.random.fold_in(rng, step)
    if num_parts == 1:
        return augment_fn(batch["image"], batch["label"], step_rng, **crop_parameters)
    keys = jax.random.split(step_rng, len(batch["image"]))

    def augment_part(part: tuple) -> tuple[Array, Array]:
        images, labels, keys, crop_parameters = part
        return augment_fn(images, labels, keys, **crop_parameters)

    whole = batch["image"], batch["label"], keys, crop_parameters
    parts = lax.map(augment_part, split_batch(whole, num_parts))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def split_batch(batch: Any, num_parts: int, *, contiguous: bool = False) -> Any:
    """Cuts a device's images (or arrays of them, a pytree) into micro-batches.

    Image i of the global batch is in part i mod num_parts, on any number of devices; or, if
    contiguous, the parts are as the shards of num_parts times as many devices would be.

    Returns:
      [b, ...] as [num_parts, b / num_parts, ...].
    """

    def split(x: Array) -> Array:
        if contiguous:
            return x.reshape(num_parts, -1, *x.shape[1:])
        return x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def create_train_step(
    model: RegSeg,
    tx: optax.GradientTransformationExtraArgs,
    learning_rate_fn: Schedule,
    loss_fn: CrossEntropy,
    augment_fn: AugmentFn,
    rng: Array,
    mesh: Mesh,
    *,
    ema_decay: float = 0.0,
    batch_norm_per_device: bool = False,
    accumulation_steps: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Builds the training step: augment, forward, backward, update.

    Args:
      model: its dtype is the precision of the forward and backward passes.
      tx: its `update` gets the step's number as `step`.
      learning_rate_fn: tx's, for the metric.
      loss_fn: of the global batch.
      augment_fn: (images, labels, rng, **the batch's other entries) -> (f32[B, h, w, 3],
        i32[B, h, w]); rng is a key, or a key for each image.
      rng: of the run; each step folds in its number.
      mesh: the devices that batches are split over, along the axis `BATCH_AXIS`, and images too
        if there is an axis `HEIGHT_AXIS`.
      ema_decay: of the average of the weights and statistics, where the state holds one; after
        t steps at most (1 + t) / (10 + t), so that its start soon stops mattering.
      batch_norm_per_device: whether batch norm's statistics are those of each device's images,
        not those of the global batch, which saves a sum over devices per layer. The running
        statistics are the mean over devices. Devices that share images count as one.
      accumulation_steps: micro-batches that a device takes one after another, adding up their
        gradients, to save memory. Loss and gradients are those of the whole batch, but batch norm's
        statistics are those of a micro-batch; the running statistics, which move once a step, take
        their mean. A bootstrapped loss finds the whole batch's hard pixels in a forward pass more.

    Returns:
      A function of (state, {"image": uint8[B, H, W, 3], "label": uint8[B, H, W]}) to the next
      state and the metrics `loss`, `learning_rate`, `grad_norm` and `loss_scale` (1 unless
      float16), f32[], and `skipped`, bool[]: a step whose gradients overflowed under the loss
      scale, which changes nothing but the scale and the step's number.
    """
    axis_name = None if batch_norm_per_device else BATCH_AXIS
    model = model.clone(axis_name=axis_name, upsample=False)

    def compute_own_gradients(
        params: Any,
        batch_stats: Any,
        dynamic_scale: DynamicScale | None,
        images: Array,
        labels: Array,
    ) -> tuple[DynamicScale | None, Array, Array, Any, Array]:
        """As below; of the device's own rows of its images."""
        flat_params, unravel = ravel_pytree(params)
        # Each device has a copy of its own, whose gradient is that of the device's images: the sum
        # over devices is one of one vector, after the last micro-batch.
        flat_params = lax.pcast(flat_params, mesh.axis_names, to="varying")
        scale = dynamic_scale.scale if dynamic_scale else 1
        parts = split_batch((images, labels), accumulation_steps, contiguous=batch_norm_per_device)

        def apply(flat_params: Array, images: Array) -> tuple[Array, Any]:
            # Times 1, for GPUs to cast all weights of a size in one kernel, and their gradients.
            params = optax.tree.scale(gpu_common(jnp.float32(1)), unravel(flat_params))
            logits, mutated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            new_stats = mutated["batch_stats"]
            return logits, lax.pmean(new_stats, BATCH_AXIS) if batch_norm_per_device else new_stats

        def compute_pixel_losses() -> Array:
            def compute(part: tuple[Array, Array]) -> Array:
                return loss_fn.pixel_losses(apply(flat_params, part[0])[0], part[1])

            return lax.map(compute, parts)

        pixel_weights = None
        if accumulation_steps > 1:
            pixel_weights = loss_fn.weigh(parts[1], compute_pixel_losses, axis_name=mesh.axis_names)

        def compute_scaled_loss(
            flat_params: Array, images: Array, labels: Array, pixel_weights: Array | None
        ) -> tuple[Array, tuple[Array, Any]]:
            logits, new_stats = apply(flat_params, images)
            loss = loss_fn(logits, labels, pixel_weights=pixel_weights, axis_name=mesh.axis_names)
            return scale * loss, (loss, new_stats)

        def compute_part(part: tuple) -> tuple[Array, tuple[Array, Any]]:
            return jax.grad(compute_scaled_loss, has_aux=True)(flat_params, *part)

        def add_part(grads: Array, part: tuple) -> tuple[Array, tuple[Array, Any]]:
            part_grads, results = compute_part(part)
            return grads + part_grads, results

        parts = (*parts, pixel_weights)
        if accumulation_steps == 1:
            # Without a loop, where XLA's CPU backend computes convolutions' gradients up to 60
            # times slower.
            grads, results = compute_part(jax.tree.map(lambda x: x[0], parts))
            losses, stats = jax.tree.map(lambda x: x[None], results)
        else:
            grads, (losses, stats) = lax.scan(add_part, jnp.zeros_like(flat_params), parts)
        grads = lax.psum(grads, mesh.axis_names)
        is_finite = jnp.bool_(True)
        if dynamic_scale:
            dynamic_scale, is_finite, grads = _unscale(dynamic_scale, grads)
        batch_stats = jax.tree.map(lambda x: x.mean(0), stats)
        return dynamic_scale, is_finite, losses.sum(), batch_stats, grads

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(BATCH_AXIS), P(BATCH_AXIS)),
        out_specs=P(),
    )
    def compute_gradients(
        params: Any,
        batch_stats: Any,
        dynamic_scale: DynamicScale | None,
        images: Array,
        labels: Array,
    ) -> tuple[DynamicScale | None, Array, Array, Any, Array]:
        """Loss, new statistics and gradients (as one vector), the same on every device."""
        width = choose_width(images.shape[2], mesh.devices.flat[0].platform)
        with split_height(images.shape[1], mesh) as shards, use_space_to_depth(width):
            own = shards.take(images), shards.take(labels, fill=IGNORE_LABEL)
            return compute_own_gradients(params, batch_stats, dynamic_scale, *own)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        images, labels = augment_batch(augment_fn, batch, rng, state.step, accumulation_steps)
        dynamic_scale, is_finite, loss, batch_stats, flat_grads = compute_gradients(
            state.params, state.batch_stats, state.dynamic_scale, images, labels
        )
        # Until all gradients are there no parameter changes: else GPUs copy each, to read it later.
        flat_grads = lax.optimization_barrier(flat_grads)
        _, unravel = ravel_pytree(state.params)
        grads = unravel(flat_grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)

        ema_variables = state.ema_variables
        if ema_variables is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema_variables = optax.incremental_update(
                {"params": params, "batch_stats": batch_stats}, ema_variables, 1 - decay
            )

        next_state = TrainState(
            state.step + 1, params, batch_stats, opt_state, dynamic_scale, ema_variables
        )
        if dynamic_scale:
            unchanged = state.replace(step=state.step + 1, dynamic_scale=dynamic_scale)
            next_state = optax.tree.where(gpu_common(is_finite), next_state, unchanged)
        metrics = {
            "loss": loss,
            "learning_rate": learning_rate_fn(state.step),
            "grad_norm": jnp.linalg.norm(flat_grads),
            "loss_scale": dynamic_scale.scale if dynamic_scale else jnp.float32(1),
            "skipped": ~is_finite,
        }
        return next_state, metrics

    return train_step


def _unscale(dynamic_scale: DynamicScale, grads: Array) -> tuple[DynamicScale, Array, Array]:
    """The next loss scale, whether the gradients are finite, and the gradients without the scale.

    Flax does so for the gradients of a function alone: here of one that has these.
    """
    unscaled = grads / dynamic_scale.scale
    result = dynamic_scale.value_and_grad(lambda x: jnp.vdot(x, unscaled))(grads)
    return result.dynamic_scale, result.finite, result.grad
