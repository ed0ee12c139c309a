"""Convolutions, each with the lowering that is fast on the platform it is compiled for.

XLA's backends differ by an order of magnitude in how fast grouped and dilated
convolutions and their gradients are. So one function has several lowerings (`LOWERINGS`), equal up
to rounding:

- `conv`: `jax.lax.conv_general_dilated`;
- `product`: a 1x1 convolution as one matrix product;
- `rows`: a batched product over the groups, see `_rows_conv`;
- `split`: a convolution for each group;
- `dense`: groups side by side as one block-diagonal dense convolution, in chunks of at most 128
  channels; `dense_rows`: the same with `rows` for each chunk;
- `merged_64`, `merged_128`: neighbouring groups merged up to this many channels, still grouped.

`_DEFAULTS` has the choice for each platform. `ops.lowerings.use_lowerings` overrides it by a table
of measured choices, and the argument `lowering` overrides both.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax import Array, lax
from jax import numpy as jnp

from regseg_jax.ops.lowerings import (
    ConvGeometry,
    PassLowerings,
    applicable_lowerings,
    use_lowerings,
)

# Output pixels of a batch above which a CPU's cache no longer holds the copies of `_rows_conv`,
# so that the forward pass is faster by `split`: they break even between 4,000 and 8,000.
_ROWS_MAX_PIXELS = 4096

# A TPU multiplies 128 channels at once. From this many pixels of a map on, the three columns of
# taps side by side fill it better than a convolution does. By its compiler's estimates 96 x 96
# pixels gained and 48 x 48 lost except at rate 1; in between nothing was compiled.
_TPU_CHANNELS = 128
_TPU_ROWS_MIN_PIXELS = 64 * 64


@dataclasses.dataclass(frozen=True)
class _Geometry:
    stride: int
    rate: int
    groups: int


def grouped_conv(
    x: Array,
    kernel: Array,
    *,
    stride: int = 1,
    dilation_rate: int = 1,
    groups: int = 1,
    lowering: str | None = None,
) -> Array:
    """Convolves feature maps padded by ``dilation_rate * (k - 1) // 2`` on each side.

    Differentiable once, in reverse mode.

    Args:
      x: feature maps [B, H, W, C] of any float dtype and any H and W.
      kernel: weights [k, k, C / groups, O] of the same dtype, k = 1 or 3. Output channel o
        belongs to group ``o // (O / groups)``, as in `jax.lax.conv_general_dilated`.
      stride: step between output pixels.
      dilation_rate: step between the taps of a 3x3 kernel.
      groups: number of channel groups; divides C and O.
      lowering: one of `applicable_lowerings(k, groups)`, for all passes; None leaves the choice to
        the table in use, see `ops.lowerings`, and else to the platform that the computation is
        compiled for.

    Returns:
      Feature maps [B, ceil(H / stride), ceil(W / stride), O] of x's dtype.

    Raises:
      ValueError: if the shapes do not fit or the lowering does not apply.
    """
    if kernel.ndim != 4 or kernel.shape[:2] not in ((1, 1), (3, 3)):
        raise ValueError(f"kernel has shape {kernel.shape}; expected [1, 1, ...] or [3, 3, ...]")
    if x.ndim != 4 or x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"x {x.shape} and kernel {kernel.shape} do not fit {groups} groups; "
            "expected [B, H, W, C] and [k, k, C / groups, a multiple of groups]"
        )
    legal = applicable_lowerings(kernel.shape[0], groups)
    if lowering is not None and lowering not in legal:
        raise ValueError(f"lowering is {lowering!r}; expected None or one of {', '.join(legal)}")
    if lowering is not None:
        chosen = PassLowerings(lowering, lowering, lowering)
    elif use_lowerings.value is not None:
        sizes = kernel.shape[0], stride, dilation_rate, groups, x.shape[3], kernel.shape[3]
        chosen = use_lowerings.value[ConvGeometry(*sizes, *x.shape[1:3])]
    else:
        chosen = None
    return _grouped_conv(x, kernel, _Geometry(stride, dilation_rate, groups), chosen)


# The platform is chosen within the forward and within the backward pass, not around both: that
# way differentiation never sees two lowerings at once, and all it keeps is x and the kernel.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _grouped_conv(
    x: Array, kernel: Array, geometry: _Geometry, chosen: PassLowerings | None
) -> Array:
    return _for_each_platform(_convolve, x, kernel, geometry=geometry, chosen=chosen)


def _grouped_conv_fwd(
    x: Array, kernel: Array, geometry: _Geometry, chosen: PassLowerings | None
) -> tuple[Array, tuple[Array, Array]]:
    return _grouped_conv(x, kernel, geometry, chosen), (x, kernel)


def _grouped_conv_bwd(
    geometry: _Geometry, chosen: PassLowerings | None, inputs: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    return _for_each_platform(_compute_gradients, *inputs, dy, geometry=geometry, chosen=chosen)


_grouped_conv.defvjp(_grouped_conv_fwd, _grouped_conv_bwd)


def _for_each_platform(
    compute: Callable, x: Array, kernel: Array, *rest: Array, geometry, chosen
) -> Array | tuple[Array, Array]:
    """Computes by the lowerings chosen, or by each platform's default."""
    if chosen is not None:
        return compute(x, kernel, *rest, geometry, chosen)
    platforms = {
        platform: lambda *arrays, choose=choose: compute(
            *arrays, geometry, choose(x.shape, kernel.shape[0], geometry)
        )
        for platform, choose in _DEFAULTS.items()
    }
    return lax.platform_dependent(x, kernel, *rest, **platforms)


