import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from regseg_jax.ops.continuous_conv import continuous_conv
from regseg_jax.ops.conv import grouped_conv


def _inputs(size=(9, 12), dtype=jnp.float32, batch=2):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, *size, 8), dtype)
    kernel = jax.random.normal(keys[1], (3, 3, 4, 16), dtype)
    return x, kernel, jax.random.normal(keys[2], (batch, *size, 16), dtype)


def _loss(x, kernel, rate, dy):
    return (continuous_conv(x, kernel, rate, groups=2) * dy).sum()


_value = jax.jit(functools.partial(continuous_conv, groups=2))
_loss_value = jax.jit(_loss)
_gradients = jax.jit(jax.grad(_loss, (0, 1, 2)))


# 9 and 12 are as high and as wide as the map, 40 is beyond it.
@pytest.mark.parametrize("rate", [1, 2, 5, 9, 12, 40])
def test_integer_rates_equal_the_dilated_convolution(rate):
    with jax.enable_x64(True):
        x, kernel, dy = _inputs(dtype=jnp.float64)
        y, vjp = jax.vjp(
            lambda x, k: grouped_conv(x, k, dilation_rate=rate, groups=2, lowering="conv"),
            x,
            kernel,
        )
        actual, actual_vjp = jax.vjp(
            lambda x, k: continuous_conv(x, k, jnp.float64(rate), groups=2), x, kernel
        )
        np.testing.assert_allclose(actual, y, rtol=1e-12, atol=1e-12)
        for a, e in zip(actual_vjp(dy), vjp(dy), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)


def test_taps_read_bilinearly_and_zero_outside():
    x, kernel, _ = _inputs()
    rate, y = 3.3, np.zeros((2, 9, 12, 16))
    groups = np.split(np.array(x), 2, -1), np.split(np.array(kernel), 2, -1)
    for p, q in np.ndindex(9, 12):
        for i, j in np.ndindex(3, 3):
            top, left = p + rate * (i - 1), q + rate * (j - 1)
            for row in (int(np.floor(top)), int(np.floor(top)) + 1):
                for column in (int(np.floor(left)), int(np.floor(left)) + 1):
                    if 0 <= row < 9 and 0 <= column < 12:
                        weight = (1 - abs(top - row)) * (1 - abs(left - column))
                        parts = [
                            weight * part[:, row, column] @ taps[i, j]
                            for part, taps in zip(*groups, strict=True)
                        ]
                        y[:, p, q] += np.concatenate(parts, -1)
    actual = _value(x, kernel, rate)
    np.testing.assert_allclose(actual, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [1.25, 2.5, 6.9, 10.4])
def test_gradient_of_the_rate_equals_finite_differences(rate):
    with jax.enable_x64(True):
        x, kernel, dy = _inputs(dtype=jnp.float64)
        gradient = _gradients(x, kernel, jnp.float64(rate), dy)[2]
        step = 1e-4
        above, below = (_loss_value(x, kernel, rate + sign * step, dy) for sign in (1, -1))
        assert abs(gradient) > 1
        np.testing.assert_allclose(gradient, (above - below) / (2 * step), rtol=1e-6)


def test_gradient_at_an_integer_is_the_mean_of_both_sides():
    with jax.enable_x64(True):
        x, kernel, dy = _inputs(dtype=jnp.float64)
        sides = [_gradients(x, kernel, jnp.float64(r), dy)[2] for r in (3 - 1e-9, 3 + 1e-9)]
        gradient = _gradients(x, kernel, jnp.float64(3), dy)[2]
        assert abs(sides[0] - sides[1]) > 1
        np.testing.assert_allclose(gradient, np.mean(sides), rtol=1e-6)


def test_wide_taps_average_what_is_around_them():
    # A ramp has the same average; a lone pixel is felt from as far as the taps are wide.
    ramp = np.tile(np.arange(32, dtype=np.float32)[:, None, None], (1, 1, 32, 1))
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[2, 1] = 1
    wide = jax.jit(lambda x: continuous_conv(x, kernel, 5.0, tap_width=4.0))
    np.testing.assert_allclose(wide(ramp)[0, :20, :, 0], ramp[0, 5:25, :, 0])
    pixel = np.zeros((1, 32, 32, 1), np.float32)
    pixel[0, 12, 5] = 1
    felt = wide(pixel)[0, :, 5, 0]
    expected = np.maximum(0, 1 - np.abs(np.arange(32) + 5 - 12) / 4) / 4
    np.testing.assert_allclose(felt, expected, atol=1e-6)


def test_nothing_recompiles_as_the_rate_moves():
    x, kernel, dy = _inputs()
    gradient = jax.jit(jax.grad(_loss, (0, 1, 2)))
    for rate in (1.0, 1.5, 7.0, 100.0):
        gradient(x, kernel, jnp.float32(rate), dy)
    assert gradient._cache_size() == 1


def test_bfloat16_keeps_its_dtype_and_stays_close():
    x, kernel, dy = _inputs(dtype=jnp.bfloat16)
    rate = jnp.float32(2.3)
    y = _value(x, kernel, rate)
    gradients = _gradients(x, kernel, rate, dy)
    assert [a.dtype for a in (y, *gradients)] == [*3 * [jnp.bfloat16], jnp.float32]
    rounded = [a.astype(jnp.float32) for a in (x, kernel, dy)]
    expected = _gradients(*rounded[:2], rate, rounded[2])
    for a, e in zip(gradients, expected, strict=True):
        assert jnp.linalg.norm(a - e) < 0.02 * jnp.linalg.norm(e)


def test_a_sharded_batch_gives_the_same():
    x, kernel, dy = _inputs(batch=8)
    expected = _gradients(x, kernel, jnp.float32(2.3), dy)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    x, dy = jax.device_put((x, dy), NamedSharding(mesh, PartitionSpec("data")))
    kernel, rate = jax.device_put((kernel, jnp.float32(2.3)), NamedSharding(mesh, PartitionSpec()))
    text = _gradients.lower(x, kernel, rate, dy).compile().as_text()
    assert "all-gather" not in text  # only sums cross the devices
    actual = _gradients(x, kernel, rate, dy)
    assert actual[0].sharding.spec == PartitionSpec("data")
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "message"),
    [
        ((1, 8, 8, 8), (1, 1, 4, 8), r"kernel has shape \(1, 1, 4, 8\)"),
        ((1, 8, 8, 8), (3, 3, 8, 8), "do not fit 2 groups"),
        ((1, 8, 8, 8), (3, 3, 4, 5), "do not fit 2 groups"),
    ],
)
def test_bad_shapes_raise(x_shape, kernel_shape, message):
    with pytest.raises(ValueError, match=message):
        continuous_conv(jnp.zeros(x_shape), jnp.zeros(kernel_shape), 1.0, groups=2)
