"""Convolutions, each written in the form that is fast on the platform it is compiled for.

XLA's CPU backend takes a grouped convolution's gradient an order of magnitude more slowly than
the same sums written as matrix products. So there are two lowerings of one function:

- ``"conv"``: `jax.lax.conv_general_dilated`, the default on accelerators;
- ``"matmul"``: the default on CPUs. A 1x1 convolution is one product; a grouped 3x3 convolution
  is a batched product over the groups (see `_rows_conv`), or on large maps, forwards, a
  convolution per group; a dense 3x3 convolution stays one, and takes only its kernel's gradient
  from the products.
"""

import dataclasses
import functools

import jax
from jax import Array, lax
from jax import numpy as jnp

LOWERINGS = ("conv", "matmul")

# Output pixels of a batch above which a CPU's cache no longer holds the copies of `_rows_conv`,
# so that the forward pass is faster by `_split_conv`: they break even between 4,000 and 8,000.
_ROWS_MAX_PIXELS = 4096


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
      lowering: one of `LOWERINGS`, which differ by rounding only; None leaves the choice to the
        platform that the computation is compiled for.

    Returns:
      Feature maps [B, ceil(H / stride), ceil(W / stride), O] of x's dtype.

    Raises:
      ValueError: if the shapes do not fit or there is no such lowering.
    """
    if kernel.ndim != 4 or kernel.shape[:2] not in ((1, 1), (3, 3)):
        raise ValueError(f"kernel has shape {kernel.shape}; expected [1, 1, ...] or [3, 3, ...]")
    if x.ndim != 4 or x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"x {x.shape} and kernel {kernel.shape} do not fit {groups} groups; "
            "expected [B, H, W, C] and [k, k, C / groups, a multiple of groups]"
        )
    if lowering is not None and lowering not in LOWERINGS:
        raise ValueError(f"lowering is {lowering!r}; expected None or one of {LOWERINGS}")
    return _grouped_conv(x, kernel, _Geometry(stride, dilation_rate, groups), lowering)


# The platform is chosen within the forward and within the backward pass, not around both: that
# way differentiation never sees both lowerings at once, and all it keeps is x and the kernel.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _grouped_conv(x: Array, kernel: Array, geometry: _Geometry, lowering: str | None) -> Array:
    conv = functools.partial(_conv, geometry=geometry)
    matmul = functools.partial(_matmul, geometry=geometry)
    if lowering is None:
        return lax.platform_dependent(x, kernel, cpu=matmul, default=conv)
    return {"conv": conv, "matmul": matmul}[lowering](x, kernel)


def _grouped_conv_fwd(
    x: Array, kernel: Array, geometry: _Geometry, lowering: str | None
) -> tuple[Array, tuple[Array, Array]]:
    return _grouped_conv(x, kernel, geometry, lowering), (x, kernel)


def _grouped_conv_bwd(
    geometry: _Geometry, lowering: str | None, inputs: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    conv = functools.partial(_conv_gradients, geometry=geometry)
    matmul = functools.partial(_matmul_gradients, geometry=geometry)
    if lowering is None:
        return lax.platform_dependent(*inputs, dy, cpu=matmul, default=conv)
    return {"conv": conv, "matmul": matmul}[lowering](*inputs, dy)


_grouped_conv.defvjp(_grouped_conv_fwd, _grouped_conv_bwd)


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


def _conv_gradients(x: Array, kernel: Array, dy: Array, geometry: _Geometry) -> tuple[Array, Array]:
    return jax.vjp(functools.partial(_conv, geometry=geometry), x, kernel)[1](dy)


def _matmul(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    if geometry.groups > 1:
        pixels = x.shape[0] * -(-x.shape[1] // geometry.stride) * -(-x.shape[2] // geometry.stride)
        # A batch or size that `jax.export` leaves open is no number.
        few = isinstance(pixels, int) and pixels <= _ROWS_MAX_PIXELS
        return (_rows_conv if few else _split_conv)(x, kernel, geometry)
    if kernel.shape[0] == 1:
        x = x[:, :: geometry.stride, :: geometry.stride]
        return jnp.einsum("bhwc,co->bhwo", x, kernel[0, 0])
    return _conv(x, kernel, geometry)


def _matmul_gradients(
    x: Array, kernel: Array, dy: Array, geometry: _Geometry
) -> tuple[Array, Array]:
    if geometry.groups > 1:
        return jax.vjp(functools.partial(_rows_conv, geometry=geometry), x, kernel)[1](dy)
    dx, dkernel = _conv_gradients(x, kernel, dy, geometry)
    if kernel.shape[0] == 1:
        (dx,) = jax.vjp(lambda x: _matmul(x, kernel, geometry), x)[1](dy)
        x = x[:, :: geometry.stride, :: geometry.stride]
        # As [O, C] and not [C, O]: up to 4 times faster, the sum over the pixels being long.
        dkernel = (dy.reshape(-1, dy.shape[3]).T @ x.reshape(-1, x.shape[3])).T[None, None]
    elif geometry.stride == 1:
        (dkernel,) = jax.vjp(lambda kernel: _rows_conv(x, kernel, geometry), kernel)[1](dy)
    return dx, dkernel


def _split_conv(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    """Convolves each group by itself: no gathered copies, but a longer compilation."""
    dense = dataclasses.replace(geometry, groups=1)
    pairs = zip(
        jnp.split(x, geometry.groups, -1), jnp.split(kernel, geometry.groups, -1), strict=True
    )
    return jnp.concatenate([_conv(*pair, dense) for pair in pairs], -1)


def _rows_conv(x: Array, kernel: Array, geometry: _Geometry) -> Array:
    """Convolves by a matrix product a group, its gradients being matrix products too.

    The taps in a row of the kernel are gathered along W before the product, those in a column
    are added along H after it. So the product is [pixels, 3C] x [3C, 3O] where the usual
    (im2col) one is [pixels, 9C] x [9C, O]: the same work with a third of the gathered copies, in
    a shape that suits narrow groups better. With a stride, a tap meets only the input rows of one
    remainder, so each remainder has its product.
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
