"""Training-time augmentation on the device: one pure function of (batch, rng).

Scale, crop, pad and flip of each image are drawn as a `Placement` and applied in one
static-shape resampling; RandAugment, where asked for, and normalisation follow. Matches Pillow's
bilinear (antialiased) and nearest resizing, see tests/data/test_augment.py.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.data.rand_augment import OPERATIONS, Box, rand_augment
from regseg_jax.data.resample import resample
from regseg_jax.runtime.checks import check_fraction, check_integer, check_size

# ImageNet's, of images in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The ranges of augmentation (paper, section 4.1): `config.augment`."""

    crop_size: tuple[int, int] = (768, 768)  # height and width of the result, in pixels
    min_shorter_side: int = 400  # the image's shorter side becomes a random integer from here
    max_shorter_side: int = 1600  # to here, both included, in pixels
    flip_probability: float = 0.5  # of a left-right flip
    rand_augment_num_ops: int = 0  # distinct operations an image; the paper's Cityscapes runs: 2
    rand_augment_magnitude: float = 0.2  # of each operation, in [0, 1]

    def __post_init__(self) -> None:
        check_size("augment.crop_size", self.crop_size)
        check_integer("augment.min_shorter_side", self.min_shorter_side, at_least=1)
        check_integer("augment.max_shorter_side", self.max_shorter_side, self.min_shorter_side)
        check_fraction("augment.flip_probability", self.flip_probability)
        check_integer("augment.rand_augment_num_ops", self.rand_augment_num_ops, at_least=0)
        if self.rand_augment_num_ops > len(OPERATIONS):
            raise ValueError(
                f"config.augment.rand_augment_num_ops is {self.rand_augment_num_ops}; set 0 for "
                f"none, or up to {len(OPERATIONS)} different operations (the paper: 2)"
            )
        check_fraction("augment.rand_augment_magnitude", self.rand_augment_magnitude)


class Placement(NamedTuple):
    """Where the resized image is on the crop.

    Attributes:
      size: i32[2], height and width that the image is resized to.
      start: i32[2], row and column of the resized image at the crop's top left corner; negative
        where padding comes first.
      flip: bool[], whether the crop is then flipped left to right.
    """

    size: Array
    start: Array
    flip: Array


def draw_placement(
    rng: Array,
    image_size: tuple[int, int] | Array,
    config: AugmentConfig,
    centroid: Array | None = None,
) -> Placement:
    """Draws scale, position and flip of one image.

    If the resized image is larger than the crop, the crop is placed uniformly inside it, or, with a
    centroid, uniformly such that it holds the centroid and is then moved inside the image; where
    it is smaller, it is placed uniformly inside the crop and the rest is padding.

    Args:
      rng: a PRNG key.
      image_size: height and width in pixels.
      config: the ranges.
      centroid: i32[2], row and column of a pixel of the image; -1, -1 or None for none.
    """
    scale_rng, start_rng, flip_rng = jax.random.split(rng, 3)
    shorter = jax.random.randint(
        scale_rng, (), config.min_shorter_side, config.max_shorter_side + 1
    )
    sides = jnp.array(image_size)
    size = shorter * sides // sides.min()
    crop_size = jnp.array(config.crop_size)
    slack = size - crop_size
    low, high = jnp.minimum(slack, 0), jnp.maximum(slack, 0)
    if centroid is None:
        start = jax.random.randint(start_rng, (2,), low, high + 1)
    else:
        held = (centroid >= 0) & (slack > 0)
        center = centroid * size // sides
        first, last = jnp.where(held, center - crop_size + 1, low), jnp.where(held, center, high)
        start = jnp.clip(jax.random.randint(start_rng, (2,), first, last + 1), low, high)
    flip = jax.random.bernoulli(flip_rng, config.flip_probability)
    return Placement(size, start, flip)


def find_max_shrink(image_size: tuple[int, int], config: AugmentConfig) -> float:
    """The most that `draw_placement` shrinks a side of an image that fits in image_size.

    The longer side is rounded down, to a pixel at least: it may shrink more than the shorter one.
    """
    return min(image_size) / max(config.min_shorter_side - 1, 0.5)


