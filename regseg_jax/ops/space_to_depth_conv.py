"""Convolutions of maps whose columns are channels, see `ops.space_to_depth`."""

import itertools

import jax.numpy as jnp
import numpy as np
from jax import Array

from regseg_jax.ops.conv_forms import shift
from regseg_jax.ops.space_to_depth import depth_to_space, get_block_size, space_to_depth


def space_to_depth_conv(
    x: Array, kernel: Array, *, stride: int, offset: int, rate: int = 1
) -> Array:
    """Convolves a map by matrix products of its blocks of columns.

    Args:
      x: [B, H, W, C] of any float dtype; the stride divides its block size.
      kernel: [k, k, C, O] of the same dtype.
      stride: step between output pixels, 1 or 2.
      offset: of the kernel's first tap from an output pixel's first input pixel, down and right;
        outside of the map are zeros.
      rate: step between taps.

    Returns:
      [B, ceil(H / stride), W / stride, O] of x's dtype.
    """
    features, num_rows, out_height = kernel.shape[3], len(kernel), -(-x.shape[1] // stride)
    kernel, blocks = _convert_kernel(kernel, get_block_size(x), stride, offset, rate)
    x = shift(space_to_depth(x), 1, 0, out_height * stride)
    x = x.reshape(x.shape[0], out_height, stride, *x.shape[2:])

    # The taps whose rows are in the same stride are summed within a product. What is for other
    # rows or blocks is shifted after the product.
    y, rows = 0, [offset + rate * tap for tap in range(num_rows)]
    for down, taps in itertools.groupby(range(num_rows), lambda tap: rows[tap] // stride):
        taps = list(taps)
        met = x[:, :, rows[taps[0]] % stride : rows[taps[-1]] % stride + 1]
        product = jnp.einsum("bhrwc,rco->bhwo", met, kernel[taps[0] : taps[-1] + 1])
        y += shift(product, 1, down, out_height)
    parts = zip(blocks, jnp.split(y, len(blocks), 3), strict=True)
    y = sum(shift(part, 2, right, part.shape[2]) for right, part in parts)
    return depth_to_space(y, features)


def _convert_kernel(
    kernel: Array, block_size: int, stride: int, offset: int, rate: int
) -> tuple[Array, range]:
    """The kernel between blocks.

    Returns:
      [k, n * C, input blocks * (n / stride) * O], and the input blocks, counted from the output's.
    """
    num_columns, num_outputs = kernel.shape[1], block_size // stride
    columns = offset + rate * np.arange(num_columns)[:, None] + stride * np.arange(num_outputs)
    block_of, column_in = np.divmod(columns, block_size)  # each [k, n / stride]
    blocks = range(block_of.min(), block_of.max() + 1)
    meets = np.zeros((num_columns, block_size, len(blocks), num_outputs))
    for (tap, output), block in np.ndenumerate(block_of):
        meets[tap, column_in[tap, output], block - blocks[0], output] = 1
    meets = jnp.asarray(meets, kernel.dtype)
    converted = jnp.einsum("htco,tnbm->hncbmo", kernel, meets, precision="highest")
    return converted.reshape(len(kernel), block_size * kernel.shape[2], -1), blocks
