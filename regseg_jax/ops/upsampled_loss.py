"""Losses and classes of every pixel from logits at a decoder's resolution.

The usual way upsamples the logits to [B, H, W, num_classes] in float32, the largest array of a
training step, and reads it several times in both directions. Here the columns are upsampled first,
which makes strips of H / factor rows, and the rows' phases are taken one after another: each is a
fixed mix of two neighbouring strips, and only results without the class axis are kept.
The gradient computes the strips again. The classes are not the minor axis, which TPUs pad to 128.

In inference rows and columns are mixed at once, but on TPUs: XLA makes that one kernel from the
small logits to the classes, so that not even strips are stored.

A training step needs `model.clone(upsample=False)`, which returns logits of this kind, and
`upsampled_pixel_losses(logits, labels)`: the plain, weighted and bootstrapped losses are sums over
its result. Inference needs `upsampled_argmax(logits, size)`. For sizes that are not multiples of
the logits', or that `jax.export` leaves open, both take the usual way.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from regseg_jax.ops.resize import interpolation_matrix, upsample_bilinear, upsample_by_integer


def upsampled_pixel_losses(logits: Array, labels: Array, ignore_label: int = 255) -> Array:
    """Cross-entropy of each pixel; equal up to rounding to `upsample_bilinear`, then the loss.

    Differentiable once, in reverse mode.

    Args:
      logits: [B, h, w, num_classes] of any float dtype; computed on in float32 at least.
      labels: i32[B, H, W], in [0, num_classes) or ignore_label.
      ignore_label: its pixels have a loss and a gradient of 0.

    Returns:
      f32[B, H, W] (float64 if the logits are), non-negative, 0 where the label is ignored.
    """
    size = labels.shape[1:3]
    if not _divides(logits, size):
        logits = upsample_bilinear(_widen(logits), size)
        return _compute_losses(logits, labels, ignore_label, -1)[0]
    return _pixel_losses(logits, labels, ignore_label)


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
        logits,
        tpu=functools.partial(_classify_by_strips, size=size),
        default=functools.partial(_classify_at_once, size=size),
    )


def _classify_by_strips(logits: Array, size: tuple[int, int]) -> Array:
    rows = _neighbours(_multiply_columns(logits, size[1]))
    phases = _phases(logits.shape[1], size[0])
    return _interleave([lax.argmax(_mix(rows, weights), 1, jnp.uint8) for weights in phases])


def _classify_at_once(logits: Array, size: tuple[int, int]) -> Array:
    (batch, height, width, _), dtype = logits.shape, _widen(logits).dtype
    padded = jnp.pad(logits, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge").astype(dtype)
    rows = enumerate(np.array(_phases(height, size[0]), dtype).T)  # 3 times [phases]
    columns = enumerate(np.array(_phases(width, size[1]), dtype).T)
    mixed = 0  # [B, h, row phases, w, column phases, K]
    for (i, row_weights), (j, column_weights) in itertools.product(rows, columns):
        weights = row_weights[:, None, None, None] * column_weights[:, None]
        mixed += padded[:, i : i + height, None, j : j + width, None] * weights
    return lax.argmax(mixed, 5, jnp.uint8).reshape(batch, *size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pixel_losses(logits: Array, labels: Array, ignore_label: int) -> Array:
    return _forward(logits, labels, ignore_label)[0]


def _forward(logits: Array, labels: Array, ignore_label: int) -> tuple[Array, tuple]:
    def compute(logits: Array, labels: Array, upsample_columns: Callable) -> tuple[Array, Array]:
        rows = _neighbours(upsample_columns(logits, labels.shape[2]))
        phases = _phases(logits.shape[1], labels.shape[1])
        parts = [
            _compute_losses(_mix(rows, weights), part, ignore_label, 1)
            for weights, part in zip(phases, _deinterleave(labels, len(phases)), strict=True)
        ]
        losses, normalizers = zip(*parts, strict=True)
        return _interleave(losses), _interleave(normalizers)

    losses, normalizers = _for_each_platform(compute, logits, labels)
    return losses, (logits, labels, normalizers)


def _backward(ignore_label: int, residuals: tuple, cotangents: Array) -> tuple[Array, None]:
    def compute(
        logits: Array, labels: Array, normalizers: Array, dlosses: Array, upsample_columns: Callable
    ) -> Array:
        def spread(logits: Array) -> tuple[Array, Array, Array]:
            return _neighbours(upsample_columns(logits, labels.shape[2]))

        rows, vjp = jax.vjp(spread, logits)
        phases = _phases(logits.shape[1], labels.shape[1])
        dlosses = jnp.where(labels == ignore_label, 0, dlosses)
        arrays = (_deinterleave(x, len(phases)) for x in (labels, normalizers, dlosses))
        drows = tuple(map(jnp.zeros_like, rows))
        for weights, part, normalizer, dloss in zip(phases, *arrays, strict=True):
            strip = _mix(rows, weights)
            probabilities = jnp.exp(strip - normalizer[:, None])
            dstrip = dloss[:, None] * (probabilities - _is_label(part, strip, 1))
            drows = tuple(d + w * dstrip if w else d for d, w in zip(drows, weights, strict=True))
        return vjp(drows)[0]

    return _for_each_platform(compute, *residuals, cotangents), None


_pixel_losses.defvjp(_forward, _backward)


def _for_each_platform(compute: Callable, *arrays: Array) -> Array | tuple[Array, Array]:
    return lax.platform_dependent(
        *arrays,
        tpu=functools.partial(compute, upsample_columns=_multiply_columns),
        default=functools.partial(compute, upsample_columns=_interleave_columns),
    )


def _compute_losses(
    logits: Array, labels: Array, ignore_label: int, axis: int
) -> tuple[Array, Array]:
    """Each pixel's loss, and its normalizer, the log of the sum of exponentials over axis."""
    # A one-hot product instead of an indexed read: its gradient needs no scatter.
    label_logits = jnp.where(_is_label(labels, logits, axis), logits, 0).sum(axis)
    normalizers = jax.nn.logsumexp(logits, axis)
    return jnp.where(labels == ignore_label, 0, normalizers - label_logits), normalizers


