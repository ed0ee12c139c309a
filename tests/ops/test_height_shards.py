import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from regseg_jax.models.layers import global_mean
from regseg_jax.ops.batch_norm import batch_norm
from regseg_jax.ops.continuous_conv import continuous_conv
from regseg_jax.ops.conv import grouped_conv
from regseg_jax.ops.height_shards import (
    HEIGHT_AXIS,
    HeightShards,
    use_height_shards,
    use_whole_maps,
)
from regseg_jax.ops.pooled_conv import pooled_conv
from regseg_jax.ops.resize import adaptive_average_pool, upsample_bilinear
from regseg_jax.ops.upsampled_loss import upsampled_argmax, upsampled_pixel_losses

STRIDE, WIDTH, CHANNELS = 4, 5, 4  # of the map that goes in


def _random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def _convolve(params: Any, x: Array, rows: Callable[[int], int], labels: Array) -> dict[str, Array]:
    conv = functools.partial(grouped_conv, x, params["3x3"], groups=2)
    # Within the neighbour's rows (4 or 8), beyond them, and beyond the map.
    reaches = ((1, "conv"), (9, "rows"), (14, "split"), (60, "conv"))
    return {f"rate {r}": conv(dilation_rate=r, lowering=name) for r, name in reaches} | {
        "stride 2": conv(stride=2, lowering="conv"),
        "stride 2 by rows": conv(stride=2, lowering="rows"),
        "1x1, stride 2": grouped_conv(x, params["1x1"], stride=2),
        "pooled": pooled_conv(x, params["1x1"]),
        "real rate": continuous_conv(x, params["3x3"], 2.6, groups=2),
    }


def _resize(params: Any, x: Array, rows: Callable[[int], int], labels: Array) -> dict[str, Array]:
    size = 2 * WIDTH - 1  # of an odd image
    return {
        "twice": upsample_bilinear(x, (rows(2), 2 * WIDTH)),
        "twice by corners": upsample_bilinear(x, (rows(2), size), align_corners=True),
        "4 times": upsample_bilinear(x, (rows(1), 4 * WIDTH)),
        "losses": upsampled_pixel_losses(x, labels),
        "classes": upsampled_argmax(x, labels.shape[1:3]),
    }


def _average(params: Any, x: Array, rows: Callable[[int], int], labels: Array) -> dict[str, Array]:
    shards, scale, bias = use_height_shards.value, params["scale"], params["bias"]
    norm = functools.partial(batch_norm, epsilon=1e-5, use_relu=True)
    y, mean, var = norm(x, scale, bias, jnp.zeros_like(bias))
    mean_pixel = global_mean(x)
    with use_whole_maps():
        # Of whole maps, copies of which do not count as other pixels.
        gate, _, gate_var = norm(mean_pixel * scale, scale, bias, jnp.zeros_like(bias))
    pooled = adaptive_average_pool(x, 3)
    return {
        "batch norm": y,
        "its mean": x + mean,
        "its variance": x + var,
        "global mean": x * mean_pixel,
        "batch norm of means": x * gate,
        "its variance of means": x + gate_var,
        "pooled bins": x * pooled[:, 1:2, :1] + pooled[:, 2:3, 1:2] * pooled[:, :1, 2:],
        "gathered": x * shards.gather(x).max(1, keepdims=True),
    }


@pytest.mark.parametrize(
    ("height", "count"), [(77, 4), pytest.param(64, 2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("compute", [_convolve, _resize, _average])
def test_values_and_gradients_are_those_of_one_device(compute, height, count):
    shards = HeightShards(height, count)
    mesh = Mesh(np.array(jax.devices()[:count]), (HEIGHT_AXIS,), axis_types=(AxisType.Auto,))
    params = {
        "3x3": _random(3, 3, CHANNELS // 2, 6, seed=1),
        "1x1": _random(1, 1, CHANNELS, 6, seed=2),
        "scale": _random(CHANNELS, seed=3),
        "bias": _random(CHANNELS, seed=4),
    }
    x = 1 + _random(2, -(-height // STRIDE), WIDTH, CHANNELS, seed=5)
    labels = np.random.default_rng(6).integers(0, CHANNELS, (2, height, 4 * WIDTH))

    def compute_on_one(params: Any, x: Array) -> dict[str, Array]:
        return compute(params, x, lambda stride: -(-height // stride), jnp.asarray(labels))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P(None, HEIGHT_AXIS))
    def compute_on_shards(params: Any, x: Array) -> dict[str, Array]:
        params = lax.pcast(params, HEIGHT_AXIS, to="varying")
        with use_height_shards(shards):
            # Surplus rows hold what would show in every result that read them.
            own = shards.take(x, shards.rows // STRIDE, fill=1000)
            own_labels = shards.take(jnp.asarray(labels), fill=255)
            return compute(params, own, lambda stride: shards.rows // stride, own_labels)

    def differentiate(compute: Callable, shapes: dict[str, Any]) -> Callable:
        def weigh(params: Any, x: Array) -> tuple[Array, dict[str, Array]]:
            maps = compute(params, x)
            maps = {name: y[:, : shapes[name].shape[1]] for name, y in maps.items()}
            weights = {name: _random(*y.shape, seed=7) for name, y in maps.items()}
            return sum((weights[name] * y).sum() for name, y in maps.items()), maps

        return jax.jit(jax.value_and_grad(weigh, argnums=(0, 1), has_aux=True))

    with jax.enable_x64(True):
        shapes = jax.eval_shape(compute_on_one, params, x)
        (_, expected), expected_grads = differentiate(compute_on_one, shapes)(params, x)
        (_, actual), grads = differentiate(compute_on_shards, shapes)(params, x)
    for name, maps in expected.items():
        np.testing.assert_allclose(actual[name], maps, rtol=1e-11, atol=1e-11, err_msg=name)
    for a, e in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


def test_rows_that_are_no_shard_of_a_map_are_named():
    with pytest.raises(ValueError, match=r"5 rows are no shard .* of which a device holds 16"):
        HeightShards(40, 4).get_height(5)
