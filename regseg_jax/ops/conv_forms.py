"""How a convolution can be computed, equal up to rounding; `ops.conv` chooses.

- `conv`: `jax.lax.conv_general_dilated`;
- `product`: a 1x1 convolution as one matrix product;
- `sum_last`, `sum_first`: a 1x1 convolution of one pixel as products that are summed over the input
  channels, these being the last axis or the one before; the gradient by x sums over the other;
- `rows`: a batched product over the groups, see `_rows_conv`;
- `split`: a convolution for each group;
- `dense`: groups side by side as one block-diagonal dense convolution, in chunks of at most 128
  channels; `dense_rows`: the same with `rows` for each chunk;
- `merged_64`, `merged_128`: neighbouring groups merged up to this many channels, still grouped;
- `space_to_depth`: a convolution with a stride as one without, of blocks whose pixels are channels;
- `space_to_batch`: a dilated convolution as an ordinary one of the pixels of each remainder.
"""

import dataclasses
import functools
from collections.abc import Callable

from jax import Array, lax
from jax import numpy as jnp

_TPU_CHANNELS = 128  # that a TPU multiplies at once


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What all forms take; padding along the width follows from it."""

    stride: int
    rate: int
    groups: int
    pad_height: int  # zeros above and below; 0 where the rows there are fetched


def _conv(x: Array, kernel: Array, geometry: Geometry) -> Array:
    pad = geometry.rate * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(geometry.stride, geometry.stride),
        padding=((geometry.pad_height, geometry.pad_height), (pad, pad)),
        rhs_dilation=(geometry.rate, geometry.rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
    )


def _product(x: Array, kernel: Array, geometry: Geometry) -> Array:
    x = x[:, :: geometry.stride, :: geometry.stride]
    return jnp.einsum("bhwc,co->bhwo", x, kernel[0, 0])


def _sum(x: Array, kernel: Array, geometry: Geometry, *, axis: int) -> Array:
    """Sums over this axis of the products; in half precision they are wider."""
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, kernel = x.astype(wide), kernel[0, 0].astype(wide)
    products = x[..., None, :] * kernel.T if axis == -1 else x[..., None] * kernel
    return products.sum(axis).astype(dtype)


def _merged_conv(x: Array, kernel: Array, geometry: Geometry, *, max_channels: int) -> Array:
    """Merges as many neighbouring groups as divide all and keep within the limit."""
    most = max(max_channels // kernel.shape[2], 1)
    size = max(n for n in range(1, min(most, geometry.groups) + 1) if geometry.groups % n == 0)
    merged = dataclasses.replace(geometry, groups=geometry.groups // size)
    return _conv(x, merge_groups(kernel, geometry.groups, size), merged)


def _split_conv(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves each group by itself: no gathered copies, but a longer compilation."""
    return _chunked_conv(x, kernel, geometry, geometry.groups, _conv)