def _is_label(labels: Array, logits: Array, axis: int) -> Array:
    labels = jnp.expand_dims(labels, axis)
    return labels == lax.broadcasted_iota(labels.dtype, logits.shape, axis % logits.ndim)


def _multiply_columns(logits: Array, width: int) -> Array:
    """[B, h, w, K] -> [B, K, h, width] as a product, because moving columns is slow on TPUs."""
    matrix = interpolation_matrix(logits.shape[2], width, align_corners=False)
    # Eighths and sixteenths are exact in half precision, and the sums are float32.
    exact = logits.dtype.itemsize == 2 and (matrix * 256 % 1 == 0).all()
    logits = logits if exact else _widen(logits)
    return jnp.einsum(
        "bhwk,vw->bkhv",
        logits,
        jnp.asarray(matrix, logits.dtype),
        precision="default" if exact else "highest",
        preferred_element_type=_widen(logits).dtype,
    )


def _interleave_columns(logits: Array, width: int) -> Array:
    """[B, h, w, K] -> [B, K, h, width]."""
    planes = jnp.transpose(_widen(logits), (0, 3, 1, 2))
    return upsample_by_integer(planes, 3, width // planes.shape[3])


def _phases(length: int, upsampled: int) -> list[tuple[float, float, float]]:
    """For each of the result's rows in a row of the logits, the weights of its `_neighbours`."""
    factor = upsampled // length
    below = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]  # in (-0.5, 0.5)
    return [(max(-offset, 0.0), 1 - abs(offset), max(offset, 0.0)) for offset in below]


def _neighbours(planes: Array) -> tuple[Array, Array, Array]:
    """The rows above, at and below each row of [B, K, h, W]; beyond an edge they repeat."""
    above = jnp.concatenate([planes[:, :, :1], planes[:, :, :-1]], 2)
    below = jnp.concatenate([planes[:, :, 1:], planes[:, :, -1:]], 2)
    return above, planes, below


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
    pairs = list(zip(size, logits.shape[1:3], strict=True))
    return all(isinstance(side, int) and length % side == 0 for length, side in pairs)


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
