"""Convolutions, each with the lowering that is fast on the platform it is compiled for.

XLA's backends differ by an order of magnitude in how fast grouped and dilated
convolutions and their gradients are. So one function has several lowerings, the forms of
`ops.conv_forms`, equal up to rounding.

`_DEFAULTS` has the choice for each platform. `ops.lowerings.use_lowerings` overrides it by a table
of measured choices, and the argument `lowering` overrides both.
"""

import functools
from collections.abc import Callable

import jax
from jax import Array, lax

from regseg_jax.ops.conv_forms import FORMS, Geometry, merge_groups
from regseg_jax.ops.height_shards import use_height_shards
from regseg_jax.ops.lowerings import (
    ConvGeometry,
    PassLowerings,
    applicable_lowerings,
    use_lowerings,
)
from regseg_jax.ops.space_to_depth import get_block_size
from regseg_jax.ops.space_to_depth_conv import space_to_depth_conv

# Output pixels of a batch above which a CPU's cache no longer holds the copies of `rows`,
# so that the forward pass is faster by `split`: they break even between 4,000 and 8,000.
_ROWS_MAX_PIXELS = 4096

# From this many pixels of a map on, the three columns of taps side by side fill a TPU better than a
# convolution does. By its compiler's estimates 96 x 96 pixels gained and 48 x 48 lost except at
# rate 1; in between nothing was compiled.
_TPU_ROWS_MIN_PIXELS = 64 * 64


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
      lowering: one of `applicable_lowerings`, for all passes; None leaves the choice to
        `ops.space_to_depth` where it is in use for x, then to the table in use, see
        `ops.lowerings`, and else to the platform that the computation is compiled for.

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
    sizes = kernel.shape[0], stride, dilation_rate, groups, x.shape[3], kernel.shape[3]
    conv_geometry = ConvGeometry(*sizes, *x.shape[1:3])
    legal = applicable_lowerings(conv_geometry)
    if lowering is not None and lowering not in legal:
        raise ValueError(f"lowering is {lowering!r}; expected None or one of {', '.join(legal)}")
    pad = dilation_rate * (kernel.shape[0] - 1) // 2
    block_size = get_block_size(x)
    if lowering is None and block_size > 1 and block_size % stride == 0:
        dense = merge_groups(kernel, groups, groups)
        return space_to_depth_conv(x, dense, stride=stride, offset=-pad, rate=dilation_rate)
    if lowering is not None:
        chosen = PassLowerings(lowering, lowering, lowering)
    elif use_lowerings.value is not None:
        chosen = use_lowerings.value[conv_geometry]
    else:
        chosen = None
    shards = use_height_shards.value
    if pad and shards.is_split:
        x, pad = shards.exchange(x, pad, pad - stride + 1), 0
    return _grouped_conv(x, kernel, Geometry(stride, dilation_rate, groups, pad), chosen)


# The platform is chosen within the forward and within the backward pass, not around both: that
# way differentiation never sees two lowerings at once, and all it keeps is x and the kernel.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _grouped_conv(
    x: Array, kernel: Array, geometry: Geometry, chosen: PassLowerings | None
) -> Array:
    return _for_each_platform(_convolve, x, kernel, geometry=geometry, chosen=chosen)


def _grouped_conv_fwd(
    x: Array, kernel: Array, geometry: Geometry, chosen: PassLowerings | None
) -> tuple[Array, tuple[Array, Array]]:
    return _grouped_conv(x, kernel, geometry, chosen), (x, kernel)


def _grouped_conv_bwd(
    geometry: Geometry, chosen: PassLowerings | None, inputs: tuple[Array, Array], dy: Array
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


def _convolve(x: Array, kernel: Array, geometry: Geometry, chosen: PassLowerings) -> Array:
    return FORMS[chosen.forward](x, kernel, geometry)


def _compute_gradients(
    x: Array, kernel: Array, dy: Array, geometry: Geometry, chosen: PassLowerings
) -> tuple[Array, Array]:
    input_form, kernel_form = FORMS[chosen.input_gradient], FORMS[chosen.kernel_gradient]
    (dx,) = jax.vjp(lambda x: input_form(x, kernel, geometry), x)[1](dy)
    if chosen.kernel_gradient == "product":
        x = x[:, :: geometry.stride, :: geometry.stride]
        # As [O, C], not [C, O]: up to 4 times faster on CPUs, the sum over the pixels being long.
        dkernel = (dy.reshape(-1, dy.shape[3]).T @ x.reshape(-1, x.shape[3])).T[None, None]
    else:
        (dkernel,) = jax.vjp(lambda kernel: kernel_form(x, kernel, geometry), kernel)[1](dy)
    return dx, dkernel


def _choose_for_cpu(shape: tuple, kernel_size: int, geometry: Geometry) -> PassLowerings:
    """Matrix products: XLA's CPU backend is slow at the gradients of grouped convolutions."""
    if geometry.groups > 1:
        pixels = shape[0] * -(-shape[1] // geometry.stride) * -(-shape[2] // geometry.stride)
        # A batch or size that `jax.export` leaves open is not an int.
        few = isinstance(pixels, int) and pixels <= _ROWS_MAX_PIXELS
        return PassLowerings("rows" if few else "split", "rows", "rows")
    if kernel_size == 1:
        return PassLowerings("product", "product", "product")
    return PassLowerings("conv", "conv", "rows" if geometry.stride == 1 else "conv")


def _choose_for_tpu(shape: tuple, kernel_size: int, geometry: Geometry) -> PassLowerings:
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


def _choose_for_gpu(shape: tuple, kernel_size: int, geometry: Geometry) -> PassLowerings:
    """The library's convolutions where they are best.

    Their transposed 1x1 kernels are copies, a product needs none. A single pixel's sums join the
    kernels around. XLA does not recognise the gradient of a dilated kernel as one, and would
    convolve one map with another, which is slow. Nor does it recognise the gradient by the input of
    a grouped convolution: with a stride it would store zeros between the pixels and convolve them,
    as it does where there is a dilation too.
    """
    if kernel_size == 1 and geometry.groups == 1:
        if shape[1] == 1 and shape[2] == 1:
            return PassLowerings("sum_last", "sum_first", "sum_first")
        return PassLowerings("conv", "product" if geometry.stride == 1 else "conv", "conv")
    if kernel_size > 1 and geometry.rate > 1:
        return PassLowerings("conv", "conv", "space_to_batch")
    is_strided = kernel_size > 1 and geometry.stride > 1 and geometry.groups > 1
    return PassLowerings("conv", "space_to_depth" if is_strided else "conv", "conv")


_DEFAULTS = {"cpu": _choose_for_cpu, "tpu": _choose_for_tpu, "default": _choose_for_gpu}
