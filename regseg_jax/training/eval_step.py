"""Scores and classes of whole images, and the evaluation step: pure functions to jit.

Parallel explicitly, as the training step is (see `training.steps`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.models.regseg import RegSeg
from regseg_jax.ops.height_shards import use_height_shards
from regseg_jax.ops.resize import upsample_bilinear
from regseg_jax.ops.upsampled_loss import upsampled_argmax
from regseg_jax.training.metrics import ConfusionMatrix
from regseg_jax.training.sharding import BATCH_AXIS, split_height

Batch = dict[str, Array]
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
      over several. Where devices share images' rows (`ops.height_shards`), of whole images to a
      device's own rows of the result.
    """

    def score_fn(variables: dict[str, Any], images: Array, size: tuple[int, int]) -> Array:
        inputs = preprocess_fn(images)

        def compute_logits(x: Array) -> Array:
            own_size = (use_height_shards.value.of_height(size[0]).rows, size[1])
            shards = use_height_shards.value.of_height(x.shape[1])
            with use_height_shards(shards):
                logits = model.apply(variables, shards.take(x), train=False)
                return upsample_bilinear(logits, own_size, whole_height=size[0])

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
      the highest score. Of a single input of this size no scores are stored. Devices may share
      images' rows, see `create_score_fn`.
    """
    score_fn = create_score_fn(model, preprocess_fn, scales=scales, flip=flip)

    def classify_fn(variables: dict[str, Any], images: Array, size: tuple[int, int]) -> Array:
        inputs = preprocess_fn(images)
        if tuple(scales) != (1.0,) or flip or inputs.shape[1:3] != size:
            return lax.argmax(score_fn(variables, images, size), 3, jnp.uint8)
        shards = use_height_shards.value.of_height(size[0])
        with use_height_shards(shards):
            own = shards.take(inputs)
            logits = model.clone(upsample=False).apply(variables, own, train=False)
            return upsampled_argmax(logits, (shards.rows, size[1]))

    return classify_fn


def create_eval_step(
    model: RegSeg, classify_fn: ClassifyFn, mesh: Mesh
) -> Callable[[dict[str, Any], Batch], tuple[Array, ConfusionMatrix]]:
    """Builds the evaluation step: whole images, classified at the labels' size.

    Args:
      model: of the run.
      classify_fn: see `create_classify_fn`.
      mesh: as in training.

    Returns:
      A function of (variables, {"image", "label"} as in training) to the predictions
      uint8[B, H, W] and the batch's confusion matrix; ignored labels count nowhere.
    """

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(BATCH_AXIS)),
        out_specs=(P(*mesh.axis_names), P()),
    )
    def eval_step(variables: dict[str, Any], batch: Batch) -> tuple[Array, ConfusionMatrix]:
        size = batch["label"].shape[1:3]
        with split_height(size[0], mesh) as shards:
            predictions = classify_fn(variables, batch["image"], size)
            labels = shards.take(batch["label"], fill=IGNORE_LABEL)
        confusion_matrix = ConfusionMatrix.from_model_output(
            labels=labels.astype(jnp.int32),
            predictions=predictions,
            num_classes=model.num_classes,
        )
        return predictions, lax.psum(confusion_matrix, mesh.axis_names)

    def without_surplus_rows(
        variables: dict[str, Any], batch: Batch
    ) -> tuple[Array, ConfusionMatrix]:
        predictions, confusion_matrix = eval_step(variables, batch)
        return predictions[:, : batch["label"].shape[1]], confusion_matrix

    return without_surplus_rows


def split_images(fn: ScoreFn, mesh: Mesh) -> ScoreFn:
    """A function whose devices share the rows of its images.

    Args:
      fn: of (variables, images, size) to [B, a device's rows, ...], as `create_score_fn` makes it.
      mesh: with or without an axis `HEIGHT_AXIS`; over another one, batches are split.

    Returns:
      The same function to [B, *size, ...].
    """

    def split_fn(variables: dict[str, Any], images: Array, size: tuple[int, int]) -> Array:
        @functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(P(), P(BATCH_AXIS)),
            out_specs=P(*mesh.axis_names),
        )
        def compute(variables: dict[str, Any], images: Array) -> Array:
            with split_height(size[0], mesh):
                return fn(variables, images, size)

        return compute(variables, images)[:, : size[0]]

    return split_fn
