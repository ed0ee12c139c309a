"""The 1x1 convolution of scaled channels, as after squeeze-and-excite."""

import jax.numpy as jnp
from jax import Array

from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.platforms import choose_by_platform
from regseg_jax.ops.space_to_depth import depth_to_space, repeat_channels, space_to_depth


def _scale_kernels(x: Array, kernel: Array, scale: Array) -> Array:
    """Gives each image a kernel of its own, which is smaller than its map."""
    kernels = kernel[0, 0] * scale.reshape(x.shape[0], -1, 1)
    return jnp.einsum("bhwc,bco->bhwo", x, kernels)


def _scale_maps(x: Array, kernel: Array, scale: Array) -> Array:
    """Keeps one kernel, as columns that are channels need it."""
    blocks = space_to_depth(x)
    scaled = depth_to_space(blocks * repeat_channels(scale, blocks), x.shape[3])
    return grouped_conv(scaled, kernel)


_scaled_conv = choose_by_platform(cuda=_scale_kernels, default=_scale_maps)


def scaled_conv(x: Array, kernel: Array, scale: Array) -> Array:
    """Convolves x times a scale.

    Differentiable once, in reverse mode.

    Args:
      x: feature maps [B, H, W, C] of any float dtype and any H and W.
      kernel: weights [1, 1, C, O] of the same dtype.
      scale: [B, 1, 1, C] of the same dtype.

    Returns:
      Feature maps [B, H, W, O] of x's dtype.

    Raises:
      ValueError: if the kernel is not of this shape.
    """
    if kernel.ndim != 4 or kernel.shape[:3] != (1, 1, x.shape[3]):
        raise ValueError(f"kernel has shape {kernel.shape}; expected [1, 1, {x.shape[3]}, ...]")
    if x.shape[0] == 1:
        return grouped_conv(x, kernel * scale.reshape(-1, 1))
    return _scaled_conv(x, kernel, scale)
