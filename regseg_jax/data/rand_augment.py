"""RandAugment on the device: the recipe's seven operations, as Pillow computes them.

Grey levels are whole numbers in float32, rounded after every operation as Pillow's are; see
tests/data/test_rand_augment.py. An operation sees only the image on its crop, not the padding
around it: in the recipe RandAugment comes after the flip and before padding.

Under `vmap` a drawn operation becomes a selection among all seven. That is meant: six of them are
one fused pass over the pixels, whereas a loop over the examples, which would compute only the
operation that was drawn, walks along the batch's axis and so gathers a sharded batch on every
device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from regseg_jax.data.classes import IGNORE_LABEL

MAX_DEGREES = 30  # of a rotation, at magnitude 1
MAX_CHANGE = 0.9  # of an enhancement's factor from 1, at magnitude 1
_LEVELS = 256


class Box(NamedTuple):
    """The part of a crop that the image covers; the rest is padding.

    Attributes:
      start: i32[2], its first row and column.
      size: i32[2], its height and width.
    """

    start: Array
    size: Array

    def contains(self, shape: tuple[int, int]) -> Array:
        """bool[H, W]: which pixels of a crop of this shape are inside."""
        rows, columns = (
            (jnp.arange(length) >= start) & (jnp.arange(length) < start + size)
            for length, start, size in zip(shape, self.start, self.size, strict=True)
        )
        return rows[:, None] & columns


class _Crop(NamedTuple):
    """What an operation turns into the same: image f32[H, W, 3] of whole numbers, label i32."""

    image: Array
    label: Array


def rand_augment(
    image: Array,
    label: Array,
    box: Box,
    rng: Array,
    *,
    num_ops: int,
    magnitude: float,
    fill: tuple[float, float, float],
) -> tuple[Array, Array]:
    """Applies distinct operations, drawn uniformly, one after the other.

    Args:
      image: f32[H, W, 3] in [0, 255]; rounded to whole grey levels.
      label: i32[H, W].
      box: where the image is; nothing outside it changes or is read.
      rng: a PRNG key.
      num_ops: how many, in [0, 7].
      magnitude: in [0, 1]: the angle of a rotation over 30 degrees, and the change of an
        enhancement's factor over 0.9, either of a random sign (paper, section 4.1: 0.2).
      fill: the colour that a rotation brings in from outside, in [0, 255]; the label's is
        `IGNORE_LABEL`.

    Returns:
      The image f32[H, W, 3] and the label i32[H, W].
    """
    op_rng, sign_rng = jax.random.split(rng)
    ops = jax.random.permutation(op_rng, len(OPERATIONS))[:num_ops]
    signs = jax.random.rademacher(sign_rng, (num_ops,), jnp.float32)
    fill = jnp.round(jnp.array(fill))
    crop = _Crop(jnp.round(image), label)
    equalize = list(OPERATIONS.values()).index(_equalize)
    others = [_leave if op is _equalize else op for op in OPERATIONS.values()]
    for index, (op, sign) in enumerate(zip(ops, signs, strict=True)):
        crop = jax.lax.switch(op, others, crop, box, sign * magnitude, fill)
        # Histograms take the longest: after the first of two operations is the place for either.
        if index % 2 == 0:
            is_drawn = (ops[index : index + 2] == equalize).any()
            crop = jax.lax.cond(is_drawn, _equalize, _leave, crop, box, sign * magnitude, fill)
    inside = box.contains(label.shape)
    return jnp.where(inside[..., None], crop.image, image), jnp.where(inside, crop.label, label)


def _leave(crop: _Crop, box: Box, level: Array, fill: Array) -> _Crop:
    return crop


def _auto_contrast(crop: _Crop, box: Box, level: Array, fill: Array) -> _Crop:
    """Stretches each channel to [0, 255]."""
    inside = box.contains(crop.label.shape)[..., None]
    low = jnp.where(inside, crop.image, _LEVELS).min((0, 1))
    high = jnp.where(inside, crop.image, -1).max((0, 1))
    stretched = jnp.floor((crop.image - low) * 255 / jnp.maximum(high - low, 1))
    return crop._replace(image=jnp.where(high > low, stretched, crop.image))


def _equalize(crop: _Crop, box: Box, level: Array, fill: Array) -> _Crop:
    """Makes the histogram of each channel even."""
    inside = box.contains(crop.label.shape)
    levels = jnp.where(inside[..., None], crop.image, 0).astype(jnp.int32)

    def equalize_channel(levels: Array) -> Array:
        counts = compute_histogram(levels, inside)
        last = counts[_LEVELS - 1 - jnp.argmax(counts[::-1] > 0)]
        step = (counts.sum() - last) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table, jnp.arange(_LEVELS))[levels]

    image = jax.vmap(equalize_channel, in_axes=-1, out_axes=-1)(levels)
    return crop._replace(image=image.astype(jnp.float32))


def compute_histogram(levels: Array, inside: Array) -> Array:
    """Counts each of 256 grey levels.

    Adding pixel by pixel is quick on a CPU only: accelerators would queue for the same few
    counters. There, the upper and the lower half of a level, one-hot, make it a matrix product.

    Args:
      levels: i32[H, W] in [0, 255].
      inside: bool[H, W], the pixels that count.

    Returns:
      i32[256]; exact up to 2^24 pixels.
    """
    return jax.lax.platform_dependent(
        levels,
        inside,
        cpu=count_by_adding,
        cuda=functools.partial(count_by_multiplying, dtype=jnp.float16),  # a T4 has no bfloat16
        default=count_by_multiplying,
    )


def count_by_adding(levels: Array, inside: Array) -> Array:
    """`compute_histogram` by a scatter."""
    return jnp.zeros(_LEVELS, jnp.int32).at[levels.ravel()].add(inside.ravel().astype(jnp.int32))


def count_by_multiplying(levels: Array, inside: Array, dtype: DTypeLike = jnp.bfloat16) -> Array:
    """`compute_histogram` by a matrix product of zeros and ones, exact in half precision."""
    levels = jnp.where(inside, levels, _LEVELS).astype(jnp.int16).ravel()  # half the memory
    upper = jax.nn.one_hot(levels >> 4, 16, dtype=dtype)  # zeros outside
    lower = jax.nn.one_hot(levels & 15, 16, dtype=dtype)
    counts = jnp.einsum("pi,pj->ij", upper, lower, preferred_element_type=jnp.float32)
    return counts.astype(jnp.int32).ravel()


def _rotate(crop: _Crop, box: Box, level: Array, fill: Array) -> _Crop:
    """Turns counter-clockwise about the middle: the image bilinearly, the label by nearest."""
    shape = crop.label.shape
    angle = jnp.deg2rad(level * MAX_DEGREES)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Pixel centres are at halves, from the box's upper left corner; so does its middle.
    y, x = (
        (jnp.arange(length) - start + 0.5 - size / 2)
        for length, start, size in zip(shape, box.start, box.size, strict=True)
    )
    y = y[:, None]
    source_y = sin * x + cos * y + box.size[0] / 2
    source_x = cos * x - sin * y + box.size[1] / 2
    inside = (source_y >= 0) & (source_y < box.size[0])
    inside &= (source_x >= 0) & (source_x < box.size[1])

    def read(array: Array, row: Array, column: Array) -> Array:
        """The pixels at whole positions in the box, the nearest ones outside it."""
        row, column = (
            (start + jnp.clip(position, 0, size - 1)).astype(jnp.int32)
            for position, start, size in zip((row, column), box.start, box.size, strict=True)
        )
        return array[row, column]

    top, left = jnp.floor(source_y - 0.5), jnp.floor(source_x - 0.5)
    down, right = (source_y - 0.5 - top)[..., None], (source_x - 0.5 - left)[..., None]
    upper, lower = (
        (1 - right) * read(crop.image, row, left) + right * read(crop.image, row, left + 1)
        for row in (top, top + 1)
    )
    image = jnp.floor((1 - down) * upper + down * lower)
    label = read(crop.label, jnp.floor(source_y), jnp.floor(source_x))
    return _Crop(jnp.where(inside[..., None], image, fill), jnp.where(inside, label, IGNORE_LABEL))


def _color(crop: _Crop, box: Box, level: Array, fill: Array) -> _Crop:
    return _enhance(crop, _grey(crop.image)[..., None], level)


def _contrast(crop: _Crop, box: Box, level: Array, fill: Array) -> _Crop:
    inside = box.contains(crop.label.shape)
    mean = jnp.where(inside, _grey(crop.image), 0).sum() / jnp.maximum(inside.sum(), 1)
    return _enhance(crop, jnp.floor(mean + 0.5), level)


def _brightness(crop: _Crop, box: Box, level: Array, fill: Array) -> _Crop:
    return _enhance(crop, jnp.float32(0), level)


def _sharpness(crop: _Crop, box: Box, level: Array, fill: Array) -> _Crop:
    padded = jnp.pad(crop.image, ((1, 1), (1, 1), (0, 0)))
    height, width = crop.label.shape
    neighbours = sum(
        padded[row : row + height, column : column + width]
        for row in range(3)
        for column in range(3)
    )
    smooth = jnp.floor((neighbours + 4 * crop.image) / 13 + 0.5)
    # The outermost pixels have no neighbours to be smoothed with.
    inner = Box(box.start + 1, box.size - 2).contains(crop.label.shape)
    return _enhance(crop, jnp.where(inner[..., None], smooth, crop.image), level)


def _enhance(crop: _Crop, degenerate: Array, level: Array) -> _Crop:
    """Moves the image away from (or towards) one without the quality that is enhanced."""
    factor = 1 + MAX_CHANGE * level
    image = degenerate + factor * (crop.image - degenerate)
    return crop._replace(image=jnp.floor(jnp.clip(image, 0, 255)))


def _grey(image: Array) -> Array:
    """Luma in whole grey levels (ITU-R 601-2), f32[H, W]."""
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(jnp.float32)


# Each maps (crop, box, level in [-1, 1], fill) to the crop.
OPERATIONS = {
    "auto-contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}