def apply_placement(
    image: Array,
    label: Array,
    placement: Placement,
    crop_size: tuple[int, int],
    image_size: Array | None = None,
    *,
    max_shrink: float,
) -> tuple[Array, Array]:
    """Resizes, crops, pads and flips an image and its label.

    Args:
      image: uint8[H, W, 3].
      label: uint8[H, W].
      placement: where the resized image is.
      crop_size: height and width of the result.
      image_size: i32[2], the image's true height and width where padding follows below and to
        the right; None if there is none. No padding shows in the result.
      max_shrink: an upper bound of the image's size over the resized image's.

    Returns:
      The image f32[h, w, 3] in [0, 255], padded with the mean colour, and the label
      i32[h, w], padded with `IGNORE_LABEL`.
    """
    in_size = jnp.array(label.shape) if image_size is None else image_size
    pixels = resample(
        image, placement.size, placement.start, crop_size, image_size=in_size, max_shrink=max_shrink
    )
    rows, columns = (
        start + jnp.arange(length) for start, length in zip(placement.start, crop_size, strict=True)
    )
    inside = ((rows >= 0) & (rows < placement.size[0]))[:, None] & (
        (columns >= 0) & (columns < placement.size[1])
    )

    def nearest(position: Array, axis: int) -> Array:
        # floor((position + 0.5) * in / out) in integers, so that no rounding moves a label.
        source = (2 * position + 1) * in_size[axis] // (2 * placement.size[axis])
        return jnp.clip(source, 0, in_size[axis] - 1)

    labels = label[nearest(rows, 0)][:, nearest(columns, 1)].astype(jnp.int32)
    labels = jnp.where(inside, labels, IGNORE_LABEL)
    pixels = jnp.where(inside[..., None], pixels, 255 * jnp.array(MEAN))
    return tuple(jnp.where(placement.flip, x[:, ::-1], x) for x in (pixels, labels))


def find_box(placement: Placement, crop_size: tuple[int, int]) -> Box:
    """Where `apply_placement` puts the image on the crop; the rest is padding."""
    first = jnp.maximum(-placement.start, 0)
    last = jnp.minimum(placement.size - placement.start, jnp.array(crop_size))
    flipped_left = crop_size[1] - last[1]
    left = jnp.where(placement.flip, flipped_left, first[1])
    return Box(jnp.stack([first[0], left]), last - first)


@jax.named_scope("augmentation")
def augment(
    images: Array,
    labels: Array,
    rng: Array,
    config: AugmentConfig,
    size: Array | None = None,
    centroid: Array | None = None,
) -> tuple[Array, Array]:
    """Augments and normalises a batch, each image with its own random parameters.

    Args:
      images: uint8[B, H, W, 3].
      labels: uint8[B, H, W], training ids or `IGNORE_LABEL`.
      rng: a PRNG key; the same key gives the same batch on any number of devices. Or a key for
        each image, key[B].
      config: the ranges.
      size: i32[B, 2], each image's true height and width, where sizes differ and the images are
        padded below and to the right.
      centroid: i32[B, 2], row and column that the crop holds; -1, -1 for a crop anywhere.

    Returns:
      f32[B, h, w, 3], normalised, and i32[B, h, w].
    """

    def augment_one(
        image: Array, label: Array, key: Array, size: Array | None, centroid: Array | None
    ) -> tuple[Array, Array]:
        true_size = label.shape if size is None else size
        ops_key = None
        if config.rand_augment_num_ops:
            key, ops_key = jax.random.split(key)
        placement = draw_placement(key, true_size, config, centroid)
        max_shrink = find_max_shrink(label.shape, config)
        image, label = apply_placement(
            image, label, placement, config.crop_size, size, max_shrink=max_shrink
        )
        if ops_key is None:
            return image, label
        return rand_augment(
            image,
            label,
            find_box(placement, config.crop_size),
            ops_key,
            num_ops=config.rand_augment_num_ops,
            magnitude=config.rand_augment_magnitude,
            fill=tuple(255 * mean for mean in MEAN),
        )

    keys = rng if rng.ndim else jax.random.split(rng, images.shape[0])
    images, labels = jax.vmap(augment_one)(images, labels, keys, size, centroid)
    return normalize(images), labels


def normalize(images: Array) -> Array:
    """[..., 3] in [0, 255] -> f32[..., 3] with mean 0 and standard deviation 1 over ImageNet."""
    return (images / 255 - jnp.array(MEAN)) / jnp.array(STD)


def resize_and_normalize(images: Array, size: tuple[int, int]) -> Array:
    """Prepares whole images for evaluation: uint8[B, H, W, 3] -> f32[B, size[0], size[1], 3].

    Resizes as Pillow's bilinear does (antialiased), and not at all where the size is the images'.
    """
    batch, *old_size, channels = images.shape
    images = images.astype(jnp.float32)
    if tuple(old_size) != tuple(size):
        images = jax.image.resize(
            images, (batch, *size, channels), method="bilinear", antialias=True
        )
    return normalize(images)
