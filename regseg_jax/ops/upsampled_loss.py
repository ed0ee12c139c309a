"""Losses and classes of every pixel from logits at a decoder's resolution.

The usual way upsamples the logits to [B, H, W, num_classes] in float32, the largest array of a
training step, and reads it several times in both directions. Here the columns are upsampled first,
which makes planes of H / factor rows, and the rows' phases are taken one after another: each is a
fixed mix of two neighbouring rows of the planes, a strip. Mixing is cheap: strips are computed
where they are read, and by the gradient again, so that only the planes and results without the
class axis are kept. The classes are not the minor axis, which TPUs pad to 128.

In inference rows and columns are mixed at once, but on TPUs: XLA makes that one kernel from the
small logits to the classes, so that not even planes are stored.

A training step needs `model.clone(upsample=False)`, which returns logits of this kind, and
`upsampled_pixel_losses(logits, labels)`: the plain, weighted and bootstrapped losses are sums over
its result. Inference needs `upsampled_argmax(logits, size)`. For sizes that are not multiples of
the logits', or that `jax.export` leaves open, both take the usual way.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from regseg_jax.ops.barrier import gpu_barrier
from regseg_jax.ops.height_shards import use_height_shards
from regseg_jax.ops.resize import interpolation_matrix, upsample_bilinear


def upsampled_pixel_losses(logits: Array, labels: Array, ignore_label: int = 255) -> Array:
    """Cross-entropy of each pixel; equal up to rounding to `upsample_bilinear`, then the loss.

    Differentiable once, in reverse mode. In half precision the gradient of each pixel is rounded to
    the logits' dtype before the pixels are summed: float16 needs the losses scaled.

    Args:
      logits: [B, h, w, num_classes] of any float dtype, finite; computed on in float32 at least.
      labels: i32[B, H, W], in [0, num_classes) or ignore_label.
      ignore_label: its pixels have a loss and a gradient of 0.

    Returns:
      f32[B, H, W] (float64 if the logits are), non-negative, 0 where the label is ignored.
    """
    size = labels.shape[1:3]
    if not _divides(logits, size):
        logits = upsample_bilinear(_widen(logits), size)
        return _compute_losses(*_sum_classes(logits, labels, -1), labels, ignore_label)
    return _pixel_losses(use_height_shards.value.repeat_edges(logits), labels, ignore_label)


def upsampled_argmax(logits: Array, size: tuple[int, int]) -> Array:
    """The class with the largest upsampled logit of each pixel.

    Args:
      logits: [B, h, w, num_classes] of any float dtype; interpolated in float32 at least.
      size: height and width of the result.

    Returns:
      uint8[B, *size]; the first class if several are the largest.
    """
    if not _divides(logits, size):
        return lax.argmax(upsample_bilinear(_widen(logits), size), 3, jnp.uint8)
    return lax.platform_dependent(
        use_height_shards.value.repeat_edges(logits),
        tpu=functools.partial(_classify_by_strips, size=size),
        default=functools.partial(_classify_at_once, size=size),
    )


def _classify_by_strips(logits: Array, size: tuple[int, int]) -> Array:
    rows = _neighbours(_multiply_columns(logits, size[1]), 2)
    phases = _phases(logits.shape[1] - 2, size[0])
    return _interleave([lax.argmax(_mix(rows, weights), 1, jnp.uint8) for weights in phases])


def _classify_at_once(logits: Array, size: tuple[int, int]) -> Array:
    batch, height, width = logits.shape[0], logits.shape[1] - 2, logits.shape[2]
    dtype = _widen(logits).dtype
    padded = jnp.pad(logits, ((0, 0), (0, 0), (1, 1), (0, 0)), "edge").astype(dtype)
    rows = enumerate(np.array(_phases(height, size[0]), dtype).T)  # 3 times [phases]
    columns = enumerate(np.array(_phases(width, size[1]), dtype).T)
    mixed = 0  # [B, h, row phases, w, column phases, K]
    for (i, row_weights), (j, column_weights) in itertools.product(rows, columns):
        weights = row_weights[:, None, None, None] * column_weights[:, None]
        mixed += padded[:, i : i + height, None, j : j + width, None] * weights
    return lax.argmax(mixed, 5, jnp.uint8).reshape(batch, *size)


# Its logits have one more row above and below.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pixel_losses(logits: Array, labels: Array, ignore_label: int) -> Array:
    return _forward(logits, labels, ignore_label)[0]


def _forward(logits: Array, labels: Array, ignore_label: int) -> tuple[Array, tuple]:
    planes = _multiply_columns(logits, labels.shape[2])
    rows = _neighbours(planes, 2)
    phases = _phases(logits.shape[1] - 2, labels.shape[1])
    strips = [_mix(rows, weights) for weights in phases]
    parts = _deinterleave(labels, len(phases))
    sums = lax.platform_dependent(strips, parts, cuda=_sum_at_once, default=_sum_by_strips)
    normalizers, label_logits = map(_interleave, zip(*sums, strict=True))
    losses = _compute_losses(normalizers, label_logits, labels, ignore_label)
    return losses, (logits, planes, labels, normalizers)


def _backward(ignore_label: int, residuals: tuple, dlosses: Array) -> tuple[Array, None]:
    logits, planes, labels, normalizers = residuals
    rows = _neighbours(gpu_barrier(planes), 2)
    phases = _phases(logits.shape[1] - 2, labels.shape[1])
    dlosses = jnp.where(labels == ignore_label, 0, dlosses)
    arrays = (_deinterleave(x, len(phases)) for x in (labels, normalizers, dlosses))
    drows = tuple(map(jnp.zeros_like, rows))
    for weights, part, normalizer, dloss in zip(phases, *arrays, strict=True):
        strip = _mix(rows, weights)
        probabilities = jnp.exp(strip - normalizer[:, None])
        dstrip = dloss[:, None] * (probabilities - _is_label(part, strip, 1))
        drows = tuple(d + w * dstrip if w else d for d, w in zip(drows, weights, strict=True))

    products = tuple(_multiply_columns_transposed(d, logits.shape[2], logits.dtype) for d in drows)
    _, neighbours_vjp = jax.vjp(lambda logits: _neighbours(logits, 1), logits)
    return *neighbours_vjp(products), None


_pixel_losses.defvjp(_forward, _backward)


def _compute_losses(
    normalizers: Array, label_logits: Array, labels: Array, ignore_label: int
) -> Array:
    losses = normalizers - label_logits
    losses -= lax.stop_gradient(jnp.minimum(losses, 0))  # rounding may have made it negative
    return jnp.where(labels == ignore_label, 0, losses)


def _sum_classes(logits: Array, labels: Array, axis: int) -> tuple[Array, Array]:
    """Each pixel's normalizer, the log of the sum of exponentials, and its label's logit."""
    # A one-hot product instead of an indexed read: its gradient needs no scatter.
    label_logits = jnp.where(_is_label(labels, logits, axis), logits, 0).sum(axis)
    largest = lax.stop_gradient(logits.max(axis, keepdims=True))
    exponentials = jnp.exp(logits - largest)
    return jnp.log(exponentials.sum(axis)) + largest.squeeze(axis), label_logits


def _sum_by_strips(strips: list[Array], labels: list[Array]) -> list[tuple[Array, Array]]:
    return [_sum_classes(*pair, 1) for pair in zip(strips, labels, strict=True)]


def _sum_at_once(strips: list[Array], labels: list[Array]) -> list[tuple[Array, Array]]:
    """`_sum_by_strips` in one reduction, so that GPUs read the planes once.

    Each partial sum is of exponentials relative to the largest logit so far.
    """
    dtype = strips[0].dtype
    operands = [
        (strip, jnp.ones_like(strip), jnp.where(_is_label(part, strip, 1), strip, 0))
        for strip, part in zip(strips, labels, strict=True)
    ]
    initial = (jnp.finfo(dtype).min.astype(dtype), jnp.zeros((), dtype), jnp.zeros((), dtype))

    def add(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        largest = jnp.maximum(a[0], b[0])
        total = a[1] * jnp.exp(a[0] - largest) + b[1] * jnp.exp(b[0] - largest)
        return largest, total, a[2] + b[2]

    def add_strips(a: list[tuple], b: list[tuple]) -> list[tuple]:
        return [add(*pair) for pair in zip(a, b, strict=True)]

    sums = lax.reduce(operands, [initial] * len(strips), add_strips, (1,))
    return [(jnp.log(total) + largest, label_logits) for largest, total, label_logits in sums]


def _is_label(labels: Array, logits: Array, axis: int) -> Array:
    labels = jnp.expand_dims(labels, axis)
    return labels == lax.broadcasted_iota(labels.dtype, logits.shape, axis % logits.ndim)


def _multiply_columns(logits: Array, width: int) -> Array:
    """[B, h, w, K] -> planes [B, K, h, width], as a product: TPUs are slow at moving columns."""
    matrix = _create_matrix(logits.shape[2], width, logits.dtype)
    planes = jnp.transpose(logits, (0, 3, 1, 2))
    return _multiply("bkhw,vw->bkhv", planes, matrix)


def _multiply_columns_transposed(planes: Array, width: int, dtype: DTypeLike) -> Array:
    """The gradient of `_multiply_columns`: [B, K, h, W] -> [B, h, width, K] of this dtype."""
    matrix = _create_matrix(width, planes.shape[3], dtype)
    return jnp.transpose(_multiply("bkhv,vw->bkhw", planes, matrix), (0, 2, 3, 1)).astype(dtype)


def _create_matrix(length: int, upsampled: int, dtype: DTypeLike) -> Array:
    """Of half precision only if that is exact, as eighths and sixteenths are."""
    matrix = interpolation_matrix(length, upsampled, align_corners=False)
    exact = jnp.finfo(dtype).bits == 16 and (matrix * 256 % 1 == 0).all()
    return jnp.asarray(matrix, dtype if exact else jnp.promote_types(dtype, jnp.float32))


def _multiply(equation: str, planes: Array, matrix: Array) -> Array:
    """The product in float32 at least, of planes rounded to the matrix's dtype."""
    return jnp.einsum(
        equation,
        planes.astype(matrix.dtype),
        matrix,
        precision="default" if matrix.dtype.itemsize == 2 else "highest",
        preferred_element_type=jnp.promote_types(matrix.dtype, jnp.float32),
    )


