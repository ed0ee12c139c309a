"""The small network whose dilation rates are planted and looked for: teacher and student."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from regseg_jax.ops.continuous_conv import continuous_conv
from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.relaxed_conv import relaxed_conv

CANDIDATES = tuple(range(1, 17))

_CHANNELS = 16
_GROUP_WIDTH = 8  # one group a branch

Params = dict[str, Array]


def create_params(seed: int, rates: Sequence[Sequence[float]]) -> Params:
    """Random weights, and the rates f32[3, 2]."""
    keys = jax.random.split(jax.random.key(seed), 3)
    blocks, branches = len(rates), len(rates[0])
    kernels = (blocks, branches, 3, 3, _GROUP_WIDTH, _CHANNELS // branches)
    return {
        "stem": _uniform(keys[0], (3, 3, 3, _CHANNELS), 27),
        "kernels": _uniform(keys[1], kernels, 9 * _GROUP_WIDTH),
        "mixing": _uniform(keys[2], (blocks, _CHANNELS, _CHANNELS), _CHANNELS),
        "rates": jnp.array(rates, jnp.float32),
    }


def create_relaxed_params(
    seed: int, rates: Sequence[Sequence[float]], *, shared_kernel: bool
) -> Params:
    """The same with logits f32[3, 2, K] of the candidates in place of rates.

    Each candidate has a kernel of its own, unless they share one.
    """
    params = create_params(seed, rates)
    blocks, branches, *kernel = params["kernels"].shape
    params["rates"] = jnp.zeros((blocks, branches, len(CANDIDATES)))
    if not shared_kernel:
        shape = (blocks, branches, len(CANDIDATES), *kernel)
        params["kernels"] = _uniform(jax.random.key(seed), shape, 9 * _GROUP_WIDTH)
    return params


def _uniform(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
    return jax.random.uniform(key, shape, minval=-1, maxval=1) * fan_in**-0.5


def apply(params: Params, images: Array, sharpness: Array | float = 1.0) -> Array:
    """Strided stem, blocks of dilated 3x3, norm, ReLU, 1x1 and shortcut: [B, H/2, W/2, 16].

    Args:
      params: of a teacher or student.
      images: f32[B, H, W, 3].
      sharpness: f32[]: the width of the taps, or the temperature of the candidates.
    """
    x = _normalize(grouped_conv(images, params["stem"], stride=2))
    for kernels, mixing, rates in zip(
        params["kernels"], params["mixing"], params["rates"], strict=True
    ):
        parts = jnp.split(x, len(rates), axis=-1)
        convolve = _convolve_relaxed if rates.ndim == 2 else _convolve
        branches = [
            convolve(*branch, sharpness) for branch in zip(parts, kernels, rates, strict=True)
        ]
        y = jax.nn.relu(_normalize(jnp.concatenate(branches, -1)))
        x = x + _normalize(y @ mixing)
    return x


def _convolve(x: Array, kernel: Array, rate: Array, tap_width: Array | float) -> Array:
    return continuous_conv(x, kernel, rate, tap_width=tap_width)


def _convolve_relaxed(x: Array, kernels: Array, logits: Array, temperature: Array | float) -> Array:
    kernels = jnp.broadcast_to(kernels, (len(CANDIDATES), *kernels.shape[-4:]))
    return relaxed_conv(x, kernels, jax.nn.softmax(logits / temperature), CANDIDATES)


def _normalize(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.square(x).mean((0, 1, 2)) + 1e-5)


def read_rates(params: Params) -> np.ndarray:
    """The rates f64[3, 2]; of the relaxed method the likeliest candidates."""
    rates = np.asarray(params["rates"], np.float64)
    return np.array(CANDIDATES, float)[rates.argmax(-1)] if rates.ndim == 3 else rates.round(3)
