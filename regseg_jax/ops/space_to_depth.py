"""Space-to-depth along the width: neighbouring columns become channels, for TPUs.

A TPU computes on 128 channels at a time and pads what has fewer: the image, with 3, and the largest
maps, with 32 and 48. Under

    with use_space_to_depth(choose_width(image_width, platform)):

the operations of `ops` compute on a map [B, H, blocks * n, C] as [B, H, blocks, n * C], and return
it in its own shape. A `depth_to_space` that another operation's `space_to_depth` follows costs
nothing: XLA removes both, also around what is elementwise. Results are the same up to rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regseg_jax.ops.height_shards import use_height_shards

_STRIDE = 8  # of the largest maps that have 128 channels
_MOST_IMAGE_CHANNELS = 4

# A context manager; its `value` is the number of blocks that wider maps are cut into, or None.
use_space_to_depth = jax.make_user_context(default_value=None)


def choose_width(image_width: int, platform: str) -> int | None:
    """The blocks of a row when training on a platform; None: maps stay as they are."""
    divides = platform == "tpu" and image_width % _STRIDE == 0
    return image_width // _STRIDE if divides else None


def get_block_size(x: Array) -> int:
    """Columns of a block of a map [B, H, W, C]; 1 where maps stay as they are."""
    width = use_space_to_depth.value
    # A width that `jax.export` leaves open is not an int.
    if width is None or x.ndim != 4 or not isinstance(x.shape[2], int):
        return 1
    if x.shape[2] % width or use_height_shards.value.is_split:
        return 1
    return x.shape[2] // width


def space_to_depth(x: Array) -> Array:
    """[B, H, W, C] -> [B, H, W / n, n * C], n the block size."""
    if (block_size := get_block_size(x)) == 1:
        return x
    batch, height, width, channels = x.shape
    if channels <= _MOST_IMAGE_CHANNELS:
        # An image is stored as planes, of which a product gathers columns faster than a copy.
        columns = np.eye(width).reshape(width, width // block_size, block_size)
        columns = jnp.asarray(columns, x.dtype)
        x = jnp.einsum("bhwc,wvn->bhvnc", x, columns, precision="highest")
    return x.reshape(batch, height, width // block_size, block_size * channels)


def depth_to_space(x: Array, channels: int) -> Array:
    """[B, H, W / n, n * C] -> [B, H, W, C]."""
    return x if x.shape[-1] == channels else x.reshape(*x.shape[:2], -1, channels)


def repeat_channels(values: Array, x: Array) -> Array:
    """[..., C] -> [..., n * C], for a map that has as many channels."""
    block_size = x.shape[-1] // values.shape[-1]
    return values if block_size == 1 else jnp.tile(values, block_size)


def sum_channels(values: Array, channels: int) -> Array:
    """[..., n * C] -> [..., C]: the sums over the columns of a block."""
    if values.shape[-1] == channels:
        return values
    return values.reshape(*values.shape[:-1], -1, channels).sum(-2)
