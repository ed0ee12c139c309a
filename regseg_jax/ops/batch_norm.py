"""Batch norm in training, optionally with ReLU, as one function with its own gradient.

JAX's own gradient keeps several copies of the input in float32 and sums four times. Here each
direction reads its inputs once for a pair of sums and once for the result, and only the input
in its own dtype and a few vectors are kept for the gradient.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from regseg_jax.ops.height_shards import HeightShards, use_height_shards
from regseg_jax.ops.space_to_depth import (
    depth_to_space,
    repeat_channels,
    space_to_depth,
    sum_channels,
)

# XLA sums up to so many pixels in one kernel. A longer sum has a block of threads for each 32
# channels of a part: parts times channels should give an H100's multiprocessors two blocks each.
_GPU_LONG_SUM = 4096
_GPU_SUMS = 2 * 132 * 32
_GPU_MAX_PARTS = 96


def batch_norm(
    x: Array,
    scale: Array,
    bias: Array,
    shift: Array,
    *,
    epsilon: float,
    use_relu: bool = False,
    axis_name: str | None = None,
) -> tuple[Array, Array, Array]:
    """Normalises by the statistics of all axes but the last.

    Differentiable once, in reverse mode; the statistics returned are constants. Inside
    `jax.shard_map` the gradients of scale and bias are those of the device's shard, for the caller
    to sum (with `check_vma`, make the parameters vary over the axis by `lax.pcast`).

    Args:
      x: [..., C] of any float dtype.
      scale: f32[C]; float64 if x is, like the other vectors.
      bias: f32[C].
      shift: f32[C], near the mean: the sums are of x - shift, so that mean square minus squared
        mean cancels little. The running mean serves well; it changes the result by rounding
        only.
      epsilon: added to the variance.
      use_relu: whether negative results become 0.
      axis_name: a mapped axis to take the statistics over too, by one `lax.psum` each way. They
        always are of all height shards (see `ops.height_shards`), in the same `lax.psum`.

    Returns:
      The result of x's shape and dtype, and the mean f32[C] and the unbiased variance f32[C].
    """
    options = epsilon, use_relu, axis_name, use_height_shards.value
    y, *statistics = _batch_norm(space_to_depth(x), scale, bias, shift, *options)
    return depth_to_space(y, x.shape[-1]), *statistics


# Of [..., C] or, of blocks of n columns, [..., n * C].
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _batch_norm(x, scale, bias, shift, epsilon, use_relu, axis_name, shards):
    return _forward(x, scale, bias, shift, epsilon, use_relu, axis_name, shards)[0]


def _forward(x, scale, bias, shift, epsilon, use_relu, axis_name, shards):
    shifted = shards.mask(_widen(x) - repeat_channels(shift, x))
    sums = _sum_pixels(shifted, jnp.square(shifted), len(scale), in_parts=True)
    count = _count_pixels(x, len(scale), axis_name, shards)
    shifted_mean, mean_square = _average(sums, count, axis_name, shards)
    mean = shift + shifted_mean
    var = jnp.maximum(mean_square - jnp.square(shifted_mean), 0)

    inverse_std = lax.rsqrt(var + epsilon)
    y = _affine(x, scale * inverse_std, bias, mean)
    y = jnp.maximum(y, 0) if use_relu else y
    unbiased_var = var * (count / max(count - 1, 1))
    return (y.astype(x.dtype), mean, unbiased_var), (x, scale, bias, mean, inverse_std)


def _backward(epsilon, use_relu, axis_name, shards, residuals, cotangents):
    x, scale, bias, mean, inverse_std = residuals
    dy = _widen(cotangents[0])
    if use_relu:
        # A factor of dy's dtype: XLA for GPUs would store a mask, which is smaller. An overflow is
        # NaN then even where the result was negative.
        dy *= jnp.sign(jnp.maximum(_affine(x, scale * inverse_std, bias, mean), 0))
    normalised = (_widen(x) - repeat_channels(mean, x)) * repeat_channels(inverse_std, x)
    dbias, dscale = sums = _sum_pixels(dy, dy * normalised, len(scale))
    count = _count_pixels(x, len(scale), axis_name, shards)
    averages = _average(sums, count, axis_name, shards)
    multiplier, mean_dy, mean_product = (
        repeat_channels(vector, x) for vector in (scale * inverse_std, *averages)
    )
    dx = shards.mask(multiplier * (dy - mean_dy - normalised * mean_product))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype), None


_batch_norm.defvjp(_forward, _backward)


def _affine(x: Array, multiplier: Array, bias: Array, mean: Array) -> Array:
    return _widen(x) * repeat_channels(multiplier, x) + repeat_channels(bias - mean * multiplier, x)


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sum_pixels(
    x: Array, y: Array, num_channels: int, *, in_parts: bool = False
) -> tuple[Array, ...]:
    """Sums each over all axes but the channels.

    GPUs take two kernels for a long sum: in parts and over these. With in_parts the second is one
    that XLA fuses with what follows, which should be small.
    """

    def sum_together(x: Array, y: Array) -> tuple[Array, ...]:
        # One reduction of a pair is one kernel less than two on GPUs.
        num_parts = _count_parts(x) if in_parts else 1
        x, y = (z.reshape(num_parts, -1, z.shape[-1]) for z in (x, y))
        zero = jnp.zeros((), x.dtype)
        totals = lax.reduce((x, y), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (1,))
        return tuple(functools.reduce(jnp.add, parts) for parts in totals)

    def sum_apart(x: Array, y: Array) -> tuple[Array, ...]:
        axes = tuple(range(x.ndim - 1))
        return x.sum(axes), y.sum(axes)

    sums = lax.platform_dependent(x, y, cuda=sum_together, default=sum_apart)
    return tuple(sum_channels(total, num_channels) for total in sums)


def _count_parts(x: Array) -> int:
    """How many equal parts to sum [..., C] in: enough to keep a GPU busy, few enough to unroll."""
    pixels, channels = x.size // x.shape[-1], x.shape[-1]
    least = -(-_GPU_SUMS // channels)
    if pixels <= _GPU_LONG_SUM or least > _GPU_MAX_PARTS:
        return 1
    return next((n for n in range(least, _GPU_MAX_PARTS + 1) if pixels % n == 0), 1)


def _average(
    sums: tuple[Array, Array], count: int, axis_name: str | None, shards: HeightShards
) -> tuple[Array, ...]:
    """Each device's sums over the pixels of all."""
    axes = (*([axis_name] if axis_name else []), *shards.axes)
    if any(lax.axis_size(axis) > 1 for axis in axes):
        sums = jnp.stack(sums)  # GPUs would copy two arrays into one to send, and back
    sums = lax.psum(sums, axes) if axes else sums
    return tuple(total / (count * shards.copies) for total in sums)


def _count_pixels(x: Array, num_channels: int, axis_name: str | None, shards: HeightShards) -> int:
    pixels = x.size // num_channels
    if shards.is_split:
        pixels = pixels // x.shape[1] * shards.get_height(x.shape[1])
    return pixels * (lax.axis_size(axis_name) if axis_name else 1)
