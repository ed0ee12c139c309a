"""Pixel losses over the global batch; ignored pixels count nowhere.

The logits may be smaller than the labels by an integer factor, as decoders make them: see
`ops.upsampled_loss`. Inside `jax.shard_map` the arrays are one device's shard: there `axis_name`
is the mapped axis whose devices hold the global batch, and each sum over pixels is also
a sum over devices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy over the pixels that are not ignored; 0 if all are.

    As `torch.nn.CrossEntropyLoss(weight=class_weights, ignore_index=ignore_label)`, which is NaN
    where every pixel is ignored.

    Attributes:
      class_weights: of each class, in the mean over pixels; None: 1.
      ignore_label: its pixels count nowhere.
    """

    class_weights: Sequence[float] | None = None
    ignore_label: int = 255

    def __call__(
        self,
        logits: Array,
        labels: Array,
        *,
        pixel_weights: Array | None = None,
        axis_name: str | None = None,
    ) -> Array:
        """The loss of a global batch, or what a part of it adds to the loss.

        Args:
          logits: [B, h, w, num_classes] of any float dtype.
          labels: i32[B, H, W].
          pixel_weights: f32[B, H, W], the part's among those of the batch, see `weigh`; None: the
            logits are the batch's.
          axis_name: see above.

        Returns:
          f32[] (float64 if the logits are); the losses of a batch's parts add up to the batch's.
        """
        losses = self.pixel_losses(logits, labels)
        if pixel_weights is not None:
            return _sum_devices((pixel_weights * losses).sum(), axis_name)
        weights, divisor = self._weigh(labels, lambda: lax.stop_gradient(losses), axis_name)
        return _divide(*_sum_devices(((weights * losses).sum(), divisor), axis_name))

    def pixel_losses(self, logits: Array, labels: Array) -> Array:
        """The cross-entropy of each pixel, f32[B, H, W]."""
        return upsampled_pixel_losses(logits, labels, self.ignore_label)

    def weigh(
        self, labels: Array, compute_losses: Callable[[], Array], *, axis_name: str | None = None
    ) -> Array:
        """What the cross-entropy of each pixel of a batch counts in the loss.

        Args:
          labels: i32[..., H, W], of the batch.
          compute_losses: gives its `pixel_losses`; only called if the weights depend on them.
          axis_name: see above.

        Returns:
          f32[..., H, W], constants.
        """
        weights, divisor = self._weigh(labels, compute_losses, axis_name)
        return _divide(weights, _sum_devices(divisor, axis_name))

    def _weigh(
        self, labels: Array, compute_losses: Callable[[], Array], axis_name: str | None
    ) -> tuple[Array, Array]:
        """The weights times a factor, and the device's part of that factor."""
        weights = self._weigh_classes(labels)
        return weights, weights.sum()

    def _weigh_classes(self, labels: Array) -> Array:
        """The weight of each pixel's class; 0 for labels of no class."""
        if self.class_weights is None:
            return labels != self.ignore_label
        is_label = labels[..., None] == jnp.arange(len(self.class_weights))
        return jnp.where(is_label, jnp.array(self.class_weights), 0).sum(-1)


@dataclasses.dataclass(frozen=True)
class BootstrappedCrossEntropy(CrossEntropy):
    """Mean over the hard pixels: those of a loss above the threshold, or the largest ones.

    The `min_pixels` largest are taken if no more than that exceed the threshold (the author's loss
    for the Cityscapes test submission). The gradient is divided equally among ties. Ignored pixels
    have a loss of 0; with class weights, a pixel's loss is multiplied by its class's weight first.

    Attributes:
      min_pixels: K, of the global batch, in [1, its number of pixels].
      threshold: of a pixel's loss.
    """

    min_pixels: int = 1
    threshold: float = 0.3

    def _weigh(
        self, labels: Array, compute_losses: Callable[[], Array], axis_name: str | None
    ) -> tuple[Array, Array]:
        class_weights = 1 if self.class_weights is None else self._weigh_classes(labels)
        losses = class_weights * compute_losses()
        kth = _kth_largest(losses, self.min_pixels, axis_name)
        above, larger, equal = losses > self.threshold, losses > kth, losses == kth
        num_above, num_larger, num_equal = _sum_devices(
            (above.sum(), larger.sum(), equal.sum()), axis_name
        )
        fraction = (self.min_pixels - num_larger) / jnp.maximum(num_equal, 1)  # of those equal
        largest = jnp.where(larger, 1, jnp.where(equal, fraction, 0))
        hard = jnp.where(num_above > self.min_pixels, above, largest)
        return class_weights * hard, hard.sum()


def _sum_devices(values: Any, axis_name: str | None) -> Any:
    return lax.psum(values, axis_name) if axis_name else values


def _divide(values: Array, divisor: Array) -> Array:
    """values / divisor; 0 where both are 0."""
    return values / jnp.where(divisor > 0, divisor, 1)


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


def create_loss(
    config: LossConfig, num_pixels: int, class_weights: Sequence[float] | None = None
) -> CrossEntropy:
    """The config's loss over a global batch of crops that hold num_pixels in all."""
    if config.name == "cross_entropy":
        return CrossEntropy(class_weights)
    return BootstrappedCrossEntropy(
        class_weights,
        min_pixels=max(1, int(num_pixels * config.min_pixel_share)),
        threshold=config.threshold,
    )
