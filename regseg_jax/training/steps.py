"""The two computations of a run, pure and free of configuration; their callers jit them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from regseg_jax.models.regseg import RegSeg
from regseg_jax.ops.resize import upsample_bilinear
from regseg_jax.training.metrics import ConfusionMatrix
from regseg_jax.training.optimizer import Schedule
from regseg_jax.training.train_state import TrainState

Batch = dict[str, Array]
LossFn = Callable[[Array, Array], Array]
AugmentFn = Callable[..., tuple[Array, Array]]
ApplyUpdateFn = Callable[[Any, Any, Array, Array], Any]


def descend(params: Any, direction: Any, learning_rate: Array, step: Array) -> Any:
    """The parameters a step further: the learning rate times the direction is taken off."""
    del step
    return jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)


def create_train_step(
    model: RegSeg,
    tx: optax.GradientTransformation,
    learning_rate_fn: Schedule,
    loss_fn: LossFn,
    augment_fn: AugmentFn,
    rng: Array,
    *,
    apply_update: ApplyUpdateFn = descend,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Builds the training step: augment, forward, backward, update.

    Args:
      model: its dtype is the precision of the forward and backward passes.
      tx: turns gradients into a direction; the step multiplies in the learning rate.
      learning_rate_fn: of the step's number.
      loss_fn: (logits f32[B, h, w, num_classes], labels i32[B, h, w]) -> f32[].
      augment_fn: (images, labels, rng, **the batch's other entries) -> (f32[B, h, w, 3],
        i32[B, h, w]).
      rng: of the run; each step folds in its number.
      apply_update: (params, direction, learning rate, step's number) -> the next params; for
        parameters with a learning rate or limits of their own.
      ema_decay: of the average of the weights and statistics, where the state holds one; after
        t steps at most (1 + t) / (10 + t), so that it soon forgets where it started.

    Returns:
      A function of (state, {"image": uint8[B, H, W, 3], "label": uint8[B, H, W]}) to the next
      state and the metrics `loss`, `learning_rate`, `grad_norm` and `loss_scale` (1 unless
      float16), f32[], and `skipped`, bool[]: a step whose gradients overflowed under the loss
      scale, which changes nothing but the scale and the step's number.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        placing = {name: x for name, x in batch.items() if name not in ("image", "label")}
        images, labels = augment_fn(
            batch["image"], batch["label"], jax.random.fold_in(rng, state.step), **placing
        )

        def compute_loss(params: Any) -> tuple[Array, Any]:
            logits, mutated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return loss_fn(logits, labels), mutated["batch_stats"]

        dynamic_scale, is_finite = state.dynamic_scale, jnp.bool_(True)
        if dynamic_scale:
            grad_fn = dynamic_scale.value_and_grad(compute_loss, has_aux=True)
            dynamic_scale, is_finite, (loss, batch_stats), grads = grad_fn(state.params)
        else:
            grad_fn = jax.value_and_grad(compute_loss, has_aux=True)
            (loss, batch_stats), grads = grad_fn(state.params)

        learning_rate = learning_rate_fn(state.step)
        direction, opt_state = tx.update(grads, state.opt_state, state.params)
        params = apply_update(state.params, direction, learning_rate, state.step)

        ema_variables = state.ema_variables
        if ema_variables is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema_variables = jax.tree.map(
                lambda average, new: average + (1 - decay) * (new - average),
                ema_variables,
                {"params": params, "batch_stats": batch_stats},
            )

        updated = (params, batch_stats, opt_state, ema_variables)
        if dynamic_scale:
            kept = (state.params, state.batch_stats, state.opt_state, state.ema_variables)
            updated = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), updated, kept)
        params, batch_stats, opt_state, ema_variables = updated
        next_state = TrainState(
            state.step + 1, params, batch_stats, opt_state, dynamic_scale, ema_variables
        )
        metrics = {
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": optax.tree.norm(grads),
            "loss_scale": dynamic_scale.scale if dynamic_scale else jnp.float32(1),
            "skipped": ~is_finite,
        }
        return next_state, metrics

    return train_step


ScoreFn = Callable[[dict[str, Any], Array, tuple[int, int]], Array]


def create_score_fn(
    model: RegSeg,
    preprocess_fn: Callable[[Array], Array],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> ScoreFn:
    """Builds what scores the classes of whole images.

    Args:
      model: of the run.
      preprocess_fn: uint8[B, H, W, 3] -> the model's input.
      scales: the model sees its input resized by each.
      flip: whether it sees each input mirrored as well.

    Returns:
      A function of (variables, images uint8[B, H, W, 3], size) to f32[B, *size, num_classes],
      the larger the likelier: the logits where one input is seen, else the mean of the
      probabilities over all inputs.
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


def create_eval_step(
    model: RegSeg, score_fn: ScoreFn
) -> Callable[[dict[str, Any], Batch], tuple[Array, ConfusionMatrix]]:
    """Builds the evaluation step: whole images, scored at the labels' size.

    Args:
      model: of the run.
      score_fn: see `create_score_fn`.

    Returns:
      A function of (variables, {"image", "label"} as in training) to the predictions
      uint8[B, H, W] and the batch's confusion matrix; ignored labels count nowhere.
    """

    def eval_step(variables: dict[str, Any], batch: Batch) -> tuple[Array, ConfusionMatrix]:
        scores = score_fn(variables, batch["image"], batch["label"].shape[1:3])
        predictions = scores.argmax(-1)
        confusion_matrix = ConfusionMatrix.from_model_output(
            labels=batch["label"].astype(jnp.int32),
            predictions=predictions,
            num_classes=model.num_classes,
        )
        return predictions.astype(jnp.uint8), confusion_matrix

    return eval_step