def _convolve(x: Array, kernel: Array, geometry: _Geometry, chosen: PassLowerings) -> Array:
    return _FORMS[chosen.forward](x, kernel, geometry)


def _compute_gradients(
    x: Array, kernel: Array, dy: Array, geometry: _Geometry, chosen: PassLowerings
) -> tuple[Array, Array]:
    input_form, kernel_form = _FORMS[chosen.input_gradient], _FORMS[chosen.kernel_gradient]
    (dx,) = jax.vjp(lambda x: input_form(x, kernel, geometry), x)[1](dy)
    if chosen.kernel_gradient == "product":
        x = x[:, :: geometry.stride, :: geometry.stride]
        # As [O, C], not [C, O]: up to 4 times faster on CPUs, the sum over the pixels being long.
        dkernel = (dy.reshape(-1, dy.shape[3]).T @ x.reshape(-1, x.shape[3])).T[None, None]
    else:
        (dkernel,) = jax.vjp(lambda kernel: kernel_form(x, kernel, geometry), kernel)[1](dy)
    return dx, dkernel


def _choose_for_cpu(shape: tuple, kernel_size: int, geometry: _Geometry) -> PassLowerings:
    """Matrix products: XLA's CPU backend is slow at the gradients of grouped convolutions."""
    if geometry.groups > 1:
        pixels = shape[0] * -(-shape[1] // geometry.stride) * -(-shape[2] // geometry.stride)
        # A batch or size that `jax.export` leaves open is not an int.
        few = isinstance(pixels, int) and pixels <= _ROWS_MAX_PIXELS
        return PassLowerings("rows" if few else "split", "rows", "rows")
    if kernel_size == 1:
        return PassLowerings("product", "product", "product")
    return PassLowerings("conv", "conv", "rows" if geometry.stride == 1 else "conv")


def _choose_for_tpu(shape: tuple, kernel_size: int, geometry: _Geometry) -> PassLowerings:
    """Dense products of as many channels as the unit is wide, but no more."""
    if kernel_size == 1:
        name = "product" if geometry.groups == 1 else "dense"
    else:
        pixels = shape[1] * shape[2]
        large = isinstance(pixels, int) and pixels >= _TPU_ROWS_MIN_PIXELS
        rows = large and geometry.stride == 1
        dense = ("conv", "rows") if geometry.groups == 1 else ("dense", "dense_rows")
        name = dense[rows]
    return PassLowerings(name, name, name)


def _choose_for_gpu(shape: tuple, kernel_size: int, geometry: _Geometry) -> PassLowerings:
    """The library's convolutions, except for a single pixel, where each takes several kernels."""
    single = kernel_size == 1 and geometry.groups == 1 and shape[1] == 1 and shape[2] == 1
    name = "product" if single else "conv"
    return PassLowerings(name, name, name)


_DEFAULTS = {"cpu": _choose_for_cpu, "tpu": _choose_for_tpu, "default": _choose_for_gpu}


def _conv(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    pad = geometry.rate * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(geometry.stride, geometry.stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(geometry.rate, geometry.rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=geometry.groups,
    )


def _product(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    x = x[:, :: geometry.stride, :: geometry.stride]
    return jnp.einsum("bhwc,co->bhwo", x, kernel[0, 0])


def _merged_conv(x: Array, kernel: Array, geometry: _Geometry, *, max_channels: int) -> Array:
    """Merges as many neighbouring groups as divide all and keep within the limit."""
    most = max(max_channels // kernel.shape[2], 1)
    size = max(n for n in range(1, min(most, geometry.groups) + 1) if geometry.groups % n == 0)
    merged = dataclasses.replace(geometry, groups=geometry.groups // size)
    return _conv(x, _merge_groups(kernel, geometry.groups, size), merged)


def _split_conv(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    """Convolves each group by itself: no gathered copies, but a longer compilation."""
    return _chunked_conv(x, kernel, geometry, geometry.groups, _conv)


def _dense_conv(x: Array, kernel: Array, geometry: _Geometry, *, conv: Callable) -> Array:
    """Convolves chunks of groups as dense ones, of about the same size."""
    groups_per_chunk = max(_TPU_CHANNELS // kernel.shape[2], 1)
    return _chunked_conv(x, kernel, geometry, -(-geometry.groups // groups_per_chunk), conv)


def _chunked_conv(
    x: Array, kernel: Array, geometry: _Geometry, num_chunks: int, conv: Callable
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
        outputs.append(conv(x_part, _merge_groups(kernel_part, size, size), dense))
    return jnp.concatenate(outputs, -1)


def _merge_groups(kernel: Array, groups: int, size: int) -> Array:
    """The kernel [k, k, size * C / groups, O] of as many neighbouring groups in one, else zero."""
    if size == 1:
        return kernel
    *taps, group_width, features = kernel.shape
    kernel = kernel.reshape(*taps, 1, group_width, groups // size, size, features // groups)
    same_group = jnp.eye(size, dtype=bool).reshape(size, 1, 1, size, 1)
    return jnp.where(same_group, kernel, 0).reshape(*taps, size * group_width, features)


def _rows_conv(x: Array, kernel: Array, geometry: _Geometry) -> Array:
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
    out_height, out_width = -(-height // stride), -(-width // stride)
    offsets = [(tap - size // 2) * geometry.rate for tap in range(size)]
    # Taps further out than the map is large see nothing but padding.
    columns = [tap for tap in range(size) if abs(offsets[tap]) < width]
    rows = [tap for tap in range(size) if abs(offsets[tap]) < height]

    x = x.reshape(batch, height, width, groups, group_width)
    x = jnp.transpose(x, (3, 0, 1, 2, 4))  # [G, B, H, W, C]
    x = jnp.concatenate([_shift(x, 3, offsets[tap], out_width, stride) for tap in columns], -1)
    kernel = kernel.reshape(size, size, group_width, groups, group_features)
    kernel = jnp.transpose(kernel, (3, 0, 1, 2, 4))  # [G, kH, kW, C, O]
    kernel = kernel[:, :, columns[0] : columns[-1] + 1].reshape(groups, size, -1, group_features)

    y = jnp.zeros((groups, batch, out_height, out_width, group_features), x.dtype)
    for remainder in range(stride):
        taps = [tap for tap in rows if offsets[tap] % stride == remainder]
        if not taps:
            continue
        taps_kernel = jnp.concatenate([kernel[:, tap] for tap in taps], -1)
        product = jnp.einsum("gbhwk,gko->gbhwo", x[:, :, remainder::stride], taps_kernel)
        for tap, part in zip(taps, jnp.split(product, len(taps), -1), strict=True):
            y += _shift(part, 2, offsets[tap] // stride, out_height)
    return jnp.transpose(y, (1, 2, 3, 0, 4)).reshape(batch, out_height, out_width, features)


def _shift(x: Array, axis: int, offset: int, size: int, stride: int = 1) -> Array:
    """Returns the ``size`` entries ``x[offset + stride * i]`` along axis, zero outside of x."""
    high = offset + (size - 1) * stride + 1 - x.shape[axis]
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (-offset, high, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), padding)
    return lax.slice_in_dim(x, 0, None, stride, axis)


_FORMS = {
    "conv": _conv,
    "product": _product,
    "rows": _rows_conv,
    "split": _split_conv,
    "dense": functools.partial(_dense_conv, conv=_conv),
    "dense_rows": functools.partial(_dense_conv, conv=_rows_conv),
    "merged_64": functools.partial(_merged_conv, max_channels=64),
    "merged_128": functools.partial(_merged_conv, max_channels=128),
}
