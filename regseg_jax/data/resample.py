"""Pillow's antialiased bilinear resizing, to a size and a position that are arrays."""

import math

import jax.numpy as jnp
from jax import Array, lax

_MAX_TAPS = 32  # that are read one by one: with more the program would be long


def resample(
    image: Array,
    size: Array,
    start: Array,
    crop_size: tuple[int, int],
    *,
    image_size: Array,
    max_shrink: float,
) -> Array:
    """Resizes an image and crops the result.

    Where the image shrinks a pixel is the mean of a few, weighted by a triangle; where it grows, of
    two. Only these are read. TPUs, slow at that, multiply by matrices of mostly zeros, as all
    devices do where an image may shrink to less than 1 / 16.

    Args:
      image: [H, W, C], of integers or floats.
      size: i32[2], height and width that all of the image is resized to.
      start: i32[2], row and column of the crop in the resized image.
      crop_size: height and width of the crop.
      image_size: i32[2], height and width of the image itself; rows below it and columns to its
        right are ignored.
      max_shrink: an upper bound of image_size / size; if it is less, pixels are left out.

    Returns:
      f32[*crop_size, C]; anything finite where the crop is not in the resized image.
    """
    num_taps = math.ceil(2 * max(max_shrink, 1))
    for axis in (1, 0):  # the columns first: images are wide
        shrink = image_size[axis] / size[axis]
        centers = (start[axis] + jnp.arange(crop_size[axis]) + 0.5) * shrink - 0.5
        image = _resample_axis(image, axis, centers, shrink, image_size[axis], num_taps)
    return image


def _resample_axis(
    image: Array, axis: int, centers: Array, shrink: Array, length: Array, num_taps: int
) -> Array:
    """Resizes one axis; `centers` f32[n] are in pixels of the image, of which `length` are true."""
    radius = jnp.maximum(shrink, 1)

    def weigh(index: Array) -> Array:
        """The weights f32[n, m] of the pixels at i32[n or 1, m]; outside of the image 0."""
        weights = jnp.maximum(1 - jnp.abs(centers[:, None] - index) / radius, 0)
        weights = jnp.where((index >= 0) & (index < length), weights, 0)
        return weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6)

    def read(image: Array) -> Array:
        first = jnp.floor(centers - radius).astype(int) + 1  # inside of the triangle
        index = first[:, None] + jnp.arange(num_taps)
        weights = jnp.expand_dims(weigh(index), 1 - axis)  # [n, 1, taps] or [1, n, taps]
        pixels = (jnp.take(image, index[:, tap], axis, mode="clip") for tap in range(num_taps))
        return sum(part * weights[..., tap, None] for tap, part in enumerate(pixels))

    def multiply(image: Array) -> Array:
        weights = weigh(jnp.arange(image.shape[axis])[None])
        equation = ("hwc,nh->nwc", "hwc,nw->hnc")[axis]
        return jnp.einsum(equation, image.astype(jnp.float32), weights, precision="highest")

    if num_taps > _MAX_TAPS:
        return multiply(image)
    return lax.platform_dependent(image, tpu=multiply, default=read)