def _phases(length: int, upsampled: int) -> list[tuple[float, float, float]]:
    """For each of the result's rows in a row of the logits, the weights of its `_neighbours`."""
    factor = upsampled // length
    below = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]  # in (-0.5, 0.5)
    return [(max(-offset, 0.0), 1 - abs(offset), max(offset, 0.0)) for offset in below]


def _neighbours(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """The rows above, at and below each inner row along an axis, h of h + 2."""
    height = x.shape[axis] - 2
    return tuple(lax.slice_in_dim(x, i, i + height, axis=axis) for i in range(3))


def _mix(rows: tuple[Array, Array, Array], weights: tuple[float, float, float]) -> Array:
    return sum(row * weight for row, weight in zip(rows, weights, strict=True) if weight)


def _interleave(phases: list[Array]) -> Array:
    """Phases [B, h, W] -> [B, h * phases, W]."""
    batch, height, width = phases[0].shape
    return jnp.stack(phases, 2).reshape(batch, height * len(phases), width)


def _deinterleave(x: Array, factor: int) -> list[Array]:
    """[B, h * factor, W] -> phases [B, h, W]."""
    x = x.reshape(x.shape[0], -1, factor, x.shape[2])
    return [x[:, :, phase] for phase in range(factor)]


def _divides(logits: Array, size: tuple[int, int]) -> bool:
    shards, (rows, columns) = use_height_shards.value, logits.shape[1:3]
    if not isinstance(rows, int) or not isinstance(
        columns, int
    ):  # sizes that an export leaves open
        return False
    if size[0] % rows or size[1] % columns:
        return False
    return size[0] // rows * shards.get_height(rows) == shards.get_height(size[0])


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
