import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from regseg_jax.ops.batch_norm import batch_norm

EPSILON = 1e-5


def _definition(x, scale, bias, use_relu):
    mean = x.mean((0, 1, 2))
    var = jnp.square(x - mean).mean((0, 1, 2))
    y = (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias
    return jax.nn.relu(y) if use_relu else y


def _inputs(dtype=np.float64, shape=(2, 5, 7, 4)):
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.standard_normal(shape)
    scale, bias, shift = rng.standard_normal((3, shape[-1]))
    return x.astype(dtype), scale, bias, shift, rng.standard_normal(x.shape).astype(dtype)


@pytest.mark.parametrize("platform", ["cuda", "default"])
@pytest.mark.parametrize("use_relu", [False, True])
def test_value_and_gradients_equal_the_definitions(use_relu, platform, monkeypatch):
    monkeypatch.setattr(
        lax, "platform_dependent", lambda *arrays, **branches: branches[platform](*arrays)
    )
    x, scale, bias, shift, dy = _inputs()

    def forward(x, scale, bias):
        return batch_norm(x, scale, bias, shift, epsilon=EPSILON, use_relu=use_relu)[0]

    with jax.enable_x64(True):
        y, vjp = jax.vjp(jax.jit(forward), x, scale, bias)
        definition = functools.partial(_definition, use_relu=use_relu)
        expected_y, expected_vjp = jax.vjp(jax.jit(definition), x, scale, bias)
        pairs = zip((y, *vjp(dy)), (expected_y, *expected_vjp(dy)), strict=True)
        for actual, expected in pairs:
            np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("shape", "num_parts"),
    [
        ((2, 48, 48, 128), 72),
        ((2, 48, 48, 256), 36),
        ((3, 37, 37, 128), 1),  # 4107 pixels divide by no number of parts that is large enough
        ((2, 48, 48, 64), 1),  # needs too many
        ((2, 32, 64, 256), 1),  # short enough for one kernel
    ],
)
def test_long_sums_of_gpus_are_taken_in_parts(shape, num_parts, monkeypatch):
    monkeypatch.setattr(lax, "platform_dependent", lambda *arrays, cuda, default: cuda(*arrays))
    x, scale, bias, shift, _ = _inputs(np.float32, shape)
    forward = functools.partial(batch_norm, epsilon=EPSILON)
    jaxpr = str(jax.make_jaxpr(forward)(x, scale, bias, shift))
    assert f"f32[{num_parts},{x.size // shape[-1] // num_parts},{shape[-1]}]" in jaxpr
    _, mean, var = jax.jit(forward)(x, scale, bias, shift)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2), dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 1, 2), dtype=np.float64, ddof=1), rtol=1e-4)


def test_a_mean_far_from_zero_costs_no_precision_once_the_shift_is_near_it():
    rng = np.random.default_rng(1)
    x = (1000 + rng.standard_normal((4, 16, 16, 3))).astype(np.float32)
    one, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    shift = np.full(3, 999, np.float32)
    _, mean, var = batch_norm(x, one, zero, shift, epsilon=EPSILON)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2), dtype=np.float64, ddof=1), rtol=1e-5)


def test_arrays_of_any_number_of_axes():
    x, scale, bias, shift, _ = _inputs(jnp.float32)
    expected = batch_norm(x, scale, bias, shift, epsilon=EPSILON)
    actual = batch_norm(x.reshape(-1, x.shape[-1]), scale, bias, shift, epsilon=EPSILON)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e.reshape(a.shape), rtol=1e-5, atol=1e-5)


def test_only_the_input_in_its_own_dtype_and_vectors_are_kept_for_the_gradient():
    x, scale, bias, shift, _ = _inputs(jnp.bfloat16)

    def forward(x):
        return batch_norm(x, scale, bias, shift, epsilon=EPSILON, use_relu=True)[0]

    kept = jax.eval_shape(lambda x: jax.vjp(forward, x)[1], jnp.asarray(x))
    large = [leaf for leaf in jax.tree.leaves(kept) if leaf.size >= x.size]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [(x.shape, jnp.bfloat16)]