def _dense_conv(x: Array, kernel: Array, geometry: Geometry, *, conv: Callable) -> Array:
    """Convolves chunks of groups as dense ones, of about the same size."""
    groups_per_chunk = max(_TPU_CHANNELS // kernel.shape[2], 1)
    return _chunked_conv(x, kernel, geometry, -(-geometry.groups // groups_per_chunk), conv)


def _chunked_conv(
    x: Array, kernel: Array, geometry: Geometry, num_chunks: int, conv: Callable
) -> Array:
    groups, group_width = geometry.groups, kernel.shape[2]
    group_features = kernel.shape[3] // groups
    ends = [groups * (chunk + 1) // num_chunks for chunk in range(num_chunks)]
    parts = zip(
        jnp.split(x, [end * group_width for end in ends[:-1]], -1),
        jnp.split(kernel, [end * group_features for end in ends[:-1]], -1),
        strict=True,
    )
    dense = dataclasses.replace(geometry, groups=1)
    outputs = []
    for x_part, kernel_part in parts:
        size = x_part.shape[3] // group_width
        outputs.append(conv(x_part, merge_groups(kernel_part, size, size), dense))
    return jnp.concatenate(outputs, -1)


def merge_groups(kernel: Array, groups: int, size: int) -> Array:
    """The kernel [k, k, size * C / groups, O] of as many neighbouring groups in one, else zero."""
    if size == 1:
        return kernel
    *taps, group_width, features = kernel.shape
    kernel = kernel.reshape(*taps, 1, group_width, groups // size, size, features // groups)
    same_group = jnp.eye(size, dtype=bool).reshape(size, 1, 1, size, 1)
    return jnp.where(same_group, kernel, 0).reshape(*taps, size * group_width, features)


def _space_to_batch_conv(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves without dilation the rate * rate maps that each take every rate-th row and column.

    With a stride it computes the outputs in between too.
    """
    rate, stride = geometry.rate, geometry.stride
    reach = rate * (kernel.shape[0] - 1)
    out_height, out_width = x.shape[1] + 2 * geometry.pad_height - reach, x.shape[2]

    batch, height, width, channels = x.shape
    rows, columns = -(-height // rate), -(-width // rate)
    padding = ((0, 0), (0, rows * rate - height), (0, columns * rate - width), (0, 0))
    maps = jnp.pad(x, padding).reshape(batch, rows, rate, columns, rate, channels)
    maps = maps.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels)

    maps = _conv(maps, kernel, Geometry(1, 1, geometry.groups, geometry.pad_height // rate))
    _, rows, columns, features = maps.shape
    y = maps.reshape(batch, rate, rate, rows, columns, features).transpose(0, 3, 1, 4, 2, 5)
    y = y.reshape(batch, rows * rate, columns * rate, features)
    return y[:, :out_height:stride, :out_width:stride]


def _space_to_depth_conv(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves blocks of stride * stride pixels; the dilation rate is 1.

    The kernel is padded with zeros before its first taps to a whole number of blocks. So the
    gradient by x does not convolve zeros between the pixels of the output's gradient.
    """
    stride, groups = geometry.stride, geometry.groups
    (batch, height, width, _), size = x.shape, kernel.shape[0]
    extra = -size % stride
    num_taps = (size + extra) // stride
    out_height = -(-(height + 2 * geometry.pad_height - size + 1) // stride)
    rows, columns = out_height + num_taps - 1, -(-width // stride) + num_taps - 1

    x = shift(x, 1, -geometry.pad_height - extra, rows * stride)
    x = shift(x, 2, -(size - 1) // 2 - extra, columns * stride)
    blocks = x.reshape(batch, rows, stride, columns, stride, groups, -1)
    blocks = blocks.transpose(0, 1, 3, 5, 2, 4, 6).reshape(batch, rows, columns, -1)

    kernel = jnp.pad(kernel, ((extra, 0), (extra, 0), (0, 0), (0, 0)))
    taps = kernel.reshape(num_taps, stride, num_taps, stride, -1, kernel.shape[3])
    taps = taps.transpose(0, 2, 1, 3, 4, 5).reshape(num_taps, num_taps, -1, kernel.shape[3])
    return lax.conv_general_dilated(
        blocks,
        taps,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _rows_conv(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves by a matrix product a group, its gradients being matrix products too.

    The taps in a row of the kernel are gathered along W before the product, those in a column
    are added along H after it. So the product is [pixels, 3C] x [3C, 3O] where the usual
    (im2col) one is [pixels, 9C] x [9C, O]: the same work with a third of the gathered copies, in
    a shape that suits narrow groups better. In half precision up to three products are rounded
    before they are added, where a convolution rounds once. With a stride, a tap meets only the
    input rows of one remainder, so each remainder has its product.
    """
    stride, groups = geometry.stride, geometry.groups
    (batch, height, width, _), (size, _, group_width, features) = x.shape, kernel.shape
    group_features = features // groups
    reach = geometry.rate * (size - 1)
    out_height, out_width = (
        -(-(height + 2 * geometry.pad_height - reach) // stride),
        -(-width // stride),
    )
    offsets = [tap * geometry.rate - reach // 2 for tap in range(size)]
    row_offsets = [tap * geometry.rate - geometry.pad_height for tap in range(size)]
    # Taps further out than the map is large see nothing but padding.
    columns = [tap for tap in range(size) if abs(offsets[tap]) < width]
    rows = [tap for tap in range(size) if abs(row_offsets[tap]) < height]

    x = x.reshape(batch, height, width, groups, group_width)
    x = jnp.transpose(x, (3, 0, 1, 2, 4))  # [G, B, H, W, C]
    x = jnp.concatenate([shift(x, 3, offsets[tap], out_width, stride) for tap in columns], -1)
    kernel = kernel.reshape(size, size, group_width, groups, group_features)
    kernel = jnp.transpose(kernel, (3, 0, 1, 2, 4))  # [G, kH, kW, C, O]
    kernel = kernel[:, :, columns[0] : columns[-1] + 1].reshape(groups, size, -1, group_features)

    y = jnp.zeros((groups, batch, out_height, out_width, group_features), x.dtype)
    for remainder in range(stride):
        taps = [tap for tap in rows if row_offsets[tap] % stride == remainder]
        if not taps:
            continue
        taps_kernel = jnp.concatenate([kernel[:, tap] for tap in taps], -1)
        product = jnp.einsum("gbhwk,gko->gbhwo", x[:, :, remainder::stride], taps_kernel)
        for tap, part in zip(taps, jnp.split(product, len(taps), -1), strict=True):
            y += shift(part, 2, row_offsets[tap] // stride, out_height)
    return jnp.transpose(y, (1, 2, 3, 0, 4)).reshape(batch, out_height, out_width, features)


def shift(x: Array, axis: int, offset: int, size: int, stride: int = 1) -> Array:
    """Returns the ``size`` entries ``x[offset + stride * i]`` along axis, zero outside of x."""
    high = offset + (size - 1) * stride + 1 - x.shape[axis]
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (-offset, high, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), padding)
    return lax.slice_in_dim(x, 0, None, stride, axis)


# By name: functions of x, kernel and `Geometry`.
FORMS = {
    "conv": _conv,
    "product": _product,
    "sum_last": functools.partial(_sum, axis=-1),
    "sum_first": functools.partial(_sum, axis=-2),
    "rows": _rows_conv,
    "split": _split_conv,
    "dense": functools.partial(_dense_conv, conv=_conv),
    "dense_rows": functools.partial(_dense_conv, conv=_rows_conv),
    "merged_64": functools.partial(_merged_conv, max_channels=64),
    "merged_128": functools.partial(_merged_conv, max_channels=128),
    "space_to_depth": _space_to_depth_conv,
    "space_to_batch": _space_to_batch_conv,
}
