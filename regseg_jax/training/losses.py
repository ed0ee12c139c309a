"""Pixel losses over the global batch; ignored pixels count nowhere."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from regseg_jax.runtime.checks import check_fraction, check_number, check_one_of

LOSSES = ("cross_entropy", "bootstrapped_cross_entropy")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss: `config.loss`."""

    name: str = "cross_entropy"  # or bootstrapped_cross_entropy
    threshold: float = 0.3  # bootstrapped: pixel losses above it count
    min_pixel_share: float = 1 / 16  # bootstrapped: the least fraction of the batch's pixels

    def __post_init__(self) -> None:
        check_one_of("loss.name", self.name, LOSSES)
        check_number("loss.threshold", self.threshold, at_least=0)
        check_fraction("loss.min_pixel_share", self.min_pixel_share)
        check_number("loss.min_pixel_share", self.min_pixel_share, above=0)


def compute_pixel_losses(logits: Array, labels: Array, ignore_label: int = 255) -> Array:
    """Cross-entropy of each pixel.

    Args:
      logits: f32[B, H, W, num_classes].
      labels: i32[B, H, W], in [0, num_classes) or ignore_label.

    Returns:
      f32[B, H, W], non-negative, 0 where the label is ignored.
    """
    # A one-hot product instead of an indexed read: its gradient needs no scatter.
    is_label = labels[..., None] == jnp.arange(logits.shape[-1])
    label_logits = jnp.where(is_label, logits, 0).sum(-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - label_logits
    return jnp.where(labels == ignore_label, 0, losses)


def cross_entropy(logits: Array, labels: Array, ignore_label: int = 255) -> Array:
    """Mean cross-entropy over the pixels that are not ignored; 0 if all are.

    PyTorch's loss is NaN where every pixel is ignored.
    """
    losses = compute_pixel_losses(logits, labels, ignore_label)
    count = (labels != ignore_label).sum()
    return losses.sum() / jnp.maximum(count, 1)


def bootstrapped_cross_entropy(
    logits: Array,
    labels: Array,
    min_pixels: int,
    threshold: float = 0.3,
    ignore_label: int = 255,
) -> Array:
    """Mean over the hard pixels: those of a loss above the threshold, or the largest ones.

    The `min_pixels` largest are taken when no more than so many exceed the threshold (the
    author's loss for the Cityscapes test submission). Ties at the boundary share the gradient.

    Args:
      logits: f32[B, H, W, num_classes].
      labels: i32[B, H, W].
      min_pixels: K, in [1, B * H * W].
      threshold: of a pixel's loss.
      ignore_label: its pixels have a loss of 0.
    """
    losses = compute_pixel_losses(logits, labels, ignore_label)
    constant = jax.lax.stop_gradient(losses)
    above = constant > threshold
    kth = _kth_largest(constant, min_pixels)
    larger, equal = constant > kth, constant == kth
    share = (min_pixels - larger.sum()) / jnp.maximum(equal.sum(), 1)
    largest = jnp.where(larger, 1, jnp.where(equal, share, 0))
    weights = jnp.where(above.sum() > min_pixels, above, largest)
    return (weights * losses).sum() / jnp.maximum(weights.sum(), 1)


def _kth_largest(x: Array, k: int) -> Array:
    """The k-th largest of non-negative f32 values, exactly.

    Bisects over the bit patterns, which are ordered as the values are: 31 counts, each a sum
    over the sharded batch, where a sort would gather it on one device.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)

    def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # count(bits >= low) >= k > count(bits >= high)
        middle = low + (high - low) // 2
        enough = (bits >= middle).sum() >= k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    infinity = jnp.int32(0x7F800001)
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), infinity))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def create_loss_fn(config: LossConfig, num_pixels: int) -> Callable[[Array, Array], Array]:
    """The config's loss over a global batch of crops of so many pixels in all."""
    if config.name == "cross_entropy":
        return cross_entropy
    return functools.partial(
        bootstrapped_cross_entropy,
        min_pixels=max(1, int(num_pixels * config.min_pixel_share)),
        threshold=config.threshold,
    )
