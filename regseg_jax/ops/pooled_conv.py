"""The 1x1 convolution of 2x2 averages, as in the shortcut of a strided D block."""

import jax.numpy as jnp
from jax import Array, lax

from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.height_shards import use_height_shards
from regseg_jax.ops.platforms import choose_by_platform
from regseg_jax.ops.resize import average_pool_2x2
from regseg_jax.ops.space_to_depth import get_block_size
from regseg_jax.ops.space_to_depth_conv import space_to_depth_conv


def pooled_conv(x: Array, kernel: Array) -> Array:
    """Averages 2x2 pixels by `average_pool_2x2` and convolves the averages.

    Differentiable once, in reverse mode.

    Args:
      x: feature maps [B, H, W, C] of any float dtype and any H and W.
      kernel: weights [1, 1, C, O] of the same dtype.

    Returns:
      Feature maps [B, ceil(H / 2), ceil(W / 2), O] of x's dtype.
    """
    if get_block_size(x) % 2 == 0 and x.shape[1] % 2 == 0:
        return space_to_depth_conv(x, _tile_windows(kernel), stride=2, offset=0)
    shards = use_height_shards.value
    y = _pooled_conv(shards.mask(x), kernel)
    height = shards.get_height(x.shape[1])
    if shards.is_split and height % 2:  # half of the last window is outside the map
        y *= shards.take(jnp.ones((1, height // 2, 1, 1), y.dtype), y.shape[1], fill=2)
    return y


def _pool_and_convolve(x: Array, kernel: Array) -> Array:
    return grouped_conv(average_pool_2x2(x), kernel)


def _convolve_windows(x: Array, kernel: Array) -> Array:
    """One 2x2 convolution, because moving pixels is slow on TPUs."""
    if not (x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0):  # sizes that export leaves open too
        return _pool_and_convolve(x, kernel)
    return lax.conv_general_dilated(
        x,
        _tile_windows(kernel),
        window_strides=(2, 2),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _tile_windows(kernel: Array) -> Array:
    """The 2x2 kernel that averages and convolves."""
    return jnp.tile(kernel / 4, (2, 2, 1, 1))


_pooled_conv = choose_by_platform(tpu=_convolve_windows, default=_pool_and_convolve)
