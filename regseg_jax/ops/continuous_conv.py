"""A 3x3 convolution whose dilation rate is a real number and differentiable.

Tap (i, j), i and j in {-1, 0, 1}, reads its input at a distance of rate * (i, j) pixels, bilinearly
interpolated, zero outside. The interpolation along one axis is a product with a matrix of hat
functions of the rate, so it is differentiable in the rate, is traced like any value, and at an
integer merely copies. The construction is this project's own: the code of the paper's search was
never published.
"""

import jax.numpy as jnp
from jax import Array, lax

from regseg_jax.ops.height_shards import use_height_shards


def continuous_conv(
    x: Array,
    kernel: Array,
    dilation_rate: Array | float,
    *,
    groups: int = 1,
    tap_width: Array | float = 1.0,
) -> Array:
    """Convolves feature maps, padded with zeros, at a real dilation rate.

    At an integer rate it equals `ops.conv.grouped_conv`, kernel and input gradients too. Between
    integers it is linear in the rate along each axis; at one, the gradient with respect to the
    rate is the mean of those on both sides.

    Args:
      x: feature maps [B, H, W, C] of any float dtype and any H and W.
      kernel: weights [3, 3, C / groups, O] of the same dtype, grouped as in `grouped_conv`.
      dilation_rate: f32[], at least 0, without a limit: taps off the map see zeros.
      groups: number of channel groups; divides C and O.
      tap_width: f32[], at least 1: how far, in pixels, an outer tap reaches to both sides. Above 1
        it averages, and the gradient of the rate depends on pixels that far away.

    Returns:
      Feature maps [B, H, W, O] of x's dtype.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if kernel.ndim != 4 or kernel.shape[:2] != (3, 3):
        raise ValueError(f"kernel has shape {kernel.shape}; expected [3, 3, C / groups, O]")
    if x.ndim != 4 or x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"x {x.shape} and kernel {kernel.shape} do not fit {groups} groups; "
            "expected [B, H, W, C] and [3, 3, C / groups, a multiple of groups]"
        )
    # How far a real rate reaches is not known when the halo would have to be.
    shards, rows = use_height_shards.value, x.shape[1]
    x = shards.gather(x)
    (batch, height, width, _), (*_, group_width, features) = x.shape, kernel.shape
    group_features = features // groups

    # As in `ops.conv_forms`: a row's taps are gathered along W before one product per group, and a
    # column's are added along H after it.
    x = jnp.einsum(
        "tpq,bhqc->bhtpc", _read_taps(dilation_rate, tap_width, width, x.dtype), x, precision=_EXACT
    )
    x = x.reshape(batch, height, 3, width, groups, group_width)
    x = jnp.transpose(x, (4, 0, 1, 3, 2, 5)).reshape(groups, batch, height, width, 3 * group_width)
    kernel = kernel.reshape(3, 3, group_width, groups, group_features)
    kernel = jnp.transpose(kernel, (3, 1, 2, 0, 4))  # [G, kW, C, kH, O]
    kernel = kernel.reshape(groups, 3 * group_width, 3 * group_features)
    y = jnp.einsum("gbhwk,gko->gbhwo", x, kernel)
    y = y.reshape(groups, batch, height, width, 3, group_features)
    y = jnp.transpose(y, (1, 4, 2, 3, 0, 5)).reshape(batch, 3, height, width * features)
    taps = _read_taps(dilation_rate, tap_width, height, y.dtype)
    y = jnp.einsum("tpq,btqo->bpo", taps, y, precision=_EXACT)
    return shards.take(y.reshape(batch, height, width, features), rows)


# Copying by a product must not round: in float32, TPUs and TF32 would.
_EXACT = lax.Precision.HIGHEST


def _read_taps(
    dilation_rate: Array | float, tap_width: Array | float, size: int, dtype: jnp.dtype
) -> Array:
    """The weights [3, p, q] with which taps -1, 0 and 1 at position p read entry q of an axis."""
    positions = jnp.arange(size, dtype=jnp.promote_types(dtype, jnp.float32))
    taps = jnp.array([-1, 0, 1], positions.dtype)[:, None, None]
    widths = jnp.where(taps == 0, 1.0, tap_width)
    offsets = (positions[:, None] + taps * dilation_rate - positions) / widths
    # The hat max(0, 1 - |offset|), written so that its gradient is even where it has a corner.
    hats = jnp.maximum(0, jnp.minimum(1 + offsets, 1 - offsets)) / widths
    return hats.astype(dtype)
