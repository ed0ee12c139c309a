"""The training and the evaluation step: pure functions, for the caller to jit.

Both are parallel explicitly: inside `jax.shard_map` every device computes on its own shard of the
batch, and what concerns the global batch is a sum over `BATCH_AXIS`. Left to XLA's
partitioner, grouped convolutions on GPUs would gather the global batch on every device.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training.dynamic_scale import DynamicScale
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from regseg_jax.models.regseg import RegSeg
from regseg_jax.ops.resize import upsample_bilinear
from regseg_jax.ops.upsampled_loss import upsampled_argmax
from regseg_jax.training.losses import CrossEntropy
from regseg_jax.training.metrics import ConfusionMatrix
from regseg_jax.training.optimizer import Schedule
from regseg_jax.training.sharding import BATCH_AXIS
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
      mesh: the devices that batches are split over, along the axis `BATCH_AXIS`.
      ema_decay: of the average of the weights and statistics, where the state holds one; after
        t steps at most (1 + t) / (10 + t), so that its start soon stops mattering.
      batch_norm_per_device: whether batch norm's statistics are those of each device's images,
        not those of the global batch, which saves a sum over devices per layer. The running
        statistics are the mean over devices.
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
        flat_params, unravel = ravel_pytree(params)
        # Each device has a copy of its own, whose gradient is that of the device's images: the sum
        # over devices is one of one vector, after the last micro-batch.
        flat_params = lax.pcast(flat_params, BATCH_AXIS, to="varying")
        scale = dynamic_scale.scale if dynamic_scale else 1
        parts = split_batch((images, labels), accumulation_steps, contiguous=batch_norm_per_device)

        def apply(flat_params: Array, images: Array) -> tuple[Array, Any]:
            logits, mutated = model.apply(
                {"params": unravel(flat_params), "batch_stats": batch_stats},
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
            pixel_weights = loss_fn.weigh(parts[1], compute_pixel_losses, axis_name=BATCH_AXIS)

        def compute_scaled_loss(
            flat_params: Array, images: Array, labels: Array, pixel_weights: Array | None
        ) -> tuple[Array, tuple[Array, Any]]:
            logits, new_stats = apply(flat_params, images)
            loss = loss_fn(logits, labels, pixel_weights=pixel_weights, axis_name=BATCH_AXIS)
            return scale * loss, (loss, new_stats)

        def add_part(grads: Array, part: tuple) -> tuple[Array, tuple[Array, Any]]:
            part_grads, results = jax.grad(compute_scaled_loss, has_aux=True)(flat_params, *part)
            return grads + part_grads, results

        grads, (losses, stats) = lax.scan(
            add_part,
            jnp.zeros_like(flat_params),
            (*parts, pixel_weights),
            unroll=accumulation_steps == 1,  # without a loop
        )
        grads = lax.psum(grads, BATCH_AXIS)
        is_finite = jnp.bool_(True)
        if dynamic_scale:
            dynamic_scale, is_finite, grads = _unscale(dynamic_scale, grads)
        batch_stats = jax.tree.map(lambda x: x.mean(0), stats)
        return dynamic_scale, is_finite, losses.sum(), batch_stats, grads

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        images, labels = augment_batch(augment_fn, batch, rng, state.step, accumulation_steps)
        dynamic_scale, is_finite, loss, batch_stats, flat_grads = compute_gradients(
            state.params, state.batch_stats, state.dynamic_scale, images, labels
        )
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
            next_state = optax.tree.where(is_finite, next_state, unchanged)
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


ScoreFn = Callable[[dict[str, Any], Array, tuple[int, int]], Array]
ClassifyFn = ScoreFn  # of the same arguments


def create_score_fn(
    model: RegSeg,
    preprocess_fn: Callable[[Array], Array],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> ScoreFn:
    """Builds the function that scores the classes of whole images.

    Args:
      model: of the run.
      preprocess_fn: uint8[B, H, W, 3] -> the model's input.
      scales: the model sees its input resized by each.
      flip: whether it sees each input mirrored as well.

    Returns:
      A function of (variables, images uint8[B, H, W, 3], size) to f32[B, *size, num_classes],
      higher for likelier classes: the logits of a single input, or the mean of the probabilities
      over several.
    """

    def score_fn(variables: dict[str, Any], images: Array, size: tuple[int, int]) -> Array:
        inputs = preprocess_fn(images)

        def compute_logits(x: Array) -> Array:
            return upsample_bilinear(model.apply(variables, x, train=False), size)

        if tuple(scales) == (1.0,) and not flip:
            return compute_logits(inputs)
        total = 0
        for scale in scales:
            batch, *sides, channels = inputs.shape
            shape = (batch, *(max(round(side * scale), 1) for side in sides), channels)
            scaled = jax.image.resize(inputs, shape, method="bilinear", antialias=True)
            total += jax.nn.softmax(compute_logits(scaled))
            if flip:
                total += jax.nn.softmax(compute_logits(scaled[:, :, ::-1])[:, :, ::-1])
        return total / (len(scales) * (1 + flip))

    return score_fn


def create_classify_fn(
    model: RegSeg,
    preprocess_fn: Callable[[Array], Array],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> ClassifyFn:
    """Builds the function that classifies the pixels of whole images.

    Args:
      model, preprocess_fn, scales, flip: see `create_score_fn`.

    Returns:
      A function of (variables, images uint8[B, H, W, 3], size) to uint8[B, *size]: the class of
      the highest score. Of a single input of this size no scores are stored.
    """
    score_fn = create_score_fn(model, preprocess_fn, scales=scales, flip=flip)

    def classify_fn(variables: dict[str, Any], images: Array, size: tuple[int, int]) -> Array:
        inputs = preprocess_fn(images)
        if tuple(scales) != (1.0,) or flip or inputs.shape[1:3] != size:
            return lax.argmax(score_fn(variables, images, size), 3, jnp.uint8)
        logits = model.clone(upsample=False).apply(variables, inputs, train=False)
        return upsampled_argmax(logits, size)

    return classify_fn


def create_eval_step(
    model: RegSeg, classify_fn: ClassifyFn, mesh: Mesh
) -> Callable[[dict[str, Any], Batch], tuple[Array, ConfusionMatrix]]:
    """Builds the evaluation step: whole images, classified at the labels' size.

    Args:
      model: of the run.
      classify_fn: see `create_classify_fn`.
      mesh: the devices that batches are split over.

    Returns:
      A function of (variables, {"image", "label"} as in training) to the predictions
      uint8[B, H, W] and the batch's confusion matrix; ignored labels count nowhere.
    """

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(BATCH_AXIS)),
        out_specs=(P(BATCH_AXIS), P()),
    )
    def eval_step(variables: dict[str, Any], batch: Batch) -> tuple[Array, ConfusionMatrix]:
        predictions = classify_fn(variables, batch["image"], batch["label"].shape[1:3])
        confusion_matrix = ConfusionMatrix.from_model_output(
            labels=batch["label"].astype(jnp.int32),
            predictions=predictions,
            num_classes=model.num_classes,
        )
        return predictions, lax.psum(confusion_matrix, BATCH_AXIS)

    return eval_step
