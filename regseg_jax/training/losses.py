"""Pixel losses over the global batch; ignored pixels count nowhere.

The logits may be smaller than the labels by an integer factor, as decoders make them: see
`ops.upsampled_loss`. Inside `jax.shard_map` the arrays are one device's shard: there `axis_name`
is the mapped axis whose devices hold the global batch, and each sum over pixels is also
a sum over devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array, lax

from regseg_jax.ops.upsampled_loss import upsampled_pixel_losses
from regseg_jax.runtime.checks import check_fraction, check_number, check_one_of

LOSSES = ("cross_entropy", "bootstrapped_cross_entropy")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss: `config.loss`."""

    name: str = "cross_entropy"  # or bootstrapped_cross_entropy
    threshold: float = 0.3  # bootstrapped: pixel losses above it count
    min_pixel_share: float = 1 / 16  # bootstrapped: the least fraction of the batch's pixels
    class_weights: str | tuple = ""  # one number per class, median_frequency, inverse_log; "": none

    def __post_init__(self) -> None:
        check_one_of("loss.name", self.name, LOSSES)
        check_number("loss.threshold", self.threshold, at_least=0)
        check_fraction("loss.min_pixel_share", self.min_pixel_share)
        check_number("loss.min_pixel_share", self.min_pixel_share, above=0)


def cross_entropy(
    logits: Array,
    labels: Array,
    ignore_label: int = 255,
    *,
    class_weights: Sequence[float] | None = None,
    axis_name: str | None = None,
) -> Array:
    """Mean cross-entropy over the pixels that are not ignored; 0 if all are.

    As `torch.nn.CrossEntropyLoss(weight=class_weights, ignore_index=ignore_label)`, which is NaN
    where every pixel is ignored.

    Args:
      logits: [B, h, w, num_classes] of any float dtype.
      labels: i32[B, H, W].
      ignore_label: its pixels count nowhere.
      class_weights: of each class, in the mean over pixels; None: 1.
      axis_name: see above.
    """
    losses = upsampled_pixel_losses(logits, labels, ignore_label)
    if class_weights is None:
        total, weight = losses.sum(), (labels != ignore_label).sum().astype(losses.dtype)
    else:
        weights = _weigh_pixels(labels, class_weights, losses.dtype)
        total, weight = (weights * losses).sum(), weights.sum()
    return _divide_sums(total, weight, axis_name)


def bootstrapped_cross_entropy(
    logits: Array,
    labels: Array,
    min_pixels: int,
    threshold: float = 0.3,
    ignore_label: int = 255,
    *,
    class_weights: Sequence[float] | None = None,
    axis_name: str | None = None,
) -> Array:
    """Mean over the hard pixels: those of a loss above the threshold, or the largest ones.

    The `min_pixels` largest are taken if no more than that exceed the threshold (the author's loss
    for the Cityscapes test submission). The gradient is divided equally among ties.

    Args:
      logits: [B, h, w, num_classes] of any float dtype.
      labels: i32[B, H, W].
      min_pixels: K, of the global batch, in [1, its number of pixels].
      threshold: of a pixel's loss.
      ignore_label: its pixels have a loss of 0.
      class_weights: each pixel's loss is multiplied by its class's weight first; None: 1.
      axis_name: see above.
    """
    losses = upsampled_pixel_losses(logits, labels, ignore_label)
    if class_weights is not None:
        losses *= _weigh_pixels(labels, class_weights, losses.dtype)
    constant = lax.stop_gradient(losses)
    kth = _kth_largest(constant, min_pixels, axis_name)
    above, larger, equal = constant > threshold, constant > kth, constant == kth
    counts = above.sum(), larger.sum(), equal.sum()
    num_above, num_larger, num_equal = lax.psum(counts, axis_name) if axis_name else counts
    fraction = (min_pixels - num_larger) / jnp.maximum(num_equal, 1)  # of each pixel equal to kth
    largest = jnp.where(larger, 1, jnp.where(equal, fraction, 0))
    weights = jnp.where(num_above > min_pixels, above, largest)
    return _divide_sums((weights * losses).sum(), weights.sum(), axis_name)


def _weigh_pixels(labels: Array, class_weights: Sequence[float], dtype: jnp.dtype) -> Array:
    """The weight of each pixel's class; 0 for labels of no class."""
    is_label = labels[..., None] == jnp.arange(len(class_weights))
    return jnp.where(is_label, jnp.array(class_weights, dtype), 0).sum(-1)


def _divide_sums(total: Array, weight: Array, axis_name: str | None) -> Array:
    """total / weight, both summed over devices; 0 where both are 0."""
    if axis_name:
        total, weight = lax.psum((total, weight), axis_name)
    return total / jnp.where(weight > 0, weight, 1)


def _kth_largest(x: Array, k: int, axis_name: str | None) -> Array:
    """The k-th largest of non-negative f32 values, exactly.

    Finds its bit pattern, four bits at a time from the highest, because bit patterns are ordered as
    the values are. It takes 8 rounds of 15 counts; a sort would gather the global batch on one
    device.
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)

    def add_digit(i: Array, prefix: Array) -> Array:
        unit = jnp.uint32(1) << (28 - 4 * i).astype(jnp.uint32)
        candidates = prefix + jnp.arange(1, 16, dtype=jnp.uint32) * unit
        counts = (bits[..., None] >= candidates).sum(range(bits.ndim))
        counts = lax.psum(counts, axis_name) if axis_name else counts
        return prefix + (counts >= k).sum(dtype=jnp.uint32) * unit

    prefix = lax.fori_loop(0, 8, add_digit, jnp.uint32(0))
    return lax.bitcast_convert_type(prefix, jnp.float32)


def create_loss_fn(
    config: LossConfig, num_pixels: int, class_weights: Sequence[float] | None = None
) -> Callable[..., Array]:
    """The config's loss over a global batch of crops that hold num_pixels in all."""
    if config.name == "cross_entropy":
        return functools.partial(cross_entropy, class_weights=class_weights)
    return functools.partial(
        bootstrapped_cross_entropy,
        min_pixels=max(1, int(num_pixels * config.min_pixel_share)),
        threshold=config.threshold,
        class_weights=class_weights,
    )
