"""Bilinear upsampling and average pooling with PyTorch's conventions."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from regseg_jax.ops.height_shards import use_height_shards


def upsample_bilinear(
    x: Array,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    whole_height: int | None = None,
) -> Array:
    """Resizes the two spatial axes as `torch.nn.functional.interpolate(mode="bilinear")`.

    Neither case gathers, so the gradient has no scatter and is deterministic on every device.

    Args:
      x: [B, H, W, C], floating point.
      size: the output's height and width; of height shards a device's own rows.
      align_corners: whether the centres of the corner pixels, not their outer edges, coincide.
      whole_height: of an output that is split over devices; None: its rows tell, see
        `HeightShards.get_height`.

    Returns:
      [B, size[0], size[1], C] of x's dtype.
    """
    shards = use_height_shards.value
    heights = shards.get_height(x.shape[1]), whole_height or shards.get_height(size[0])
    for axis, lengths in ((1, heights), (2, (x.shape[2], size[1]))):
        factor, remainder = divmod(size[axis - 1], x.shape[axis])
        is_multiple = remainder == 0 and factor * lengths[0] == lengths[1]
        if is_multiple and factor == 1:
            continue
        if is_multiple and not align_corners:
            x = _upsample_by_integer(x, axis, factor)
        elif axis == 1:
            x = shards.multiply(interpolation_matrix(*lengths, align_corners), x, size[0])
        else:
            x = _multiply_columns(interpolation_matrix(*lengths, align_corners), x)
    return x


def _upsample_by_integer(x: Array, axis: int, factor: int) -> Array:
    """Bilinear along one axis of any array, to a multiple of its length.

    Each output phase is a fixed mix of two neighbours: slices and an interleave.
    """
    length = x.shape[axis]
    padded = use_height_shards.value.repeat_edges(x, axis)

    def shifted(start: int) -> Array:
        index = [slice(None)] * x.ndim
        index[axis] = slice(start, start + length)
        return padded[tuple(index)]

    phases = []
    for phase in range(factor):
        offset = (phase + 0.5) / factor - 0.5  # in input pixels, in (-0.5, 0.5)
        low = -1 if offset < 0 else 0
        fraction = offset - low
        phases.append(shifted(1 + low) * (1 - fraction) + shifted(2 + low) * fraction)
    interleaved = jnp.stack(phases, axis=axis + 1)
    return interleaved.reshape((*x.shape[:axis], length * factor, *x.shape[axis + 1 :]))


def interpolation_matrix(in_length: int, out_length: int, align_corners: bool) -> np.ndarray:
    """The f64[out_length, in_length] matrix of linear interpolation along one axis."""
    out = np.arange(out_length)
    if align_corners:
        position = out * ((in_length - 1) / max(out_length - 1, 1))
    else:
        position = np.clip((out + 0.5) * (in_length / out_length) - 0.5, 0, in_length - 1)
    low = np.minimum(np.floor(position).astype(int), in_length - 1)
    high = np.minimum(low + 1, in_length - 1)
    matrix = np.zeros((out_length, in_length))
    np.add.at(matrix, (out, low), 1 - (position - low))
    np.add.at(matrix, (out, high), position - low)
    return matrix


def _multiply_columns(matrix: np.ndarray, x: Array) -> Array:
    return jnp.einsum("ow,bhwc->bhoc", jnp.asarray(matrix, x.dtype), x, precision="highest")


def average_pool_2x2(x: Array) -> Array:
    """2x2 average pooling of stride 2 in ceil mode: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

    A window over the edge is divided by the number of its pixels inside the image, as
    `torch.nn.AvgPool2d(2, 2, ceil_mode=True)` does.
    """
    batch, height, width, channels = x.shape
    out_height, out_width = -(-height // 2), -(-width // 2)
    padding = ((0, 0), (0, 2 * out_height - height), (0, 2 * out_width - width), (0, 0))
    windows = jnp.pad(x, padding).reshape(batch, out_height, 2, out_width, 2, channels)
    if height % 2 == 0 and width % 2 == 0:  # also where export leaves the sizes symbolic
        return windows.sum((2, 4)) * 0.25
    pixels = np.minimum(2, height - 2 * np.arange(out_height))[:, None, None] * np.minimum(
        2, width - 2 * np.arange(out_width)
    ).reshape(1, -1, 1)
    return windows.sum((2, 4)) * jnp.asarray(1 / pixels, x.dtype)


def adaptive_average_pool(x: Array, size: int) -> Array:
    """Averages size x size bins as `torch.nn.AdaptiveAvgPool2d`: [B, H, W, C] -> [B, s, s, C].

    Bin i covers rows floor(i * H / size) to ceil((i + 1) * H / size); bins may overlap.
    """
    shards = use_height_shards.value
    x = shards.reduce(_pooling_matrix(shards.get_height(x.shape[1]), size), x)
    return _multiply_columns(_pooling_matrix(x.shape[2], size), x)


def _pooling_matrix(length: int, bins: int) -> np.ndarray:
    matrix = np.zeros((bins, length))
    for i in range(bins):
        start, end = i * length // bins, -(-(i + 1) * length // bins)
        matrix[i, start:end] = 1 / (end - start)
    return matrix
